"""What a run does between the steps of its loop: metrics, validation, checkpoints, stopping."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from scalekd.data.loader import ImageLoader
from scalekd.distributed import ranks
from scalekd.errors import DivergedError
from scalekd.runs.result import Progress
from scalekd.signals import Interrupted
from scalekd.training.batch import MicroBatch
from scalekd.training.checkpointing import Checkpointing
from scalekd.training.loop import StepRecord, TrainingLoop
from scalekd.training.metrics import Metrics
from scalekd.training.validation import ScoredValidation


class StopSignal(Protocol):
    """Set from outside when a run is to end after its current step."""

    def is_set(self) -> bool:
        """Whether to end."""


@dataclass(kw_only=True)
class TrainingRun:
    """A training loop, and what belongs to it between steps.

    Attributes:
        loop: Takes the steps.
        batches: The loader of the micro-batches that the run still has.
        metrics: Counts steps, images and seconds.
        validation: Measures the student.
        checkpoints: Writes the run's states.
        log_every: Steps between two records of the metrics.
        report: Called every half second, and with everything that is recorded.
        stop: Ends the run after its current step.
        stored: Plain data that each checkpoint has in addition to the training state.
    """

    loop: TrainingLoop
    batches: ImageLoader
    metrics: Metrics
    validation: ScoredValidation
    checkpoints: Checkpointing
    log_every: int
    report: Callable[[Progress], None]
    stop: StopSignal
    stored: dict[str, Any] = field(default_factory=dict)

    def validate_if_missed(self) -> None:
        """Validate where the run was stopped between a step and its validation."""
        step = self.loop.step
        if step and self.validation.is_due(step) and self.validation.step < step:
            self._validate()
            self.checkpoints.save(self.state_dict())  # or the next resume would validate again

    def train_on(self, batch: MicroBatch, waited: float = 0.0) -> None:
        """Learn from a micro-batch, and after a step's last one do whatever is due.

        Args:
            batch: on the device that trains.
            waited: seconds that were spent waiting for it.

        Raises:
            Interrupted: the run was asked to stop; its state is saved.
            DivergedError: the loss is not finite, once more than is allowed.
        """
        next_step = self.loop.step + 1
        measured = self._is_recorded(next_step) or self.validation.is_due(next_step)
        try:
            with self.metrics.training(waited):
                record = self.loop.micro_step(batch, measure_gradients=measured)
        except DivergedError as error:
            if not self.checkpoints.file.exists():
                raise
            newest = self.checkpoints.file
            raise DivergedError(f"{error}; the newest checkpoint is {newest}") from error
        if record is not None:
            self.metrics.add(record)
            self._after_step(record)

    def state_dict(self) -> dict[str, Any]:
        """All that the run needs to resume. All ranks must ask for it at once."""
        return {
            **self.stored,
            "ranks": ranks.world_size(),
            **self.loop.state_dict(),
            "metrics": self.metrics.state_dict(),
            "validation": self.validation.state_dict(),
        }

    def _is_recorded(self, step: int) -> bool:
        return step == self.loop.steps or step % self.log_every == 0

    def _after_step(self, record: StepRecord) -> None:
        step, last = self.loop.step, self.loop.finished
        validate = last or self.validation.is_due(step)
        recorded = self._is_recorded(step)
        if self.metrics.newest and (recorded or validate or self.metrics.news_are_due):
            with_score = validate and self.validation.has_images
            self.report(self.metrics.progress(step, record, recorded=recorded and not with_score))
        # Ranks agree: what one of them is asked for, or finds overdue, all do.
        stopped, overdue = ranks.any_rank(self.stop.is_set(), self.checkpoints.overdue)
        if stopped and not last:
            self.checkpoints.save(self.state_dict())
            ranks.barrier()  # or the launcher might end rank 0 while it still writes
            raise Interrupted
        if validate:
            self._validate()
        if last or overdue or self.checkpoints.is_due(step):
            self.checkpoints.save(self.state_dict())

    def _validate(self) -> None:
        loop, validation = self.loop, self.validation
        before = validation.highest
        better = validation.measure(loop.step, loop.learner, loop.evaluated_student)
        if validation.has_images and self.metrics.last is not None:
            self.report(replace(self.metrics.last, **validation.reported(), recorded=True))
        if better and not self.checkpoints.save_best(self.state_dict()):
            validation.highest = before  # the next that exceeds it is written
