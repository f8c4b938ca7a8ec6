"""Optimizer, learning rate schedule and weight average (EMA), from a recipe's `optim` and `ema`."""

from typing import Any

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from scalekd.recipe import Optim


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
    return optimizer


def build_schedule(
    optimizer: torch.optim.Optimizer,
    optim: Optim,
    *,
    learning_rate: float,
    steps: int,
    steps_per_epoch: int,
) -> Scheduler:
    """Build the schedule of the learning rate: linear warm-up, then a cosine or drops.

    `step_update(step)` sets the learning rate for the step after `step` steps.

    Args:
        optimizer: the optimizer whose learning rate is set.
        optim: epochs of the warm-up and of the drops, and the learning rate at the end.
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
        return MultiStepLRScheduler(
            optimizer, at_steps, decay_rate=0.1, warmup_prefix=False, **rising
        )
    return CosineLRScheduler(
        optimizer,
        t_initial=steps - warmup,
        lr_min=optim.min_lr,
        warmup_prefix=True,
        **rising,
    )


def build_average(student: nn.Module, decay: float) -> AveragedModel:
    """Build the exponential moving average of the student's weights, which is a copy of it."""
    rule = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    average = AveragedModel(student, multi_avg_fn=rule)
    average.requires_grad_(False)
    return average
