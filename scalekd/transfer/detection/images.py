"""Images with boxes as a `Source`, which the training room loads, orders and resumes."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from scalekd.data.corrupt import CheckedSamples
from scalekd.data.decoding import decode_image, read_image_file
from scalekd.data.seeding import seed_all_on_cpu
from scalekd.data.source import (
    MAX_DECODED_BEFOREHAND,
    MAX_WORKERS,
    Source,
    Split,
    check_epoch_images,
)
from scalekd.device import usable_cores
from scalekd.errors import InputError
from scalekd.networks import InputConfig
from scalekd.notes import Note
from scalekd.transfer.detection.coco import CocoSplit, Instance, find_splits, read_coco
from scalekd.transfer.detection.masks import RunLengths, decode_mask, to_run_lengths
from scalekd.transfer.detection.recipe import DetectRecipe
from scalekd.transfer.pixels import to_bytes

THINNEST = 0.01
"""Pixels."""

Target = dict[str, Tensor]
"""The objects of an image as torchvision's detectors take them: `boxes` (N, 4) as left, top, right,
bottom; `labels` (N,) from 1; and `masks` (N, H, W) of 0 and 1, if they are trained."""


@dataclass(frozen=True)
class Annotated:
    """An image with its objects, and the mask of each where masks are wanted."""

    image: Image.Image
    instances: Sequence[Instance]
    masks: Sequence[RunLengths | None] | None


class AnnotatedImages:
    """Images with their objects by number, for several threads at once.

    Args:
        split: the images.
        indices: of those that are used.
        has_masks: whether masks are wanted.
    """

    def __init__(self, split: CocoSplit, indices: Sequence[int], has_masks: bool) -> None:
        self.split, self.indices, self.has_masks = split, indices, has_masks

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        number = self.indices[index]
        described, path = self.split.images[number], self.split.images[number].path
        image = decode_image(self.content(index), repr(path))
        if (image.height, image.width) != (described.height, described.width):
            raise InputError(
                f"the image {path!r} is {image.height}x{image.width} pixels, and its annotations "
                f"are of {described.height}x{described.width}: they must be of one size"
            )
        instances = self.split.instances[number]
        masks = None
        if self.has_masks:
            try:
                masks = [
                    i.segmentation and to_run_lengths(i.segmentation, image.height, image.width)
                    for i in instances
                ]
            except InputError as error:
                raise InputError(f"an annotation of {path!r} cannot be used: {error}") from error
        return Annotated(image, instances, masks)

    def content(self, index: int) -> bytes:
        """The encoded image of a sample."""
        return read_image_file(self.split.images[self.indices[index]].path)


class TrainingImages(Dataset[Any]):
    """Images in bytes (channels, H, W) with a `Target`; indexed by a sampler's keys.

    Crowds and objects without area are no targets. What is random depends on seed and sample key
    alone; see `scalekd.data.seeding`.

    Args:
        samples: the training images.
        channels: of the images: 3, or 1 for grey ones.
        flip: probability of mirroring an image.
        seed: the run's seed.
    """

    def __init__(self, samples: CheckedSamples, *, channels: int, flip: float, seed: int) -> None:
        self.samples, self.channels, self.flip, self.seed = samples, channels, flip, seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: int) -> tuple[Tensor, Target]:
        sample: Any = self.samples.read_next(range(len(self)), key % len(self))
        pixels, target = to_bytes(sample.image, self.channels), build_target(sample)
        seed_all_on_cpu(self.seed, key)
        if float(torch.rand(())) >= self.flip:
            return pixels.contiguous(), target
        left, top, right, bottom = target["boxes"].unbind(dim=1)
        width = pixels.shape[-1]
        target["boxes"] = torch.stack([width - right, top, width - left, bottom], dim=1)
        if "masks" in target:
            target["masks"] = target["masks"].flip(-1).contiguous()
        return pixels.flip(-1).contiguous(), target


def build_target(sample: Annotated) -> Target:
    """The objects that are trained on; boxes end where the image ends.

    One that is thinner there than `THINNEST` counts as one without area: in float32 it may have
    none, for which torchvision has no loss.
    """
    height, width = sample.image.height, sample.image.width
    inside = [
        (max(0.0, left), max(0.0, top), min(float(width), right), min(float(height), bottom))
        for left, top, right, bottom in (instance.box for instance in sample.instances)
    ]
    used = [
        n
        for n, (left, top, right, bottom) in enumerate(inside)
        if min(right - left, bottom - top) > THINNEST and not sample.instances[n].crowd
    ]
    target = {
        "boxes": torch.tensor([inside[n] for n in used], dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor([sample.instances[n].label + 1 for n in used], dtype=torch.int64),
    }
    if sample.masks is not None:
        lengths = [sample.masks[n] for n in used]
        masks = [torch.from_numpy(decode_mask(mask)) for mask in lengths if mask is not None]
        target["masks"] = torch.stack(masks) if masks else torch.zeros(0, height, width).byte()
    return target


class ValidationImages(Dataset[Any]):
    """Images in bytes (channels, H, W) with their numbers; None for one that cannot be read.

    Args:
        samples: the validation images.
        channels: of the images: 3, or 1 for grey ones.
    """

    def __init__(self, samples: CheckedSamples, channels: int) -> None:
        self.samples, self.channels = samples, channels

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[int, Tensor | None]:
        sample: Any = self.samples.read(index)
        if sample is None:
            return index, None
        return index, to_bytes(sample.image, self.channels).contiguous()


@dataclass(frozen=True)
class DetectionImages:
    """The images of a recipe.

    Attributes:
        source: gives them to training and validation.
        validation: the validation split, with its objects.
    """

    source: Source
    validation: CocoSplit


def open_annotated_images(recipe: DetectRecipe) -> DetectionImages:
    """Open images with boxes; up to `MAX_DECODED_BEFOREHAND` of them are all read and checked.

    Raises:
        InputError: the folder is no such folder (see `find_splits`), its annotations do not fit its
            images or the recipe, or an image cannot be used.
    """
    data = recipe.data
    files = find_splits(Path(data.root))
    splits = [read_coco(files[0], "training"), read_coco(files[1], "validation")]
    training, validation = splits
    _check_splits(recipe, training, validation)
    used = training.training_images(empty_images=data.empty_images)
    check_epoch_images(data.epoch_images, len(used), data.root)
    checked = [
        CheckedSamples(AnnotatedImages(split, indices, recipe.has_masks), data.corrupt_images)
        for split, indices in ((training, used), (validation, range(len(validation))))
    ]
    if sum(map(len, checked)) <= MAX_DECODED_BEFOREHAND:
        for samples in checked:
            samples.read_all()

    def training_set(config: InputConfig, seed: int) -> Dataset[Any]:
        return TrainingImages(checked[0], channels=config.channels, flip=data.flip, seed=seed)

    names = training.class_names
    source = Source(
        classes=len(names),
        workers=min(MAX_WORKERS, usable_cores()),
        input=None,
        training_set=training_set,
        validation_set=lambda config: ValidationImages(checked[1], config.channels),
        notes=[Note("info", note) for split in splits for note in _notes_on(split)],
        corrupt_flags=lambda: torch.cat([samples.corrupt for samples in checked]),
        identity=_identity(training),
        validation_identity=_identity(validation),
        splits=(Split("training", len(used), names), Split("validation", len(validation), names)),
        collate=list,
    )
    return DetectionImages(source, validation)


def _check_splits(recipe: DetectRecipe, training: CocoSplit, validation: CocoSplit) -> None:
    if training.class_names != validation.class_names:
        odd = sorted(set(training.class_names) ^ set(validation.class_names))
        raise InputError(
            f"{recipe.data.root!r}: training and validation have different categories"
            + (f", only one has: {', '.join(odd[:5])}" if odd else ", in the order of their ids")
        )
    if training.objects == training.crowds + training.empty_boxes:
        raise InputError(
            f"{recipe.data.root!r}: no training image has an object to train on, of "
            f"{len(training)} images and {training.objects} annotations"
        )
    for split in (training, validation):
        if recipe.has_masks and split.without_mask:
            raise InputError(
                f"head is mask_rcnn, and {split.without_mask} of the {split.objects} objects of "
                f"{split.name} have no segmentation: give --head faster_rcnn, which needs none"
            )


def _notes_on(split: CocoSplit) -> list[str]:
    counts = {
        "crowds, which are neither trained on nor counted as missed": split.crowds,
        "objects whose boxes have no area, which are not trained on": split.empty_boxes,
        "images without any object": split.images_without_objects,
    }
    notes = [f"{split.name} has {count} {what}" for what, count in counts.items() if count]
    notes += [
        f"the category {name!r} of {split.name} is skipped: it has no annotation, and only groups "
        "others"
        for name in split.skipped_categories
    ]
    return notes


def _identity(split: CocoSplit) -> str:
    """A hash of the images' names and the sizes of their files, and of all annotations, wherever
    the folder lies."""
    digest = hashlib.sha256(split.instances.content.numpy().tobytes())
    for image in split.images:
        size = os.path.getsize(image.path)
        digest.update(repr((os.path.basename(image.path), size)).encode(errors="surrogateescape"))
    return digest.hexdigest()
