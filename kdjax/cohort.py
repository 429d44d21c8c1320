"""Students that take every step together: one batch, one teacher forward pass and one compiled step for all of them.

    teacher = teachers.frozen(model, variables)
    grid = [Recipe(model="mlp", batch_size=16, distill=Distill("kd", {"T": T})) for T in (1.0, 4.0)]
    first = Trainer(task(grid[0], dataset, teacher))
    cohort = Cohort([first, *(Trainer(task(recipe, dataset, teacher), beside=first) for recipe in grid[1:])])
    for progress in cohort.epochs():
        print(progress[0].epoch, [one.logs["loss"].mean() for one in progress])

A trainer of one student is a cohort of one: this is the only loop over steps and epochs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
import optax

from kdjax import layout, step
from kdjax.errors import Refused, within
from kdjax.step import State
from kdjax.tasks import Task, train_program
from kdjax.teachers import Teacher

if TYPE_CHECKING:
    from kdjax.trainer import Trainer


class Diverged(RuntimeError):
    """A loss or gradient is not finite: exit code 70, the last good checkpoint is kept."""


class Progress(NamedTuple):
    """What `Trainer.epochs` yields.

    Attributes:
      state: after the steps; it is donated to the steps that follow, so read what you need before going on.
      step: optimizer steps completed.
      epoch: epochs completed.
      ended: whether an epoch has just ended, and the objective has been refreshed.
      logs: name -> [steps since the last yield] float32.
      calibration_logits: [N, K] of the calibration split, where they were computed at the end of this epoch.
    """

    state: State
    step: int
    epoch: int
    ended: bool
    logs: Mapping[str, np.ndarray]
    calibration_logits: np.ndarray | None


Shared = Mapping[str, tuple[Any, str]]
"""What members of a cohort have in common: name -> (what is compared, how a sentence shows it)."""


def shared(task: Task) -> Shared:
    """What tasks of one cohort must have in common. Networks, methods, T, alpha and optimizers may differ."""
    dataset = task.dataset
    return {
        "data": ((dataset.fingerprint, dataset.prepare), f"{dataset.name} {dataset.fingerprint[:8]}"),
        "teacher": (_Teacher(task), ""),
        "seed": (task.seed, str(task.seed)),
        "batch_size": (task.batch_size, str(task.batch_size)),
        "epochs": (task.epochs, str(task.epochs)),
        "transform": (task.parts.transform, ""),
    }


class _Teacher:
    """Whose outputs a task's students learn from: equal for one teacher, as it was given or as a step takes it."""

    def __init__(self, task: Task):
        self.names = {self._name(teacher) for teacher in (task.given or task.teacher, task.teacher)}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Teacher) and bool(self.names & other.names)

    def _name(self, teacher: Teacher | None) -> tuple[Any, ...]:
        if teacher is None:
            return ()
        return teacher.apply, *map(id, jax.tree.leaves((teacher.variables, teacher.by_epoch)))


def difference(one: Shared, other: Shared) -> str:
    """In what two differ that members of a cohort must have in common, with both values; "" for nothing."""
    for name, (value, text) in one.items():
        if other[name][0] != value:
            return f"{name} ({text} and {other[name][1]})" if text != other[name][1] else name
    return ""


def refuse_different(members: Sequence[Shared], names: Sequence[str] = ()) -> None:
    """Refuses members of a cohort that differ in what they must share.

    Raises:
      Refused: naming the first difference, and the two members.
    """
    names = names or [f"student {n}" for n in range(1, len(members) + 1)]
    for member, name in zip(members[1:], names[1:], strict=True):
        if text := difference(members[0], member):
            raise Refused(
                f"a cohort takes every step on one batch with one teacher, and {names[0]} and {name} differ in {text}; "
                "set it alike, or train them apart."
            )


class Cohort:
    """Trainers whose students take each step together.

    Each student ends as if it were trained alone, to rounding: XLA may fuse otherwise in a larger program. On the
    device are the states of all students, and what one needs for its backward pass several times over.

    Args:
      members: trainers; those after the first made with `beside=` it hold data and teacher on the device once.

    Raises:
      Refused: none, or members that differ in data, seed, batch size, epochs, transform, teacher or devices.
    """

    def __init__(self, members: Sequence[Trainer]):
        if not isinstance(members, list | tuple) or not members:
            given = "no members" if isinstance(members, list | tuple) else f"a {type(members).__name__} as members"
            raise Refused(
                f"a cohort has {given}; expected a list of at least one trainer: type "
                "Cohort([first, Trainer(task, beside=first)])."
            )
        self.members = [*members]
        if len(members) > 1:
            refuse_different([{**shared(m.task), "devices": (m.mesh, str(m.mesh.devices.size))} for m in self.members])

    def steps(
        self, states: Sequence[State], *, stop: int | None = None
    ) -> Iterator[tuple[tuple[State, ...], tuple[dict[str, Any], ...]]]:
        """As `Trainer.steps`, of all members: yields (states, logs), an entry for each."""
        lead = self.members[0]
        current = tuple(states)
        seed, per_epoch, at = np.uint32(lead.task.seed), lead.task.steps_per_epoch, self._step_of(current)
        end = (at // per_epoch + 1) * per_epoch
        stop = end if stop is None else min(stop, end)
        variables = lead.teacher_variables.at(at // per_epoch)
        while at < stop:
            # A shorter last call is one more compile and the same numbers.
            k = min(lead.steps_per_call, stop - at)
            program = train_program([member.task for member in self.members], lead.mesh, steps_per_call=k)
            current, logs = program(current, lead.feed, lead.elements.at(at, k), variables, seed)
            at += k
            yield current, logs

    def epochs(
        self,
        states: Sequence[State] | None = None,
        *,
        every: int = 0,
        asked: Callable[[], bool] = lambda: False,
        evaluate: bool = False,
    ) -> Iterator[tuple[Progress | Diverged, ...]]:
        """As `Trainer.epochs`, of all members: yields an entry for each.

        A member that diverged has its `Diverged` there, then and ever after, and the others go on without it: by a
        program without it, so that their numbers are what they would have been to rounding.

        Args:
          states: all at the same step; those at step 0 by default.
        """
        within("every", every, 0)
        going = [*range(len(self.members))]
        current = dict(enumerate([member.init() for member in self.members] if states is None else states))
        outcomes: dict[int, Progress | Diverged] = {}
        task, at = self.members[0].task, self._step_of([*current.values()])
        while at < task.total_steps and going:
            end = (at // task.steps_per_epoch + 1) * task.steps_per_epoch
            stop = min(end, (at // every + 1) * every) if every else end
            before, collected = at, []
            cohort = self if len(going) == len(self.members) else Cohort([self.members[n] for n in going])
            after: tuple[State, ...] = ()
            for after, logs in cohort.steps([current.pop(n) for n in going], stop=stop):
                collected.append(logs)
                at += len(logs[0]["loss"])
                if asked():
                    break
            for n, state, logs in zip(going, after, zip(*collected, strict=True), strict=True):
                member = self.members[n]
                try:
                    steps = gather(logs)
                    refuse_divergence(steps, before, member.task.parts.schedule)
                    logits = None
                    if at == end:
                        state, logits = member.refreshed(state, evaluate=evaluate)
                    outcomes[n] = Progress(state, at, at // task.steps_per_epoch, at == end, steps, logits)
                    current[n] = state
                except Diverged as error:
                    outcomes[n] = error
            going = [n for n in going if n in current]
            yield tuple(outcomes[n] for n in range(len(self.members)))

    def _step_of(self, states: Sequence[State]) -> int:
        """The step that all states are at.

        Raises:
          Refused: they are at different ones, or used up.
        """
        layout.refuse_used_up(states)
        if len(states) == 1:
            return int(states[0].step)
        steps = sorted({int(state.step) for state in states})
        if len(states) != len(self.members) or len(steps) > 1:
            raise Refused(
                f"a cohort of {len(self.members)} got {len(states)} states at steps {steps}; expected one for each "
                "member, all at the same step."
            )
        return steps[0]


def gather(collected: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """The logs of many calls as one [steps] array a name, fetched at once."""
    host = jax.device_get(collected)
    return {name: np.concatenate([np.atleast_1d(c[name]) for c in host]) for name in (host[0] if host else ())}


def refuse_divergence(logs: Mapping[str, np.ndarray], before: int, schedule: optax.Schedule | None = None) -> None:
    """Raises Diverged, naming the first bad step, the term and the learning rate, if any value is not finite."""
    bad = step.first_not_finite(logs)
    if bad is None:
        return
    position, name = bad
    rate = "" if schedule is None else f" at learning rate {float(schedule(before + position)):.3g}"
    raise Diverged(
        f"term {name!r} is {logs[name][position]} at step {before + position + 1}{rate}; the last checkpoint is kept. "
        "Lower recipe optimizer.lr, or set optimizer.clip_norm."
    )
