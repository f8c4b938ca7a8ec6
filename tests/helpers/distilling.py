"""A small distiller of 64x64 images, and the digits' student."""

from dataclasses import asdict
from typing import Any

import torch
from helpers.small_models import SIZE, images, make, resnet, swin
from torch import nn

from scalekd import LossWeights, ScaleKD, StepOutput

TARGETS = torch.tensor([0, 3, 4, 1])
TERMS = set(asdict(LossWeights()))
ONE_VIEW = LossWeights(tpp_alternative=0.0, final_alternative=0.0)


def distilling(student: nn.Module | None = None, **arguments: Any) -> ScaleKD:
    """A distiller of 64x64 images in 5 classes, in training mode."""
    torch.manual_seed(0)
    defaults = {"teacher": swin(), "size": SIZE, **arguments}
    return ScaleKD(student=resnet() if student is None else student, **defaults).train()


def step_of(distiller: ScaleKD) -> StepOutput:
    step: StepOutput = distiller(images(4), TARGETS)
    return step


def digits_student() -> nn.Module:
    """1x32x32 -> 32x4x4 -> 10 logits."""
    return make(
        "resnetv2_18",
        in_chans=1,
        num_classes=10,
        layers=(1, 1),
        channels=(16, 32),
        stem_chs=8,
        stem_type="deep",
    )
