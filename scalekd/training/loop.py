"""The training loop of one student: micro-batches, gradients, weights, schedule, average.

    for batch in batches:
        record = loop.micro_step(batch)     # a StepRecord after the last micro-batch of a step

`run.py` calls it, and does between steps what is not training: metrics, validation, checkpoints.
Several students are trained by calling the loop of each with the same batch.
"""

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from scalekd.data.sampler import ResumableBatchSampler
from scalekd.data.seeding import seed_all
from scalekd.distributed import ranks
from scalekd.distributed.fsdp import distribute_optimizer_state, gather_full, shard_learner
from scalekd.errors import DivergedError
from scalekd.recipe import Optim
from scalekd.step import Learner
from scalekd.training.batch import MicroBatch
from scalekd.training.optim import (
    build_average,
    build_optimizer,
    build_schedule,
    clipped_gradients,
)
from scalekd.training.performance import compile_repeated_blocks

logger = logging.getLogger(__name__)

TrainingState = dict[str, Any]
"""What a loop resumes from, as `TrainingLoop.state_dict` makes it: tensors and plain data."""


@dataclass(frozen=True)
class StepRecord:
    """What one step gave.

    Attributes:
        terms: The weighted terms of the loss by name, means over micro-batches and ranks; None if
            the step was skipped.
        learning_rate: The learning rate that the step was taken with.
        gradient_norms: The norms of the gradients of "student" and "projectors", before clipping;
            empty where they were not asked for.
    """

    terms: dict[str, Tensor] | None
    learning_rate: float
    gradient_norms: dict[str, float]


class TrainingLoop:
    """Trains one learner on the micro-batches of one run.

    Args:
        learner: The student with its loss.
        fabric: Places, casts and steps. Each loop has one of its own, since a Fabric holds the
            scale of fp16's loss.
        sampler: Draws the batches of the run; the loop takes its steps and seeds from there.
        optim: The optimizer and its schedule.
        learning_rate: The learning rate after the warm-up.
        ema: Decay of the average of the student's weights; None for no average.
        mixup: Mixes the images and targets of a micro-batch; see `build_mixup`.
        max_skipped: How many steps may be skipped because their loss is not finite.
        compile: Compile the repeated blocks of the networks.
        shard: Shard weights, gradients and optimizer over the ranks (FSDP), in place of exchanging
            gradients (DDP).
        all_have_gradients: Whether each parameter gets a gradient in each step, which DDP must
            know.
        state: The state to resume from, as `state_dict` gives it; None to start.
    """

    def __init__(
        self,
        learner: Learner,
        fabric: Fabric,
        sampler: ResumableBatchSampler,
        *,
        optim: Optim,
        learning_rate: float,
        ema: float | None = None,
        mixup: nn.Module | None = None,
        max_skipped: int = 0,
        compile: bool = False,
        shard: bool = False,
        all_have_gradients: bool = True,
        state: TrainingState | None = None,
    ) -> None:
        self.learner = learner.to(fabric.device)
        self.fabric, self.sampler = fabric, sampler
        self.clip, self.max_skipped = optim.clip, max_skipped
        self.average = None if ema is None else build_average(learner.student, ema)
        self.steps = sampler.steps
        self.step: int = state["step"] if state else 0
        self.skipped: int = state["skipped"] if state else 0
        if state:
            self._load_weights(state)
        if compile:
            compile_repeated_blocks(learner)
        if shard:
            shard_learner(learner, self.average)
        self.module: nn.Module = LossModule(learner, mixup)
        if ranks.world_size() > 1 and not shard:
            self.module = DistributedDataParallel(
                self.module,
                device_ids=[fabric.device] if fabric.device.type == "cuda" else None,
                find_unused_parameters=not all_have_gradients,
                gradient_as_bucket_view=True,
            )
        self.optimizer = build_optimizer(learner, optim, learning_rate)
        self.schedule = build_schedule(
            self.optimizer,
            optim,
            learning_rate=learning_rate,
            steps=sampler.steps,
            steps_per_epoch=sampler.steps_per_epoch,
        )
        if state:
            self.optimizer.load_state_dict(
                distribute_optimizer_state(state["optimizer"], self.optimizer)
            )
            if state["precision"]:  # the loss scale; empty but in fp16
                fabric.strategy.precision.load_state_dict(state["precision"])
        self.schedule.step_update(self.step)
        self._micro_batch = 0
        self._terms: list[dict[str, Tensor]] = []
        self._skip = False
        self._statistics: list[tuple[Tensor, Tensor]] = []

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.step == self.steps

    @property
    def evaluated_student(self) -> nn.Module:
        """The student that is validated and exported: the average, where there is one."""
        return self.learner.student if self.average is None else self.average.module

    def micro_step(self, batch: MicroBatch, measure_gradients: bool = False) -> StepRecord | None:
        """Learn from one micro-batch; after the last one of a step the weights change.

        Args:
            batch: on the device that trains.
            measure_gradients: whether the step's record needs the norms of the gradients.

        Raises:
            DivergedError: the loss is not finite, once more than `max_skipped` allows.
        """
        self.forward_backward(batch)
        if self._micro_batch < self.sampler.micro_batches:
            return None
        return self.update_weights(measure_gradients)

    def forward_backward(self, batch: MicroBatch) -> None:
        """Add the gradients of one micro-batch to those of its step."""
        if self._micro_batch == 0 and isinstance(self.learner, FSDPModule):
            ranks.broadcast_buffers(self.learner)  # as DDP does by itself
        if self._micro_batch == 0 and self.max_skipped:
            # A forward pass whose loss is not finite may have spoilt them for good.
            self._statistics = [(kept, kept.clone()) for kept in batch_norm_buffers(self.learner)]
        # Random numbers depend on step, micro-batch and rank alone. So a resumed run repeats them,
        # and students that share their teacher's outputs draw the same Mixup.
        stream = self.sampler.rank * self.sampler.micro_batches + self._micro_batch
        seed_all(self.sampler.seed, self.step, stream)
        self._micro_batch += 1
        last = self._micro_batch == self.sampler.micro_batches
        with _exchanging_gradients(self.module, now=last):
            with self.fabric.autocast():
                loss, terms, finite = self.module(batch, self._skip)
            if not finite:
                self._skip_or_fail(terms)
            if self._micro_batch == 1:
                # Not earlier, so that `scalekd estimate` is right about the memory of a step.
                self.optimizer.zero_grad()
            self.fabric.backward(loss / self.sampler.micro_batches)
        self._terms.append(terms)

    def update_weights(self, measure_gradients: bool) -> StepRecord:
        """Clip the gradients; step optimizer, schedule and average."""
        precision = self.fabric.strategy.precision
        precision.unscale_gradients(self.optimizer)  # before the norms are measured and clipped
        record = StepRecord(
            terms=None if self._skip else average_terms(self._terms),
            learning_rate=self.optimizer.param_groups[0]["lr"],
            gradient_norms=self._gradient_norms() if measure_gradients else {},
        )
        if self._skip:
            self.optimizer.zero_grad()  # an optimizer leaves alone what has no gradients
            for statistic, before in self._statistics:
                statistic.copy_(before)
        with clipped_gradients(self.optimizer, self.clip):
            precision.optimizer_step(self.optimizer)
        self.step += 1
        self.schedule.step_update(self.step)
        if self.average is not None:
            self.average.update_parameters(self.learner.student)
        self._micro_batch, self._terms, self._skip = 0, [], False
        return record

    def state_dict(self) -> TrainingState:
        """All that the loop needs to resume, unsharded. All ranks must ask for it at once."""
        average = self.average
        return {
            "step": self.step,
            "skipped": self.skipped,
            "learner": gather_full(self.learner.state_dict()),
            "average": None if average is None else gather_full(average.state_dict()),
            "optimizer": gather_full(self.optimizer.state_dict()),
            "precision": self.fabric.strategy.precision.state_dict(),
        }

    def _load_weights(self, state: TrainingState) -> None:
        self.learner.load_state_dict(state["learner"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])

    def _gradient_norms(self) -> dict[str, float]:
        student = {id(p) for p in self.learner.student.parameters()}
        gradients: dict[str, list[Tensor]] = {"student": [], "projectors": []}
        for parameter in self.learner.parameters():
            if parameter.grad is not None:
                part = "student" if id(parameter) in student else "projectors"
                gradients[part].append(parameter.grad)
        norms = {part: nn.utils.get_total_norm(gs) for part, gs in gradients.items() if gs}
        return {part: float(norm) for part, norm in gather_full(norms).items()}

    def _skip_or_fail(self, terms: dict[str, Tensor]) -> None:
        loss = torch.stack(list(terms.values())).sum().item()
        listed = ", ".join(f"{name} {value.item():.3g}" for name, value in terms.items())
        diverged = f"the loss is {loss} at step {self.step + 1} ({listed})"
        images = [key % self.sampler.images for key in self.sampler.sample_keys(self.step)]
        self.skipped += not self._skip
        self._skip = True
        if self.skipped > self.max_skipped:
            raise DivergedError(
                f"{diverged}; its images have the indices {images}: lower optim.lr or the weight "
                f"of the term that is not finite, or let max_skipped be more than "
                f"{self.max_skipped}"
            )
        if ranks.rank() == 0:
            logger.warning(
                "%s: the step is skipped, number %s of the %s that max_skipped allows; its images "
                "have the indices %s",
                diverged,
                self.skipped,
                self.max_skipped,
                images,
            )


class LossModule(nn.Module):
    """The forward pass of a micro-batch, in one module for DistributedDataParallel to wrap.

    A loss that is not finite in any rank never reaches the weights: all ranks get a loss of zero
    for the rest of the step, since every rank must have gradients to exchange.
    """

    def __init__(self, learner: Learner, mixup: nn.Module | None) -> None:
        super().__init__()
        self.learner, self.mixup = learner, mixup

    def forward(self, batch: MicroBatch, skip: bool) -> tuple[Tensor, dict[str, Tensor], bool]:
        """The loss to call `backward` on, its terms as means over the ranks, and whether the loss
        is finite in all ranks; with `skip` the loss is zero."""
        output = batch.loss(self.learner, self.mixup)
        terms = ranks.mean_over_ranks({n: t.detach() for n, t in output.terms.items()})
        finite = bool(torch.stack(list(terms.values())).sum().isfinite())  # synchronises the GPU
        if finite and not skip:
            return output.loss, terms, True
        trained = (p for p in self.learner.parameters() if p.requires_grad)
        return torch.stack([0 * p.sum() for p in trained]).sum(), terms, finite


def batch_norm_buffers(module: nn.Module) -> Iterator[Tensor]:
    """The running statistics of the module's BatchNorms."""
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._NormBase):
            yield from part.buffers(recurse=False)


def average_terms(terms: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of each term by name, on the device where it is."""
    if len(terms) == 1:
        return terms[0]
    return {name: torch.stack([each[name] for each in terms]).mean() for name in terms[0]}


def _exchanging_gradients(module: nn.Module, now: bool) -> AbstractContextManager[None]:
    """Ranks under DDP exchange gradients once a step, after its last micro-batch."""
    skip_exchange = isinstance(module, DistributedDataParallel) and not now
    return module.no_sync() if skip_exchange else nullcontext()  # type: ignore[operator]
