"""How stages are run: none of it changes a number."""

from __future__ import annotations

import dataclasses

from kdjax import writers
from kdjax.errors import Refused, one_of, within
from kdjax.feeds import FEEDS

EXIT_REFUSED, EXIT_INTERNAL, EXIT_IO, EXIT_INTERRUPTED = 2, 70, 74, 75


class Interrupted(RuntimeError):
    """A signal asked for a stop and everything is saved: exit code 75, the same command resumes."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How stages are run; none of it changes a number.

    Attributes:
      workdir: holds one directory per stage.
      checkpoint_epochs: save every so many epochs.
      checkpoint_steps: save also every so many steps; 0 means only at epochs.
      keep: checkpoints kept per stage.
      devices: how many; 0 means all.
      steps_per_call: optimizer steps scanned per compiled call; 0 chooses 1 on CPU, where gradient convolutions in a
        loop fall to a slow kernel, and up to 16 elsewhere.
      cohort: the most students that are trained in one compiled step, of those that share teacher, data, order and
        augmentation; 1 trains each alone.
      eval_batch_size: examples per prediction call.
      feed: "resident" keeps the training split on the device, "streamed" reads batches when they are needed, "auto"
        streams what is not in memory.
      readers: threads that read and decode a stream.
      writer: "tensorboard" or "wandb": write the numbers of every epoch there too; "" for metrics.jsonl alone.
    """

    workdir: str = "runs"
    checkpoint_epochs: int = 10
    checkpoint_steps: int = 0
    keep: int = 2
    devices: int = 0
    steps_per_call: int = 0
    cohort: int = 1
    eval_batch_size: int = 500
    feed: str = "auto"
    readers: int = 8
    writer: str = ""

    def check(self) -> Settings:
        """Returns itself if every number is in range.

        Raises:
          Refused: naming the field.
        """
        for name in ("checkpoint_epochs", "keep", "cohort", "eval_batch_size", "readers"):
            within(f"run.{name}", getattr(self, name), 1)
        for name in ("checkpoint_steps", "devices", "steps_per_call"):
            within(f"run.{name}", getattr(self, name), 0)
        one_of("run.feed", self.feed, FEEDS)
        if self.writer == "wandb" and self.cohort > 1:
            raise Refused(
                f"run.writer is 'wandb', which has one run at a time in a process, and run.cohort is {self.cohort}; "
                "set run.cohort to 1, or choose tensorboard."
            )
        writers.check(self.writer)
        return self
