# `make quickstart` and `make test` work from a fresh clone with Python >= 3.11 and nothing else; both are quick again.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
DOCS_READY := .venv/.docs
export JAX_PLATFORMS ?= cpu

.PHONY: quickstart test test-all attack soak lint format bench docs wheel clean

quickstart: $(READY)
	$(BIN)/python -m experiments.quickstart $(ARGS)

PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# Most tests compile a draft (tests/conftest.py); `fused` ones compare numbers that depend on how a compiler rounds.
# One half, not both, may hold none of the tests that ARGS chooses: pytest then ends with 5.
halves = $(PYTEST) --compile=draft -m "$(1)not fused" $(ARGS); a=$$?; [ $$a = 0 ] || [ $$a = 5 ] || exit $$a; \
	$(PYTEST) --compile=quick -m "$(1)fused" $(ARGS); b=$$?; [ $$b = 0 ] || { [ $$b = 5 ] && [ $$a = 0 ]; }

test: $(READY)
	@$(call halves,not slow and )

test-all: $(READY)
	@$(call halves)

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
