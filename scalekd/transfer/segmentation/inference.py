"""Segmenting one image: whole, or by sliding windows whose logits are averaged."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scalekd.networks.input_config import Size
from scalekd.transfer.rescale import resize_maps
from scalekd.transfer.segmentation.recipe import SegmentRecipe


@dataclass(frozen=True)
class Inference:
    """How an image is segmented.

    Attributes:
        window: (height, width) of sliding windows in pixels; None for the whole image at once.
        stride: (vertical, horizontal) pixels between two windows.
    """

    window: Size | None = None
    stride: Size = (1, 1)

    @classmethod
    def of(cls, recipe: SegmentRecipe) -> "Inference":
        """That of a recipe: windows are of the crops' size, and a third of one overlaps."""
        if recipe.inference == "whole":
            return cls()
        height, width = (recipe.stride or max(1, round(2 / 3 * side)) for side in recipe.data.crop)
        return cls(window=recipe.data.crop, stride=(height, width))

    def logits(self, segmenter: nn.Module, images: Tensor, size: Size) -> Tensor:
        """Logits (N, classes, *size) of normalised images (N, channels, H, W)."""
        if self.window is None:
            return resize_maps(segmenter(images), size)
        return resize_maps(self._slide(segmenter, images, self.window), size)

    def _slide(self, segmenter: nn.Module, images: Tensor, window: Size) -> Tensor:
        height, width = images.shape[2:]
        missing = [max(0, side - of) for side, of in zip(window, (height, width), strict=True)]
        images = nn.functional.pad(images, (0, missing[1], 0, missing[0]))
        rows, columns = (
            window_starts(side, of, step)
            for side, of, step in zip(images.shape[2:], window, self.stride, strict=True)
        )
        total: Tensor | None = None
        counts = torch.zeros(1, 1, *images.shape[2:], device=images.device)
        for top in rows:
            for left in columns:
                place = (..., slice(top, top + window[0]), slice(left, left + window[1]))
                logits = segmenter(images[place])
                if total is None:
                    total = logits.new_zeros(*logits.shape[:2], *images.shape[2:])
                total[place] += logits
                counts[place] += 1
        assert total is not None
        return (total / counts)[..., :height, :width]


def window_starts(side: int, window: int, stride: int) -> list[int]:
    """Where windows start along a side, so that they cover it; the last one ends with the side.

    Example:
        >>> window_starts(10, 4, 3), window_starts(4, 4, 3), window_starts(11, 4, 3)
        ([0, 3, 6], [0], [0, 3, 6, 7])
    """
    last = side - window
    return [min(number * stride, last) for number in range(math.ceil(last / stride) + 1)]
