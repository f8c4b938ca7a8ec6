"""A network that is not timm's and offers its features itself, and a training step on it."""

from typing import Any

import torch
from helpers.small_models import CLASSES, SIZE, images, lively
from helpers.teachers import check_tail
from torch import Tensor, nn

from scalekd import Features, InputConfig, ScaleKD

INPUT = InputConfig(3, SIZE, (0.5, 0.4, 0.3), (0.2, 0.2, 0.25))
TARGETS = torch.tensor([0, 3, 4, 1])
FEATURE_TERMS = {"tpp_original", "tpp_alternative", "final_original", "final_alternative"}


class CustomNetwork(nn.Module):
    """64x64 -> 16x8x8 -> 24x4x4; not one of timm's, so it offers its features itself."""

    input = INPUT

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 16, 8, 8), nn.BatchNorm2d(16), nn.GELU())
        self.last = nn.Sequential(nn.Conv2d(16, 24, 2, 2), nn.BatchNorm2d(24), nn.GELU())
        self.head = nn.Linear(24, classes) if classes else None

    def stages(self, x: Tensor) -> tuple[Tensor, Tensor]:
        penultimate = self.first(x)
        return penultimate, self.last(penultimate)

    def features(self, images: Tensor) -> Features:
        penultimate, final = self.stages(images)
        logits = None if self.head is None else self.head(final.mean((2, 3)))
        return Features(penultimate, final, logits)

    def forward(self, images: Tensor) -> Tensor | None:
        return self.features(images).logits


def custom_network(**arguments: Any) -> nn.Module:
    return lively(CustomNetwork(**arguments))


def check_pair(
    teacher: nn.Module, student: nn.Module, targets: Tensor | None = TARGETS, idle: str = "-"
) -> ScaleKD:
    """Take a real step: all parameters learn except the teacher's and the student's `idle` ones."""
    torch.manual_seed(0)
    distiller = ScaleKD(teacher=teacher, student=student).train()
    step = distiller(images(4), targets)
    assert set(step.terms) >= FEATURE_TERMS
    assert ("task" in step.terms) is (targets is not None)
    step.loss.backward()
    for name, parameter in distiller.named_parameters():
        if idle not in name:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name
    for parameter in distiller.teacher.model.parameters():
        assert not parameter.requires_grad
        assert parameter.grad is None
    check_tail(distiller.teacher)
    return distiller
