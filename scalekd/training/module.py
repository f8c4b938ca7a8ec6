"""A method and its optimizer, in Lightning's terms."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import lightning as L
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from scalekd.distiller import Step
from scalekd.errors import InputError
from scalekd.training.batches import RunBatches
from scalekd.training.randomness import seed_all
from scalekd.training.recipe import Optim

State = dict[str, Any]
"""All that a run needs to go on, as `Watch.state` makes it: tensors and plain data."""


class Method(Protocol):
    """What can be trained: `ScaleKD`, or one of `scalekd.baselines`."""

    student: nn.Module

    def __call__(self, images: Tensor, targets: Tensor | None = None) -> Step:
        """One step's loss."""


class TrainingModule(L.LightningModule):
    """A method and its optimizer, in Lightning's terms.

    Args:
        method: what trains.
        optim: how.
        learning_rate: of the optimizer after the warm-up.
        ema: decay of the average of the student's weights; None for no average.
        order: the run's batches.
        max_skipped: how many steps may be left out because their loss is no number.
        checkpoint: the file to name when there are more.
        state: of the run so far, to go on from.
    """

    def __init__(
        self,
        method: Method,
        optim: Optim,
        learning_rate: float,
        ema: float | None,
        order: RunBatches,
        max_skipped: int,
        checkpoint: Path,
        state: State | None = None,
    ) -> None:
        super().__init__()
        self.method = method
        self.optim, self.learning_rate, self.order = optim, learning_rate, order
        self.average: AveragedModel | None = None
        if ema is not None:
            rule = get_ema_multi_avg_fn(ema)  # type: ignore[no-untyped-call]
            averaged = AveragedModel(method.student, multi_avg_fn=rule)
            self.average = averaged.requires_grad_(False)
        self.steps, self.steps_per_epoch = order.steps, order.steps_per_epoch
        self.max_skipped, self.checkpoint = max_skipped, checkpoint
        self.start: int = state["step"] if state else 0
        self.skipped: int = state["skipped"] if state else 0
        self.optimizer_state = state["optimizer"] if state else None
        if state:
            self.load_state_dict(state["state_dict"])

    @property
    def step(self) -> int:
        """How many steps of the whole run are done."""
        return self.start + self.global_step

    @property
    def student(self) -> nn.Module:
        """What is measured and kept: the average, where there is one."""
        return self.method.student if self.average is None else self.average.module

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """timm's optimizer; its schedule is stepped in `on_train_batch_end`."""
        optim = self.optim
        assert isinstance(self.method, nn.Module)
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            self.method,
            opt=optim.name,
            lr=self.learning_rate,
            weight_decay=optim.weight_decay,
            filter_bias_and_bn=not optim.decay_all,
        )
        self.schedule = self._schedule(optimizer)
        if self.optimizer_state is not None:
            optimizer.load_state_dict(self.optimizer_state)
            self.optimizer_state = None
        self.schedule.step_update(self.start)
        return optimizer

    def _schedule(self, optimizer: torch.optim.Optimizer) -> Scheduler:
        optim = self.optim
        warmup = min(round(optim.warmup_epochs * self.steps_per_epoch), self.steps - 1)
        rising: dict[str, Any] = {
            "warmup_t": warmup,
            "warmup_lr_init": self.learning_rate / max(warmup, 1),
            "t_in_epochs": False,
        }
        if optim.drops:
            # timm's rate falls one step before the one that it is given.
            steps = [round(epoch * self.steps_per_epoch) + 1 for epoch in optim.drops]
            return MultiStepLRScheduler(
                optimizer, steps, decay_rate=0.1, warmup_prefix=False, **rising
            )
        return CosineLRScheduler(
            optimizer,
            t_initial=self.steps - warmup,
            lr_min=optim.min_lr,
            warmup_prefix=True,
            **rising,
        )

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """The random numbers of a step, and of each of its parts, are its own."""
        seed_all(self.order.seed, self.step, batch_idx % self.order.parts)

    def training_step(self, batch: Sequence[Tensor], index: int) -> dict[str, Any] | None:
        """One batch, (images, targets) or (images,).

        A loss that is no number never reaches the weights: the step is left out, or, where too
        many were, InputError.
        """
        step = self.method(*batch)
        if not torch.isfinite(step.loss):  # waits for the GPU, once a step
            self._skip(step)
            return None
        return {"loss": step.loss, "terms": {k: v.detach() for k, v in step.terms.items()}}

    def _skip(self, step: Step) -> None:
        terms = ", ".join(f"{name} {value.item():.3g}" for name, value in step.terms.items())
        said = f"the loss is {step.loss.item()} at step {self.step + 1} ({terms})"
        self.skipped += 1
        images = [name % self.order.images for name in self.order.batch(self.step)]
        if self.skipped <= self.max_skipped:
            warnings.warn(
                f"{said}: left out, {self.skipped} of {self.max_skipped} that may be; its images "
                f"were numbers {images}",
                stacklevel=2,
            )
            return
        kept = f"; the newest state is in {self.checkpoint}" if self.checkpoint.exists() else ""
        raise InputError(
            f"{said}, of images number {images}: lower optim.lr or the weight of the term that "
            f"left, or let max_skipped be more than {self.max_skipped}{kept}"
        )

    def on_train_batch_end(self, *_: Any) -> None:
        """The schedule moves by steps, not epochs."""
        self.schedule.step_update(self.step)
