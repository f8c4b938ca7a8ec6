"""One step on two images, before the expensive part: what does not fit together says so now."""

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import nn
from torch.utils.data import DataLoader, default_collate
from torch.utils.flop_counter import FlopCounterMode

from scalekd.device import best_device
from scalekd.flops import FLOP_FORMULAS
from scalekd.training.module import Method, learn

IMAGES = 2
"""They show it as well as a batch, which may be large."""


def dry_run(method: Method, batches: DataLoader[object]) -> float:
    """A step of `method`, which is left with gradients and moved statistics.

    Args:
        method: on the device that trains.
        batches: whose data set and first batch the images are of.

    Returns:
        GFLOP an image, forward and backward, 2 for each multiply-add.
    """
    assert isinstance(method, nn.Module)
    assert batches.batch_sampler is not None
    names = next(iter(batches.batch_sampler))[:IMAGES]
    batch = default_collate([batches.dataset[name] for name in names])
    method.train()
    counter = FlopCounterMode(display=False, custom_mapping=FLOP_FORMULAS)
    with counter, torch.enable_grad():
        step = learn(method, move_data_to_device(batch, best_device()))
        torch.autograd.backward(step.loss)
    method.eval()
    return float(counter.get_total_flops()) / len(names) / 1e9


def parameters_without_gradient(method: nn.Module) -> list[str]:
    """Names of the parameters that the last step gave no gradient."""
    return [name for name, p in method.named_parameters() if p.requires_grad and p.grad is None]
