"""What changes the weights, as a recipe says it."""

import torch
from timm.optim import create_optimizer_v2
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from scalekd.recipe import Optim


def build_optimizer(method: nn.Module, optim: Optim, learning_rate: float) -> torch.optim.Optimizer:
    """timm's, of all that `method` trains; what its networks do not decay is not decayed."""
    optimizer: torch.optim.Optimizer = create_optimizer_v2(
        method,
        opt=optim.name,
        lr=learning_rate,
        weight_decay=optim.weight_decay,
        filter_bias_and_bn=not optim.decay_all,
    )
    return optimizer


def build_average(student: nn.Module, decay: float) -> AveragedModel:
    """The average of the student's weights over the steps, a copy that nothing trains."""
    rule = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    average = AveragedModel(student, multi_avg_fn=rule)
    average.requires_grad_(False)
    return average
