"""One run: one student, one seed, trained by Lightning."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import lightning as L
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from scalekd.distiller import Step
from scalekd.errors import InputError
from scalekd.training.checkpoint import StudentSpec, save
from scalekd.training.recipe import Optim

AVERAGED = 50
"""Over how many of a run's last steps its final loss is the mean: one step's alone is noise."""


class Method(Protocol):
    """What can be trained: `ScaleKD`, or one of `scalekd.baselines`."""

    student: nn.Module

    def __call__(self, images: Tensor, targets: Tensor | None = None) -> Step:
        """One step's loss."""


class StopSignal(Protocol):
    """Set from outside when the run is to end after its current step."""

    def is_set(self) -> bool:
        """Whether to end."""


class Interrupted(Exception):  # noqa: N818 -- no error: somebody's wish
    """The run was asked to stop; its state is in the checkpoint."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands. `top1` (a share) only when it was just measured, which takes labels;
    `terms` are weighted."""

    step: int
    steps: int
    seconds: float
    images_per_second: float
    learning_rate: float
    loss: float
    terms: dict[str, float]
    top1: float | None = None


class TrainingModule(L.LightningModule):
    """A method, its optimizer and its accuracy, in Lightning's terms.

    Args:
        method: what trains.
        optim: how.
        classes: of the task; None without labels, where no accuracy is measured.
        steps: of the whole run.
        steps_per_epoch: of them.
        metrics: the file to name when the loss is no number.
    """

    def __init__(
        self,
        method: Method,
        optim: Optim,
        classes: int | None,
        steps: int,
        steps_per_epoch: int,
        metrics: Path,
    ) -> None:
        super().__init__()
        self.method = method
        self.optim = optim
        self.steps, self.steps_per_epoch = steps, steps_per_epoch
        self.metrics = metrics
        self.accuracy = MulticlassAccuracy(classes, average="micro") if classes else None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """timm's optimizer; its schedule is stepped in `on_train_batch_end`."""
        optim = self.optim
        assert isinstance(self.method, nn.Module)
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            self.method, opt=optim.name, lr=optim.lr, weight_decay=optim.weight_decay
        )
        warmup = min(round(optim.warmup_epochs * self.steps_per_epoch), self.steps - 1)
        self.schedule = CosineLRScheduler(
            optimizer,
            t_initial=self.steps - warmup,
            lr_min=optim.min_lr,
            warmup_t=warmup,
            warmup_lr_init=optim.lr / max(warmup, 1),
            warmup_prefix=True,
            t_in_epochs=False,
        )
        self.schedule.step_update(0)
        return optimizer

    def training_step(self, batch: Sequence[Tensor], index: int) -> dict[str, Any]:
        """One batch, (images, targets) or (images,); InputError before a loss that is no number
        can reach the weights."""
        step = self.method(*batch)
        if not torch.isfinite(step.loss):  # waits for the GPU, once a step
            terms = ", ".join(f"{name} {value.item():.3g}" for name, value in step.terms.items())
            raise InputError(
                f"the loss is {step.loss.item()} at step {self.global_step + 1} ({terms}): lower "
                f"optim.lr or the weight of the term that left; see {self.metrics}"
            )
        return {"loss": step.loss, "terms": {k: v.detach() for k, v in step.terms.items()}}

    def on_train_batch_end(self, *_: Any) -> None:
        """The schedule moves by steps, not epochs."""
        self.schedule.step_update(self.global_step)

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        """The student alone, as it will be used."""
        images, targets = batch
        assert self.accuracy is not None
        self.accuracy.update(self.method.student(images), targets)


class Watch(L.Callback):
    """Reports progress, keeps the checkpoint, and ends a run that diverges or is told to stop.

    Args:
        report: called at the start, every half second and after every measurement; without labels
            also after the last step.
        stop: ends the run after the current step.
        checkpoint: file that always holds the newest complete state.
        student: stored with the checkpoint, for whoever exports the student.
    """

    def __init__(
        self,
        report: Callable[[Progress], None],
        stop: StopSignal,
        checkpoint: Path,
        student: StudentSpec,
    ) -> None:
        self.report, self.stop, self.checkpoint, self.student = report, stop, checkpoint, student
        self.reported = time.perf_counter()
        self.began: float | None = None
        self.training_seconds = 0.0
        self.images = 0
        self.top1: float | None = None
        self.last: Progress | None = None
        self.newest: deque[dict[str, Tensor]] = deque(maxlen=AVERAGED)

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """The clock runs while the student trains, and only then."""
        self.began = time.perf_counter()

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Measuring is not training."""
        self._pause()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """After each step."""
        assert isinstance(module, TrainingModule)
        self.images += len(batch[0])
        self.newest.append(outputs["terms"])
        if self.stop.is_set():
            save(trainer, self.checkpoint)
            raise Interrupted
        now = time.perf_counter()
        the_end = module.accuracy is None and trainer.global_step == module.steps
        if now - self.reported > 0.5 or self.last is None or the_end:
            self.reported = now
            self._tell(trainer, float(outputs["loss"]), outputs["terms"])

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """A checkpoint each epoch."""
        self._pause()
        save(trainer, self.checkpoint)

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """The accuracy just measured."""
        assert isinstance(module, TrainingModule)
        assert module.accuracy is not None
        self.top1 = float(module.accuracy.compute())
        module.accuracy.reset()
        if self.last is not None:
            self.report(
                replace(
                    self.last,
                    step=trainer.global_step,
                    seconds=self.training_seconds,
                    top1=self.top1,
                )
            )

    def mean_terms(self) -> dict[str, float]:
        """The weighted terms by name, means over the last steps; see `AVERAGED`."""
        return {
            name: float(torch.stack([terms[name] for terms in self.newest]).mean())
            for name in self.newest[0]
        }

    def on_save_checkpoint(
        self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Plain data beside the tensors."""
        checkpoint["scalekd_student"] = asdict(self.student)

    def _pause(self) -> None:
        if self.began is not None:
            self.training_seconds += time.perf_counter() - self.began
        self.began = None

    def _tell(self, trainer: L.Trainer, loss: float, terms: dict[str, Tensor]) -> None:
        assert self.began is not None, "it trains"
        seconds = self.training_seconds + time.perf_counter() - self.began
        self.last = Progress(
            step=trainer.global_step,
            steps=int(trainer.estimated_stepping_batches),
            seconds=seconds,
            images_per_second=self.images / seconds,
            learning_rate=trainer.optimizers[0].param_groups[0]["lr"],
            loss=loss,
            terms={name: float(value) for name, value in terms.items()},
        )
        self.report(self.last)
