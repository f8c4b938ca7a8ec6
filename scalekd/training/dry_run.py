"""One step on two images, before the expensive part: what does not fit together says so now."""

import torch
from torch import nn
from torch.utils.data import DataLoader, default_collate
from torch.utils.flop_counter import FlopCounterMode

from scalekd.device import best_device
from scalekd.flops import FLOP_FORMULAS
from scalekd.training.batch import Batch, Learner

IMAGES = 2
"""They show it as well as a batch, which may be large."""


def dry_run(learner: Learner, batches: DataLoader[object]) -> float:
    """A step of `learner`, which is left with gradients and moved statistics.

    Args:
        learner: on the device that trains.
        batches: whose data set and first batch the images are of.

    Returns:
        GFLOP an image, forward and backward, 2 for each multiply-add.
    """
    assert batches.batch_sampler is not None
    names = next(iter(batches.batch_sampler))[:IMAGES]
    batch = default_collate([batches.dataset[name] for name in names])
    learner.train()
    with (
        FlopCounterMode(display=False, custom_mapping=FLOP_FORMULAS) as counter,
        torch.enable_grad(),
    ):
        loss = Batch.from_loader(batch, best_device()).loss(learner).loss
        torch.autograd.backward(loss)
    learner.eval()
    return float(counter.get_total_flops()) / len(names) / 1e9


def parameters_without_gradient(learner: nn.Module) -> list[str]:
    """Names of the parameters that the last step gave no gradient."""
    return [name for name, p in learner.named_parameters() if p.requires_grad and p.grad is None]
