"""Mixup and CutMix: the images of a batch mixed, and their classes in the same proportion."""

from typing import Any

from timm.loss import BinaryCrossEntropy
from torch import Tensor, nn
from torchvision.transforms import v2

from scalekd.recipe import Data


def build_mixup(data: Data, classes: int | None) -> nn.Module | None:
    """`(images, classes) -> (images, shares of the classes (N, classes))`, or None for neither.

    An image is mixed with the one before it in the batch. With both on, each batch is mixed in
    one of the two ways. All draws are from torch's global generator.
    """
    kinds: list[nn.Module] = []
    if data.mixup:
        kinds.append(v2.MixUp(alpha=data.mixup, num_classes=classes))
    if data.cutmix:
        kinds.append(v2.CutMix(alpha=data.cutmix, num_classes=classes))
    either: nn.Module | None = v2.RandomChoice(kinds) if kinds else None
    return either


class SmoothedBinaryCrossEntropy(BinaryCrossEntropy):  # type: ignore[misc]
    """timm's, whose smoothing is also that of targets that are shares of classes."""

    def forward(self, x: Tensor, target: Tensor) -> Any:
        """The loss of logits (N, classes) and of classes (N,) or shares of them (N, classes)."""
        if target.is_floating_point():
            target = target * (1 - self.smoothing) + self.smoothing / x.shape[-1]
        return super().forward(x, target)
