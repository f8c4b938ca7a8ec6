"""Optimizer, learning rate schedule and weight average (EMA), from a recipe's `optim` and `ema`."""

import itertools
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler, PolyLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from scalekd.device import best_device
from scalekd.errors import InputError, one_line
from scalekd.recipe import Optim

FUSED = torch.optim.Adam, torch.optim.AdamW
"""Optimizers that torch steps in one fused kernel on any device: the same formula, with less
rounding. SGD's kernel fails where a parameter gets its first gradient later than others; timm's own
optimizers have multi-tensor forms, which they take on a GPU by themselves."""

NORM_EPSILON = 1e-6
"""Added to the norm of the gradients, as torch's `clip_grad_norm_` does."""


def build_optimizer(
    learner: nn.Module, optim: Optim, learning_rate: float
) -> torch.optim.Optimizer:
    """Build timm's optimizer for the trained parameters of `learner`.

    Biases, norms and what the networks exempt have no weight decay, unless `optim.decay_all` is
    set.
    """
    optimizer: torch.optim.Optimizer = create_optimizer_v2(
        learner,
        opt=optim.name,
        lr=learning_rate,
        weight_decay=optim.weight_decay,
        filter_bias_and_bn=not optim.decay_all,
    )
    if isinstance(optimizer, FUSED):
        for group in optimizer.param_groups:
            group.update(fused=True, foreach=False)
    return optimizer


@contextmanager
def clipped_gradients(optimizer: torch.optim.Optimizer, max_norm: float) -> Iterator[None]:
    """Inside, `optimizer.step` takes gradients that are scaled down to a norm of `max_norm`; with 0
    they stay as they are.

    A fused optimizer divides them where it reads them anyway, by the attribute that torch's
    `GradScaler` sets for that; for another one they are scaled in place before.
    """
    if not max_norm:
        yield
        return
    groups = optimizer.param_groups
    trained = [p for group in groups for p in group["params"] if p.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in trained])
    if isinstance(norm, DTensor) or not all(group.get("fused") for group in groups):
        nn.utils.clip_grads_with_norm_(trained, max_norm, norm)
        yield
        return
    divisor = ((norm + NORM_EPSILON) / max_norm).clamp(min=1.0)
    optimizer.grad_scale = divisor  # type: ignore[attr-defined]
    try:
        yield
    finally:
        del optimizer.grad_scale  # type: ignore[attr-defined]


def check_optimizer(optim: Optim) -> None:
    """Raise InputError where the optimizer cannot take a step here, tried on a tiny network.

    Some of timm's need a package or a GPU that is not there, or second derivatives.
    """
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2)
        )
        network.to(best_device())
        try:
            optimizer = build_optimizer(network, optim, optim.lr)
            images = torch.linspace(0, 1, 54, device=best_device()).view(2, 3, 3, 3)
            network(images).square().sum().backward()
            optimizer.step()
        except Exception as error:
            raise InputError(
                f"optim.name is {optim.name!r}, which cannot be used here ({one_line(error)}): "
                "take another optimizer, such as adamw, lamb or sgd"
            ) from error


@dataclass(frozen=True)
class Schedule:
    """The learning rate of a run: timm's schedulers, one after another.

    Args:
        parts: each scheduler, and the step that it begins at, in rising order.
    """

    parts: Sequence[tuple[int, Scheduler]]

    def step_update(self, step: int) -> None:
        """Set the learning rate for the step after `step` steps."""
        start, scheduler = next(part for part in reversed(self.parts) if part[0] <= step)
        scheduler.step_update(step - start)


def build_schedule(
    optimizer: torch.optim.Optimizer,
    optim: Optim,
    *,
    learning_rate: float,
    steps: int,
    steps_per_epoch: int,
) -> Schedule:
    """Build the schedule of the learning rate: linear warm-up, then a cosine, polynomial or drops.

    Args:
        optimizer: the optimizer whose learning rate is set.
        optim: epochs of the warm-up, of the drops and of the restarts, and the learning rate at the
            end.
        learning_rate: learning rate after the warm-up.
        steps: steps of the run.
        steps_per_epoch: steps of an epoch.
    """
    warmup = min(round(optim.warmup_epochs * steps_per_epoch), steps - 1)
    rising: dict[str, Any] = {
        "warmup_t": warmup,
        "warmup_lr_init": learning_rate / max(warmup, 1),
        "t_in_epochs": False,
    }
    if optim.drops:
        # timm's rate falls one step before the one that it is given.
        at_steps = [round(epoch * steps_per_epoch) + 1 for epoch in optim.drops]
        drops = MultiStepLRScheduler(
            optimizer, at_steps, decay_rate=0.1, warmup_prefix=False, **rising
        )
        return Schedule([(0, drops)])
    if optim.poly_power is not None:
        poly = PolyLRScheduler(
            optimizer, t_initial=steps, power=optim.poly_power, lr_min=optim.min_lr, **rising
        )
        return Schedule([(0, poly)])
    starts = [0, *(epoch * steps_per_epoch for epoch in optim.restarts)]
    parts: list[tuple[int, Scheduler]] = []
    for start, end in itertools.pairwise([*starts, steps]):
        for group in optimizer.param_groups:  # from which a scheduler takes its highest rate
            group["lr"] = learning_rate
        first = {**rising, "warmup_prefix": True} if start == 0 else {"t_in_epochs": False}
        length = end - start - (warmup if start == 0 else 0)
        cosine = CosineLRScheduler(optimizer, t_initial=length, lr_min=optim.min_lr, **first)
        parts.append((start, cosine))
    return Schedule(parts)


def build_average(student: nn.Module, decay: float) -> AveragedModel:
    """Build the exponential moving average of the student's weights, which is a copy of it."""
    rule = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    average = AveragedModel(student, multi_avg_fn=rule)
    average.requires_grad_(False)
    return average
