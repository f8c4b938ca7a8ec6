"""The images that exported files are compared, calibrated and measured on."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from scalekd.data.loader import ImageLoader
from scalekd.data.source import Source
from scalekd.errors import InputError
from scalekd.networks import InputConfig
from scalekd.networks.input_config import normalize, normalize_bytes
from scalekd.recipe import Data
from scalekd.training.alternatives import without_normalisation

CHOSEN_BY = 0
"""Seed by which images are chosen: each export of the same images chooses the same ones."""


@dataclass(frozen=True, kw_only=True)
class PixelSet:
    """Images with values from 0 to 1, made as the model's validation images are.

    Attributes:
        items: (image,) or (image, class); the image (channels, H, W) may be normalised.
        to_pixels: undoes a normalisation that the source of the images has done.
        description: what they are, as a report calls them.
    """

    items: Dataset[Any]
    to_pixels: Callable[[Tensor], Tensor]
    description: str

    def __len__(self) -> int:
        return len(self.items)  # type: ignore[arg-type]

    def draw(self, count: int) -> "PixelSet":
        """Choose at most `count` of the images at random, by a fixed seed."""
        generator = torch.Generator().manual_seed(CHOSEN_BY)
        chosen = torch.randperm(len(self), generator=generator)[:count].tolist()
        return replace(self, items=Subset(self.items, sorted(chosen)))

    def batches(
        self, size: int, loading: dict[str, Any] | None = None
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Batches of pixels (N, channels, H, W), and of classes (N,) where there are labels.

        Args:
            size: N, except in the last batch.
            loading: arguments of a DataLoader that decide its worker processes.
        """
        for item in ImageLoader(self.items, size, **(loading or {})):
            yield self.to_pixels(item[0]), item[1] if len(item) > 1 else None


def validation_pixels(source: Source, data: Data, images: InputConfig) -> PixelSet:
    """The validation images of `source`, which has some."""
    assert source.validation_set is not None
    return _pixels(source, images, source.validation_set, f"validation images of {data.root}")


def training_pixels(source: Source, data: Data, images: InputConfig) -> PixelSet:
    """The training images of `source`; without labels, random crops of them."""

    def cropped(config: InputConfig) -> Dataset[Any]:
        crops: Any = source.training_set(config, CHOSEN_BY)
        return Subset(crops, range(len(crops)))  # it is indexed by the keys of a sampler

    build = cropped if source.classes is None else source.unaugmented_set or cropped
    return _pixels(source, images, build, f"training images of {data.root}")


def noise_pixels(images: InputConfig, count: int) -> PixelSet:
    """Images whose values are drawn uniformly from 0 to 1."""
    generator = torch.Generator().manual_seed(CHOSEN_BY)
    noise = torch.rand(count, images.channels, *images.size, generator=generator)
    items = TensorDataset(noise)
    return PixelSet(items=items, to_pixels=_unchanged, description="images of noise")


def _pixels(
    source: Source,
    images: InputConfig,
    build: Callable[[InputConfig], Dataset[Any]],
    description: str,
) -> PixelSet:
    own = source.input
    if own is None:
        plain = without_normalisation(images)
        to_pixels = functools.partial(normalize_bytes, config=plain)
        return PixelSet(items=build(plain), to_pixels=to_pixels, description=description)
    if (own.channels, own.size) != (images.channels, images.size):
        raise InputError(
            f"the model takes images of {images.channels}x{images.size[0]}x{images.size[1]}, and "
            f"the {description} are {own.channels}x{own.size[0]}x{own.size[1]}: give images that "
            "the model was trained for"
        )
    return PixelSet(items=build(own), to_pixels=_Denormalized(own), description=description)


def _unchanged(images: Tensor) -> Tensor:
    return images


@dataclass(frozen=True)
class _Denormalized:
    """Undoes a normalisation."""

    images: InputConfig

    def __call__(self, normalized: Tensor) -> Tensor:
        mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (self.images.mean, self.images.std))
        return normalized * std + mean


@dataclass(frozen=True)
class Normalizing:
    """A network for normalised images, called with pixels (N, channels, H, W) from 0 to 1."""

    network: Callable[[Tensor], Tensor]
    images: InputConfig

    def __call__(self, pixels: Tensor) -> Tensor:
        """Compute the network's outputs for pixels with values from 0 to 1."""
        return self.network(normalize(pixels, self.images))
