"""A source: where a run's training and validation images come from."""

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from PIL import Image
from timm.data import create_transform
from torch import Generator, Tensor
from torch.utils.data import Dataset

from scalekd.data.corrupt import CheckedSamples, Samples
from scalekd.data.sampler import EpochSampler
from scalekd.data.seeding import seed_all
from scalekd.errors import InputError
from scalekd.networks import InputConfig
from scalekd.notes import Note
from scalekd.recipe import Data

MAX_DECODED_BEFOREHAND = 5_000
"""Up to so many images are decoded once before training, to name corrupt ones early."""

MAX_WORKERS = 16
"""Each worker process holds two batches: more of them take more memory than they save time."""

IGNORED = -1
"""The class of a validation image that accuracy is not measured on."""

Transform = Callable[[Image.Image], Tensor]


@dataclass(frozen=True)
class Split:
    """What a split of a source holds.

    Args:
        name: of the split, as the source names it.
        images: how many images it has.
        classes: names of the classes in the order of their numbers; empty without labels.
    """

    name: str
    images: int
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """Where images come from.

    Args:
        classes: number of classes; None where the images have no labels.
        workers: how many worker processes are worth their cost.
        input: channels, size and normalisation of the images, where the source fixes them; None
            where the student decides.
        training_set: builds the training set for the student's input and a run's seed. It is
            indexed by the sample keys of `ResumableBatchSampler`; its items are (image, class), or
            (image,) without labels.
        validation_set: builds the validation set for the student's input; None without labels. Its
            items are (image, class), and the class of an image that cannot be read is `IGNORED`.
        notes: one line for each decision that was taken here and not by the caller.
        epoch_sampler: draws the order of an epoch; None for a uniformly random one.
        corrupt_count: counts the images that were found to be corrupt since the source was built.
        identity: hash of the training images' names, classes and order.
        images_per_view: how many images one augmented view of a cache has; None for as many as the
            training set has.
        splits: what the training and the validation split hold, in this order.
        unaugmented_set: builds the set of all training images, made as validation images are, for
            an input; None without labels.
        targets: classes of the images of `unaugmented_set` (N,) where they are known beforehand.
    """

    classes: int | None
    workers: int
    input: InputConfig | None
    training_set: Callable[[InputConfig, int], Dataset[Any]]
    validation_set: Callable[[InputConfig], Dataset[Any]] | None
    notes: list[Note] = field(default_factory=list)
    epoch_sampler: EpochSampler | None = None
    corrupt_count: Callable[[], int] = lambda: 0
    identity: str = ""
    images_per_view: int | None = None
    splits: tuple[Split, ...] = ()
    unaugmented_set: Callable[[InputConfig], Dataset[Any]] | None = None
    targets: Tensor | None = None

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes by label; empty without labels."""
        return self.splits[0].classes if self.splits else ()

    @classmethod
    def without_images(
        cls, classes: int | None = None, input: InputConfig | None = None
    ) -> "Source":
        """A source that only says what its images would be; no image can be had from it."""

        def refuse(*_: Any) -> NoReturn:
            raise AssertionError("this source has no images")

        return cls(classes, 0, input, refuse, None)


def build_source(
    data: Data,
    *,
    training: Samples,
    identifiers: Iterable[str],
    validation: Samples | None = None,
    targets: Tensor | None = None,
    classes: Sequence[str] = (),
    split_names: tuple[str, ...] = ("train", "val"),
    notes: Iterable[str] = (),
    epoch_sampler: EpochSampler | None = None,
) -> Source:
    """Build the source of these samples, augmented and normalised.

    Args:
        data: which of the samples are used, and how they are augmented.
        training: samples to train on.
        identifiers: strings that differ for other training samples, wherever they are stored.
        validation: samples to validate on; None without labels.
        targets: classes of the training samples (N,); None without labels.
        classes: names of the classes in the order of their numbers; empty without labels.
        split_names: names of the training and the validation split.
        notes: decisions that were taken and not asked for, one line each.
        epoch_sampler: draws the order of all training samples.

    Raises:
        InputError: there are fewer training samples than `data` asks for; one is corrupt, where
            there are at most `MAX_DECODED_BEFOREHAND` and `data` does not skip it.
    """
    if data.train_images and data.train_images > len(training):
        raise InputError(
            f"data.train_images is {data.train_images} and there are {len(training)} images to "
            f"train on in {data.root!r}"
        )
    classes_of_samples = torch.zeros(len(training)) if targets is None else targets
    checked = [
        CheckedSamples(s, data.corrupt_images) for s in (training, validation) if s is not None
    ]
    if sum(map(len, checked)) <= MAX_DECODED_BEFOREHAND:
        for samples in checked:
            for index in range(len(samples)):
                samples.read(index)

    def training_set(config: InputConfig, seed: int) -> Dataset[Any]:
        subset: range | list[int] = range(len(training))
        if data.train_images is not None:
            subset = balanced_subset(classes_of_samples.tolist(), data.train_images, seed)
        return TrainingSet(checked[0], subset, build_training_transform(data, config), seed)

    def validation_set(config: InputConfig) -> Dataset[Any]:
        return ValidationSet(checked[1], config)

    return Source(
        classes=len(classes) or None,
        workers=min(MAX_WORKERS, usable_cores()),
        input=None,
        training_set=training_set,
        validation_set=None if validation is None else validation_set,
        notes=[Note("info", note) for note in notes],
        epoch_sampler=epoch_sampler if data.train_images is None else None,
        corrupt_count=lambda: sum(samples.corrupt_count() for samples in checked),
        identity=_identity(classes_of_samples, identifiers),
        splits=tuple(
            Split(name, len(samples), tuple(classes))
            for name, samples in zip(split_names, checked, strict=False)
        ),
        unaugmented_set=None if targets is None else lambda c: ValidationSet(checked[0], c),
        targets=targets,
    )


class TrainingSet(Dataset[Any]):
    """A subset of training samples, augmented; indexed by the keys of `ResumableBatchSampler`.

    A transform's random numbers depend on seed and sample key alone: all methods of a seed see the
    same crops, in whichever process they are made.

    Args:
        samples: all training samples.
        subset: indices of those that are used.
        transform: augments and normalises an image.
        seed: the run's seed.
    """

    def __init__(
        self, samples: CheckedSamples, subset: range | list[int], transform: Transform, seed: int
    ) -> None:
        self.samples, self.subset, self.transform, self.seed = samples, subset, transform, seed

    def __len__(self) -> int:
        return len(self.subset)

    def __getitem__(self, key: int) -> tuple[Any, ...]:
        sample = self.samples.read_next(self.subset, key % len(self))
        seed_all(self.seed, key)
        return (self.transform(sample[0]), *sample[1:])


class ValidationSet(Dataset[Any]):
    """All samples of a split, resized, cropped and normalised by timm's validation transform.

    A corrupt image is replaced by zeros and its class by `IGNORED`.
    """

    def __init__(self, samples: CheckedSamples, config: InputConfig) -> None:
        self.samples, self.config = samples, config
        self.transform: Transform = create_transform(
            config.size,
            mean=config.mean,
            std=config.std,
            crop_pct=config.crop,
            crop_mode=config.crop_mode,
            interpolation=config.interpolation,
        )

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        sample = self.samples.read(index)
        if sample is None:
            return torch.zeros(self.config.channels, *self.config.size), IGNORED
        return (self.transform(sample[0]), *sample[1:])


def check_same_classes(
    root: str, splits: str, training: Sequence[str | int], validation: Sequence[str | int]
) -> None:
    """Raise InputError unless two splits have the same classes in the same order.

    Args:
        root: how the error names the source.
        splits: how the error names the two splits.
        training, validation: their classes.
    """
    if list(training) != list(validation):
        odd = [str(name) for name in sorted(set(training) ^ set(validation))] or ["another order"]
        raise InputError(
            f"{root!r}: {splits} have different classes, only one has: {', '.join(odd[:5])}"
        )


def _identity(targets: Tensor, identifiers: Iterable[str]) -> str:
    digest = hashlib.blake2b(targets.long().numpy().tobytes(), digest_size=8)
    for identifier in identifiers:
        digest.update(identifier.encode(errors="surrogateescape") + b"\0")
    return digest.hexdigest()


def usable_cores() -> int:
    """Number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def build_training_transform(data: Data, config: InputConfig) -> Transform:
    """timm's training transform: random resized crop, flip, `data`'s augmentation, normalisation.

    Raises:
        InputError: timm cannot read the augmentation policy.
    """
    shape = config.size[1] / config.size[0]
    try:
        transform: Transform = create_transform(
            config.size,
            is_training=True,
            # Crops have about the shape of what they are resized to, as they have in validation.
            ratio=(3 / 4 * shape, 4 / 3 * shape),
            mean=config.mean,
            std=config.std,
            auto_augment=data.auto_augment,
            re_prob=data.erasing,
            color_jitter=data.color_jitter or None,
        )
    except Exception as error:  # timm raises many kinds for a policy that it cannot read
        raise InputError(
            f"data.auto_augment is {data.auto_augment!r}, no policy that timm has; two are "
            "rand-m9-n2-mstd0.5 and 3a"
        ) from error
    return transform


def balanced_subset(targets: list[int], count: int, seed: int) -> list[int]:
    """Draw a class-balanced random subset, another one for each seed.

    Args:
        targets: class of each sample.
        count: size of the subset.
        seed: decides which samples are drawn.

    Returns:
        Indices of `count` samples, whose numbers per class differ by at most one.
    """
    shuffled = torch.randperm(len(targets), generator=Generator().manual_seed(seed)).tolist()
    drawn_of_class: dict[int, int] = {}
    ranked = []
    for index in shuffled:
        rank = drawn_of_class[targets[index]] = drawn_of_class.get(targets[index], -1) + 1
        ranked.append((rank, targets[index], index))
    return [index for _, _, index in sorted(ranked)[:count]]
