"""Random crops of images with label maps, and validation images. Random numbers are torch's."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import ColorJitter

from scalekd.data.corrupt import LabelMap
from scalekd.data.source import IGNORED
from scalekd.networks import InputConfig
from scalekd.networks.input_config import Size
from scalekd.transfer.pixels import to_bytes
from scalekd.transfer.segmentation.recipe import SegmentData

TRIES = 10
"""How often a crop is drawn until no class takes more than the largest share."""


@dataclass(frozen=True)
class CropTransform:
    """Makes a training crop: random scale, position, mirroring and colours.

    Attributes:
        data: how crops are made.
        fill: byte of each channel where the image ends: the mean colour, which is 0 normalised.
    """

    data: SegmentData
    fill: tuple[int, ...]

    @classmethod
    def build(cls, data: SegmentData, config: InputConfig) -> "CropTransform":
        """The transform for images that are normalised by `config`."""
        return cls(data, tuple(round(255 * value) for value in config.mean))

    def __call__(self, image: Image.Image, labels: LabelMap) -> tuple[Tensor, Tensor]:
        """Make a crop.

        Args:
            image: RGB.
            labels: of the same size.

        Returns:
            The image in bytes (channels, height, width) and its labels in 16 bits (height, width),
            both of the crops' size.
        """
        data = self.data
        low, high = data.scale
        factor = low + (high - low) * _uniform()
        image, labels = resize_pair(image, labels, _scaled_size(image, data.short_side, factor))
        top, left = self._choose_corner(labels)
        height, width = data.crop
        labels = labels[top : top + height, left : left + width]
        image = image.crop((left, top, left + labels.shape[1], top + labels.shape[0]))
        if data.color_jitter:
            image = ColorJitter(*[data.color_jitter] * 3)(image)
        pixels, classes = to_bytes(image, len(self.fill)), torch.from_numpy(labels.copy())
        if _uniform() < data.flip:
            pixels, classes = pixels.flip(-1), classes.flip(-1)
        return self._pad(pixels, classes)

    def _choose_corner(self, labels: LabelMap) -> tuple[int, int]:
        """Top and left of a crop, of the last one drawn where a class takes too much of each."""
        height, width = self.data.crop
        top = left = 0
        for _ in range(TRIES):
            top = int(_uniform() * max(1, labels.shape[0] - height + 1))
            left = int(_uniform() * max(1, labels.shape[1] - width + 1))
            if self.data.max_class_share == 1:
                break
            crop = labels[top : top + height, left : left + width]
            counts = np.bincount(crop[crop != IGNORED].ravel(), minlength=1)
            if np.count_nonzero(counts) > 1 and (
                counts.max() <= self.data.max_class_share * counts.sum()
            ):
                break
        return top, left

    def _pad(self, pixels: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        height, width = classes.shape
        if (height, width) == self.data.crop:
            return pixels.contiguous(), classes.contiguous()
        fill = torch.tensor(self.fill, dtype=torch.uint8).view(-1, 1, 1)
        padded = fill.repeat(1, *self.data.crop)
        padded[:, :height, :width] = pixels
        labels = torch.full(self.data.crop, IGNORED, dtype=torch.int16)
        labels[:height, :width] = classes
        return padded, labels


def validation_image(image: Image.Image, short_side: int | None, channels: int) -> Tensor:
    """A validation image in bytes (channels, H, W), whose short side becomes `short_side`."""
    size = _scaled_size(image, short_side, 1.0)
    if size != (image.height, image.width):
        image = image.resize(size[::-1], Image.Resampling.BILINEAR)
    return to_bytes(image, channels)


def resize_pair(image: Image.Image, labels: LabelMap, size: Size) -> tuple[Image.Image, LabelMap]:
    """Resize an image by bilinear interpolation, and its labels by taking the nearest."""
    if size == labels.shape:
        return image, labels
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.int64)
        for new, old in zip(size, labels.shape, strict=True)
    )
    return image.resize(size[::-1], Image.Resampling.BILINEAR), labels[rows][:, columns]


def _scaled_size(image: Image.Image, short_side: int | None, factor: float) -> Size:
    """(height, width) of an image whose short side becomes `short_side`, times `factor`."""
    if short_side is not None:
        factor *= short_side / min(image.size)
    height, width = (max(1, round(side * factor)) for side in (image.height, image.width))
    return height, width


def _uniform() -> float:
    return float(torch.rand(()))
