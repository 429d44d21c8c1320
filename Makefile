# `make quickstart` and `make test` work from a fresh clone with Python >= 3.11 and nothing else; both are quick again.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
DOCS_READY := .venv/.docs
export JAX_PLATFORMS ?= cpu

.PHONY: quickstart test test-all attack soak lint format bench docs wheel clean

quickstart: $(READY)
	$(BIN)/python -m experiments.quickstart $(ARGS)

PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

# Most tests compile a draft (tests/conftest.py); `fused` ones compare numbers that depend on how a compiler rounds.
test: $(READY)
	$(PYTEST) --compile=draft -m "not slow and not fused" $(ARGS)
	$(PYTEST) --compile=quick -m "not slow and fused" $(ARGS)

test-all: $(READY)
	$(PYTEST) --compile=draft -m "not fused" $(ARGS)
	$(PYTEST) --compile=quick -m fused $(ARGS)

# Harms finished and half-finished runs at random, `make attack SECONDS=600 ARGS=--seed=7`; see docs/reliability.md.
SECONDS ?= 60
attack: $(READY)
	$(BIN)/python -m tests.faults.attack --seconds $(SECONDS) $(ARGS)

# Two hundred small stages in one process: memory, open files and threads, printed.
soak: $(READY)
	$(BIN)/python -m tests.faults.soak $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)
	$(BIN)/python -m experiments.benchmark $(ARGS)

# The site in docs/_build/html; its notebooks run, and every warning is an error.
docs: $(DOCS_READY)
	$(BIN)/python -m sphinx -b html -d docs/_build/doctrees -W --keep-going -q docs docs/_build/html $(ARGS)

wheel: $(READY)
	.ci/wheel $(BIN)/python

$(DOCS_READY): $(READY)
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	@touch $@

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and "Python %d.%d found, 3.11 or later needed; type: make PYTHON=python3.12 ..." % v[:2])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

clean:
	rm -rf .venv docs/_build build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
