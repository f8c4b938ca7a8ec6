"""Mixup and CutMix: images of a batch are mixed, and their classes in the same proportion."""

from typing import Any

from timm.loss import BinaryCrossEntropy
from torch import Tensor, nn
from torchvision.transforms import v2

from scalekd.recipe import Data


def build_mixup(data: Data, classes: int | None) -> nn.Module | None:
    """Build the mixing of a batch; None where `data` turns both Mixup and CutMix off.

    Each image is mixed with the one before it in the batch. With both on, each batch is mixed by
    one of the two, chosen at random. All random numbers are from torch's global generator.

    Args:
        data: `mixup` and `cutmix`, the parameters alpha of their Beta(alpha, alpha).
        classes: number of classes.

    Returns:
        A module: images (N, C, H, W), classes (N,) -> mixed images (N, C, H, W), soft targets
        (N, classes).
    """
    transforms: list[nn.Module] = []
    if data.mixup:
        transforms.append(v2.MixUp(alpha=data.mixup, num_classes=classes))
    if data.cutmix:
        transforms.append(v2.CutMix(alpha=data.cutmix, num_classes=classes))
    mixup: nn.Module | None = v2.RandomChoice(transforms) if transforms else None
    return mixup


class SmoothedBinaryCrossEntropy(BinaryCrossEntropy):  # type: ignore[misc]
    """timm's binary cross-entropy, which here also smooths soft targets, such as Mixup's."""

    def forward(self, x: Tensor, target: Tensor) -> Any:
        """The loss of logits (N, classes), for classes (N,) or soft targets (N, classes)."""
        if target.is_floating_point():
            target = target * (1 - self.smoothing) + self.smoothing / x.shape[-1]
        return super().forward(x, target)
