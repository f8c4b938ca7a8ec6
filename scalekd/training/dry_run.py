"""A dry run: one step on two images before training, which shows errors early and counts FLOPs."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from scalekd.data.loader import ImageLoader
from scalekd.device import best_device
from scalekd.flops import FLOP_FORMULAS
from scalekd.notes import Note
from scalekd.step import Learner
from scalekd.training.batch import Batch, BatchBuilder

IMAGES = 2
"""Images of a dry run: they show the same errors as a batch, which may be large."""


def dry_run(
    learner: Learner, batches: ImageLoader, to_batch: BatchBuilder = Batch.from_loader
) -> float:
    """Run forward and backward of `learner` on the first images of its first batch.

    Afterwards `learner` has gradients, and its BatchNorm statistics are changed.

    Args:
        learner: on the device that trains.
        batches: loader of the run.
        to_batch: makes a micro-batch of what the loader gives.

    Returns:
        GFLOP per image, forward and backward, with 2 for each multiply-add.
    """
    assert batches.batch_sampler is not None
    keys = next(iter(batches.batch_sampler))[:IMAGES]
    items = batches.collate_fn([batches.dataset[key] for key in keys])
    learner.train()
    with (
        FlopCounterMode(display=False, custom_mapping=FLOP_FORMULAS) as counter,
        torch.enable_grad(),
    ):
        loss = to_batch(items, best_device(), batches.config).loss(learner).loss
        torch.autograd.backward(loss)
    learner.eval()
    return float(counter.get_total_flops()) / len(keys) / 1e9


def parameters_without_gradient(learner: nn.Module) -> list[str]:
    """Names of the trained parameters that have no gradient after a step."""
    return [name for name, p in learner.named_parameters() if p.requires_grad and p.grad is None]


def notes_without_gradient(learner: nn.Module) -> list[Note]:
    """A note on the trained parameters that have no gradient after a step, if there are some."""
    names = parameters_without_gradient(learner)
    text = f"no gradient reaches {len(names)} parameters, for example {''.join(names[:1])}"
    return [Note("info", text)] if names else []
