"""A method and its optimizer, in Lightning's terms."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import lightning as L
import torch
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from scalekd.data.sampler import ResumableBatchSampler
from scalekd.data.seeding import seed_all
from scalekd.distiller import ScaleKD, StepOutput
from scalekd.distributed import ranks
from scalekd.distributed.fsdp import distribute_optimizer_state, shard_trained
from scalekd.errors import DivergedError
from scalekd.features import Features
from scalekd.networks import CachedOutputs
from scalekd.networks.blocks import repeated_blocks
from scalekd.recipe import Optim
from scalekd.training.optim import build_average, build_optimizer

State = dict[str, Any]
"""All that a run needs to go on, as `Watch.state` makes it: tensors and plain data."""


class Method(Protocol):
    """What can be trained: `ScaleKD`, or one of `scalekd.baselines`."""

    student: nn.Module

    def __call__(self, images: Tensor, targets: Tensor | None = None) -> StepOutput:
        """One step's loss."""


class Lesson:
    """What the teacher says of one batch to several students: the first who asks has it say so."""

    def __init__(self) -> None:
        self._said: Features | None = None

    def of(self, method: ScaleKD, images: Tensor) -> Features:
        """The teacher's features of the batch's `images`, as `method` sees them."""
        if self._said is None:
            self._said = method.run_teacher(images)
        return self._said


def learn(method: Method, batch: Sequence[Any], mix: nn.Module | None = None) -> StepOutput:
    """One step's loss.

    Args:
        method: what trains.
        batch: (images,) or (images, targets); as a last part what a cache keeps of them, or the
            `Lesson` that several students share.
        mix: what is done to images and targets before.
    """
    beside = batch[-1] if isinstance(batch[-1], CachedOutputs | Lesson) else None
    images, *targets = batch if beside is None else batch[:-1]
    if mix is not None:
        images, *targets = mix(images, *targets)
    if beside is None or not isinstance(method, ScaleKD):
        return method(images, *targets)
    teacher = method.teacher
    known = beside.of(method, images) if isinstance(beside, Lesson) else teacher.from_cache(beside)
    step: StepOutput = method(images, *targets, teacher_outputs=known)
    return step


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
        mix: what is done to each batch with labels; see `mixing`.
    """

    def __init__(
        self,
        method: Method,
        optim: Optim,
        learning_rate: float,
        ema: float | None,
        order: ResumableBatchSampler,
        max_skipped: int,
        checkpoint: Path,
        state: State | None = None,
        mix: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.method = method
        self.optim, self.learning_rate, self.order = optim, learning_rate, order
        self.average = None if ema is None else build_average(method.student, ema)
        self.steps, self.steps_per_epoch = order.steps, order.steps_per_epoch
        self.max_skipped, self.checkpoint, self.mix = max_skipped, checkpoint, mix
        self.start: int = state["step"] if state else 0
        self.skipped: int = state["skipped"] if state else 0
        self.left_out = False
        self.optimizer_state = state["optimizer"] if state else None
        if state:
            self.load_state_dict(state["state_dict"])

    def shard(self) -> None:
        """Keep the weights, gradients and optimizer in pieces, one a rank."""
        student, projectors = self.method.student, getattr(self.method, "method", nn.Module())
        assert isinstance(self.method, nn.Module)
        parts = [m for kind in projectors.children() for m in kind.children()]
        shard_trained(self.method, [*repeated_blocks(student), *parts])
        if self.average is not None:
            shard_trained(self.average.module, repeated_blocks(self.average.module))

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
        assert isinstance(self.method, nn.Module)
        optimizer = build_optimizer(self.method, self.optim, self.learning_rate)
        self.schedule = self._schedule(optimizer)
        if self.optimizer_state is not None:
            optimizer.load_state_dict(distribute_optimizer_state(self.optimizer_state, optimizer))
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
        """The random numbers of a step, and of each of its parts in each rank, are its own."""
        part = batch_idx % self.order.micro_batches
        if part == 0:
            self.left_out = False
            assert isinstance(self.method, nn.Module)
            if isinstance(self.method, FSDPModule):  # else DDP does it
                ranks.broadcast_buffers(self.method)
        seed_all(self.order.seed, self.step, self.order.rank * self.order.micro_batches + part)

    def training_step(self, batch: Sequence[Any], index: int) -> dict[str, Any]:
        """One batch, see `learn`; `terms` are means over all ranks.

        A loss that is no number, in whichever rank, never reaches the weights: all ranks leave the
        step out, or, where too many were, DivergedError.
        """
        step = learn(self.method, batch, self.mix)
        terms = ranks.mean_over_ranks({name: value.detach() for name, value in step.terms.items()})
        loss = torch.stack(list(terms.values())).sum()
        if not torch.isfinite(loss):  # waits for the GPU, once a step
            self._leave_out(loss, terms)
        if not self.left_out:
            return {"loss": step.loss, "terms": terms}
        # Every rank must have gradients to exchange; none of them is used.
        trained = (p for p in self.parameters() if p.requires_grad)
        return {"loss": torch.stack([0 * p.sum() for p in trained]).sum(), "terms": None}

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer leaves alone what has no gradients."""
        if self.left_out:
            optimizer.zero_grad(set_to_none=True)

    def _leave_out(self, loss: Tensor, terms: dict[str, Tensor]) -> None:
        listed = ", ".join(f"{name} {value.item():.3g}" for name, value in terms.items())
        said = f"the loss is {loss.item()} at step {self.step + 1} ({listed})"
        self.skipped += not self.left_out
        self.left_out = True
        images = [key % self.order.images for key in self.order.sample_keys(self.step)]
        if self.skipped <= self.max_skipped:
            if ranks.rank() == 0:
                warnings.warn(
                    f"{said}: left out, {self.skipped} of {self.max_skipped} that may be; its "
                    f"images were numbers {images}",
                    stacklevel=2,
                )
            return
        kept = f"; the newest state is in {self.checkpoint}" if self.checkpoint.exists() else ""
        raise DivergedError(
            f"{said}, of images number {images}: lower optim.lr or the weight of the term that "
            f"left, or let max_skipped be more than {self.max_skipped}{kept}"
        )

    def on_train_batch_end(self, *_: Any) -> None:
        """The schedule moves by steps, not epochs."""
        self.schedule.step_update(self.step)
