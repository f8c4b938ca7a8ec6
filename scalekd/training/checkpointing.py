"""When a run's checkpoints are written: by steps, by minutes, and at the best accuracy so far."""

import logging
import time
from pathlib import Path
from typing import Any

from scalekd.distributed import ranks
from scalekd.runs.checkpoint import best_checkpoint, previous_checkpoint, write_checkpoint

logger = logging.getLogger(__name__)


class Checkpointing:
    """Writes a run's checkpoints; a disk that is full does not end the training.

    Args:
        file: the newest checkpoint; the previous one and the best one are written next to it.
        every_steps: steps between two checkpoints; None for `every_minutes` only.
        every_minutes: minutes between two checkpoints, if that comes sooner.
    """

    def __init__(self, file: Path, *, every_steps: int | None, every_minutes: float) -> None:
        self.file, self.every_steps, self.every_minutes = file, every_steps, every_minutes
        self.saved = time.perf_counter()

    def is_due(self, step: int) -> bool:
        """Whether a checkpoint is to be written after `step`."""
        return self.every_steps is not None and step % self.every_steps == 0

    @property
    def overdue(self) -> bool:
        """Whether the newest checkpoint is older than `every_minutes`; ranks differ in this."""
        return time.perf_counter() - self.saved > 60 * self.every_minutes

    def save(self, state: dict[str, Any]) -> None:
        """Write `state` as the newest checkpoint."""
        self.saved = time.perf_counter()
        self._write(state, self.file, previous_checkpoint(self.file))

    def save_best(self, state: dict[str, Any]) -> bool:
        """Write `state`, that with the highest accuracy so far, as the best checkpoint.

        All ranks must call it at once.

        Returns:
            Whether it was written, which all ranks learn.
        """
        written = self._write(state, best_checkpoint(self.file))
        return not ranks.any_rank(not written)[0]

    def _write(self, state: dict[str, Any], file: Path, aside: Path | None = None) -> bool:
        if ranks.rank() > 0:
            return True
        try:
            write_checkpoint(state, file, aside)
        except OSError as error:
            left = "the one before is intact" if file.exists() else "there is none before it"
            logger.warning(
                "%s could not be written at step %s (%s): %s, and training continues; make room "
                "for the next one",
                file,
                state["step"],
                error,
                left,
            )
            return False
        return True
