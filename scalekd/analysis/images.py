"""The images that are analysed: some of those to validate on, the same for every model."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from scalekd.data.open import find_layout, open_source, open_validation
from scalekd.data.source import IGNORED, Source
from scalekd.device import best_device
from scalekd.errors import InputError
from scalekd.evaluation.batches import load_batches, loading_threads
from scalekd.networks import InputConfig
from scalekd.networks.input_config import normalize_bytes
from scalekd.recipe import Data


@dataclass(frozen=True)
class ImageSample:
    """Some images of a source, as often as they are asked for.

    Attributes:
        source: where they come from.
        build_set: builds the set that they are of, for a model's input.
        count: how many there are at most; they are spread evenly over the set.
        batch_size: images in each batch but the last.
        workers: number of threads that load images; None for one for each core.
    """

    source: Source
    build_set: Callable[[InputConfig], Dataset[Any]]
    count: int
    batch_size: int
    workers: int | None = None

    def shown(self, wanted: InputConfig) -> InputConfig:
        """What the images are like where a model takes `wanted`."""
        return self.source.input or wanted

    def size(self, wanted: InputConfig) -> int:
        """How many images there are."""
        images: Any = self.build_set(wanted)
        return min(self.count, len(images))

    def batches(
        self, wanted: InputConfig, report: Callable[[int], None] = lambda images: None
    ) -> Iterator[Tensor]:
        """Normalised batches (N, channels, H, W) on `best_device()`, without images that cannot be
        read.

        Args:
            wanted: what the model takes; see `shown`.
            report: called with the number of images of each batch, those that cannot be read too.
        """
        images: Any = self.build_set(wanted)
        numbers = np.linspace(0, len(images) - 1, self.size(wanted)).round().astype(int)

        def load(place: int) -> Any:
            return images[int(numbers[place])]

        threads = loading_threads(self.workers)
        for items in load_batches(load, len(numbers), self.batch_size, threads):
            readable = [item[0] for item in items if len(item) < 2 or item[1] != IGNORED]
            if readable:
                yield normalize_bytes(torch.stack(readable).to(best_device()), wanted)
            report(len(items))


def open_sample(data: Data, count: int, batch_size: int) -> ImageSample:
    """Open the images to validate on, or where there are no labels all images.

    Raises:
        InputError: there are no images, or they cannot be used.
    """
    try:
        source = open_validation(data)
    except InputError:
        unlabelled = _open_without_labels(data)
        if unlabelled is None:  # what is wrong is not that labels are missing
            raise
        source = unlabelled
    build = source.validation_set or source.unaugmented_set
    if build is None:
        raise InputError(f"the images of {data.root!r} can only be had augmented: give others")
    return ImageSample(source, build, count, batch_size, data.workers)


def _open_without_labels(data: Data) -> Source | None:
    """The images as a source without labels; None where they are no such source.

    Raises:
        InputError: an image of a folder without labels cannot be used.
    """
    is_folder = False
    try:
        is_folder = find_layout(data) == "flat_folder"
        source = open_source(data)
    except InputError:
        if is_folder:
            raise
        return None
    return source if source.classes is None else None
