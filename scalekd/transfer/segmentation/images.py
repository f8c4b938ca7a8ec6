"""Images with label maps as a `Source`, which the training room loads, orders and resumes."""

import hashlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from scalekd.data.corrupt import CheckedSamples, Sample
from scalekd.data.decoding import decode_image, read_image_file
from scalekd.data.seeding import seed_all_on_cpu
from scalekd.data.source import (
    IGNORED,
    MAX_DECODED_BEFOREHAND,
    MAX_WORKERS,
    Source,
    Split,
    check_epoch_images,
)
from scalekd.device import usable_cores
from scalekd.errors import InputError
from scalekd.networks import InputConfig
from scalekd.networks.weight_files import shortened_list
from scalekd.notes import Note
from scalekd.transfer.segmentation.crops import CropTransform, validation_image
from scalekd.transfer.segmentation.folders import LabelledFolder, Pair, find_pairs
from scalekd.transfer.segmentation.label_maps import LabelCoding, read_label_map
from scalekd.transfer.segmentation.recipe import SegmentData


class LabelledImages:
    """Images with their label maps by number, for several threads at once.

    Args:
        pairs: their paths.
        coding: what the values of the label maps mean.
    """

    def __init__(self, pairs: Sequence[Pair], coding: LabelCoding) -> None:
        self.pairs, self.coding = pairs, coding

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        pair = self.pairs[index]
        image = decode_image(self.content(index), repr(pair.image))
        labels = read_label_map(pair.labels, self.coding)
        if labels.shape != (image.height, image.width):
            raise InputError(
                f"the image {pair.image!r} is {image.height}x{image.width} pixels and its "
                f"annotation {labels.shape[0]}x{labels.shape[1]}: they must be of one size"
            )
        return image, labels

    def content(self, index: int) -> bytes:
        """The encoded image of a sample."""
        return read_image_file(self.pairs[index].image)


class TrainingCrops(Dataset[Any]):
    """Random crops; indexed by the keys of `ResumableBatchSampler`.

    A crop's random numbers depend on seed and sample key alone; see `scalekd.data.seeding`.

    Args:
        samples: the training images.
        transform: makes a crop of an image.
        seed: the run's seed.
    """

    def __init__(self, samples: CheckedSamples, transform: CropTransform, seed: int) -> None:
        self.samples, self.transform, self.seed = samples, transform, seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: int) -> tuple[Any, ...]:
        sample: Any = self.samples.read_next(range(len(self)), key % len(self))
        seed_all_on_cpu(self.seed, key)
        return self.transform(*sample)


class ValidationImages(Dataset[Any]):
    """Complete images with the labels of their own size; an image that cannot be read is ignored.

    Args:
        samples: the validation images.
        short_side: pixels that their short side is resized to; None leaves them.
        channels: of the images: 3, or 1 for grey ones.
    """

    def __init__(self, samples: CheckedSamples, short_side: int | None, channels: int) -> None:
        self.samples, self.short_side, self.channels = samples, short_side, channels

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        sample: Any = self.samples.read(index)
        if sample is None:
            side = self.short_side or 64
            ignored = torch.full((side, side), IGNORED, dtype=torch.int16)
            return torch.zeros(self.channels, side, side, dtype=torch.uint8), ignored
        image, labels = sample
        pixels = validation_image(image, self.short_side, self.channels)
        return pixels, torch.from_numpy(labels)


def open_labelled_images(data: SegmentData) -> Source:
    """Open images with label maps; up to `MAX_DECODED_BEFOREHAND` of them are all read and checked.

    Raises:
        InputError: the folder is no such folder (see `find_pairs`), or an image or its label map
            cannot be used; an epoch is to have more images than there are; or only one class has
            pixels, where the images are read beforehand.
    """
    found = find_pairs(data)
    check_epoch_images(data.epoch_images, len(found.training), data.root)
    coding = LabelCoding(
        classes=len(found.class_names),
        reduce_zero_label=data.reduce_zero_label,
        ignore_label=data.ignore_label,
    )
    training, validation = (
        CheckedSamples(LabelledImages(pairs, coding), data.corrupt_images)
        for pairs in (found.training, found.validation)
    )
    notes = list[Note]()
    if len(training) + len(validation) <= MAX_DECODED_BEFOREHAND:
        seen = set[int]()

        def see(sample: Any) -> None:
            seen.update(np.unique(sample[1]).tolist())

        training.read_all(see)
        validation.read_all()
        notes = _check_classes(seen - {IGNORED}, found.class_names, data)

    def training_set(config: InputConfig, seed: int) -> Dataset[Any]:
        return TrainingCrops(training, CropTransform.build(data, config), seed)

    return Source(
        classes=len(found.class_names),
        workers=min(MAX_WORKERS, usable_cores()),
        input=None,
        training_set=training_set,
        validation_set=lambda config: ValidationImages(
            validation, data.short_side, config.channels
        ),
        corrupt_flags=lambda: torch.cat([training.corrupt, validation.corrupt]),
        notes=notes,
        identity=_identity(found.training),
        validation_identity=_identity(found.validation),
        splits=_describe(found),
    )


def _check_classes(seen: set[int], names: Sequence[str], data: SegmentData) -> list[Note]:
    """A note on classes of which no training image has a pixel.

    Raises:
        InputError: there is only one class that has, or none.
    """
    if len(seen) < min(2, len(names)):
        found = ", ".join(names[number] for number in sorted(seen)) or "none"
        raise InputError(
            f"of the {len(names)} classes the training images of {data.root!r} have pixels of "
            f"{found} alone, where the value {data.ignore_label} is ignored: give the labels' "
            "values from 0 on, or other ones of --data.ignore_label and --data.reduce_zero_label"
        )
    missing = [name for number, name in enumerate(names) if number not in seen]
    if not missing:
        return []
    return [Note("info", f"no training image has a pixel of {shortened_list(tuple(missing))}")]


def _describe(found: LabelledFolder) -> tuple[Split, Split]:
    names = found.class_names
    return (
        Split("training", len(found.training), names),
        Split("validation", len(found.validation), names),
    )


def _identity(pairs: Sequence[Pair]) -> str:
    """A hash of the images' names and the sizes of their files, wherever the folder lies."""
    digest = hashlib.sha256()
    for pair in pairs:
        sizes = [os.path.getsize(path) for path in (pair.image, pair.labels)]
        digest.update(repr((os.path.basename(pair.image), sizes)).encode(errors="surrogateescape"))
    return digest.hexdigest()
