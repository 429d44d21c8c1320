"""How many local workers a command starts: what was typed, or as many as pay on this machine."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax

from kdjax import layout, limits, provenance, stages
from kdjax.errors import Refused
from kdjax.grouping import groups
from kdjax.planning import Planned
from kdjax.settings import Settings

AUTO = "auto"
START_SECONDS = 10.0
"""What workers must save to pay: each imports, loads the data and compiles most programs that it runs."""
WORKER_BYTES = 800e6
"""A process with JAX, its compiled programs and a small data set."""
# A stage and a step take no less, whatever they compute; operations a second of one processor, rather high.
_STAGE_SECONDS, _STEP_SECONDS, _FLOPS = 1.0, 1e-3, 4e10
# Operations of a forward pass for each byte of what it keeps for the backward one, rather few: small networks.
_FLOP_A_BYTE = 25.0


def check(typed: str, *, elsewhere: str = "") -> str:
    """Returns what `--workers` names: "auto", or a number of processes that this machine has processors for.

    Args:
      elsewhere: another flag that says who computes, and with which there can be no workers of this command's own.

    Raises:
      Refused: it is neither; or there is such a flag.
    """
    most = provenance.cpus() or 1
    text = str(typed).strip()
    if text != AUTO and not (re.fullmatch(r"\d{1,6}", text, re.ASCII) and 1 <= int(text) <= most):
        these = f"1 to {most}, the processors that this command may use" if most > 1 else "1, for one processor"
        raise Refused(f"--workers is {typed!r}; expected auto, or a number of processes: {these}.")
    if elsewhere and text not in (AUTO, "1"):
        raise Refused(f"--workers={text} and {elsewhere} both say which processes compute; leave one of them out.")
    return text


def possible(typed: str, settings: Settings) -> bool:
    """Whether there may be more workers than one, before anything is planned.

    Raises:
      Refused: a number other than 1 on an accelerator, or on Windows.
    """
    device = jax.local_devices()[0].platform
    if device != "cpu" and typed not in (AUTO, "1"):
        raise Refused(
            f"--workers={typed} shares out the processors of this machine, and this command computes on {device}; "
            "leave it out, or set JAX_PLATFORMS=cpu."
        )
    if sys.platform == "win32":
        if typed not in (AUTO, "1"):
            raise Refused(f"--workers={typed} needs Linux or macOS; leave it out.")
        return False
    if typed == AUTO:
        one_device = layout.mesh(settings.devices).devices.size == 1
        return device == "cpu" and one_device and jax.process_count() == 1 and (provenance.cpus() or 1) > 1
    return typed != "1"


def choose(typed: str, planned: Sequence[Planned], cohort: int = 1) -> tuple[int, str]:
    """(workers, a sentence where they are fewer than there is work for) for planned stages, of which a worker takes up
    to `cohort` at a time."""
    missing = [row for row in planned if row.status != "done"]
    wanted = min(_paying(missing, cohort) if typed == AUTO else int(typed), max(len(missing), 1))
    if wanted < 2:
        return 1, ""
    kinds = {stages.kind_of(row.stage): row for row in missing}
    bytes_of = {kind: needed(row) - WORKER_BYTES for kind, row in kinds.items()}
    formed = groups([row.stage for row in missing], cohort)
    available = limits.available()
    each = WORKER_BYTES + max(sum(bytes_of[stages.kind_of(stage)] for stage in group) for group in formed)
    fitting = wanted if available is None else min(wanted, max(1, int(available / each)))
    if available is None or fitting == wanted:
        return wanted, ""
    verb = "compute" if fitting > 1 else "computes"
    return fitting, (
        f"{wanted} workers would take about {wanted * each / 1e9:.1f} GB, and {available / 1e9:.1f} GB are free; "
        f"{fitting} {verb}."
    )


def _paying(missing: Sequence[Planned], cohort: int) -> int:
    """One a processor, and no more than there are stages that do not wait for each other; 1 where a start costs more
    than is saved."""
    count = min(provenance.cpus() or 1, independent(missing, cohort))
    if count < 2:
        return 1
    seconds = sum(max(row.steps * _STEP_SECONDS, row.flops / _FLOPS) + _STAGE_SECONDS for row in missing)
    return count if seconds * (1 - 1 / count) > START_SECONDS else 1


def independent(missing: Sequence[Planned], cohort: int = 1) -> int:
    """The most stages, or cohorts of them, that are equally many stages away from their first ancestor that is
    missing."""
    depth: dict[str, int] = {}
    for row in missing:
        depth[row.stage.id] = 1 + max((depth.get(parent.id, 0) for parent in row.stage.parents), default=0)
    first = [group[0].id for group in groups([row.stage for row in missing], cohort)]
    return max(Counter(depth[stage] for stage in first).values(), default=0)


def needed(row: Planned) -> float:
    """Bytes that a process takes for one stage, estimated from shapes: data on host and device, parameters with what
    is kept beside them, and what a forward pass leaves for the backward one."""
    recipe = row.stage.recipe
    data = _bytes(stages.dataset(recipe.data).train.inputs)
    parameters = _bytes(stages.abstract_variables(recipe))
    if row.stage.teacher is not None:
        parameters += _bytes(stages.abstract_variables(row.stage.teacher.recipe))
    kept = row.flops / max(row.steps, 1) / 3 / _FLOP_A_BYTE
    return WORKER_BYTES + 2 * data + 6 * parameters + row.state_bytes + kept


def _bytes(tree: Any) -> int:
    leaves = jax.tree.leaves(tree)
    return sum(x.size * x.dtype.itemsize for x in leaves if hasattr(x, "size") and hasattr(x, "dtype"))
