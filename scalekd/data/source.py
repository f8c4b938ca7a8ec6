"""What a source of images is, and how pictures become what a network is trained on."""

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from timm.data import create_transform
from torch import Generator, Tensor
from torch.utils.data import Dataset

from scalekd.data.corrupt import Images, Readable
from scalekd.data.seeding import seed_all
from scalekd.errors import InputError
from scalekd.networks import InputConfig
from scalekd.notes import Note
from scalekd.recipe import Data

DECODED_BEFOREHAND = 5_000
"""Up to so many images are decoded once before training, to name broken ones early."""

MOST_WORKERS = 16
"""Each loading process holds two batches: more of them take more memory than they save time."""

IGNORED = -1
"""The class of an image that is not measured."""

Order = Callable[[Generator], Tensor]
"""The order of an epoch's images, (images,), drawn from a generator."""

Transform = Callable[[Image.Image], Tensor]


@dataclass(frozen=True)
class Source:
    """Where images come from.

    classes: how many; None of images without labels.
    input: what the images are, where the source alone decides; None where the student does.
    workers: loading processes that are worth their cost.
    train, validation: data sets for the student's input; `train` also takes the run's seed, and is
        indexed by the names that `RunBatches` gives. Items are (image, class). Without labels they
        are (image,), and there is no validation. The class of an image to validate on that could
        not be read is `IGNORED`.
    notes: one line for each thing that was decided here and not by the caller.
    order: of an epoch; None for any.
    broken: how many images could not be read since the start.
    identity: of the images to train on: other images, classes or another order have another one.
    view: how many images make a view of them for a cache; None for as many as `train` has.
    """

    classes: int | None
    workers: int
    input: InputConfig | None
    train: Callable[[InputConfig, int], Dataset[Any]]
    validation: Callable[[InputConfig], Dataset[Any]] | None
    notes: list[Note] = field(default_factory=list)
    order: Order | None = None
    broken: Callable[[], int] = lambda: 0
    identity: str = ""
    view: int | None = None


def build_source(
    data: Data,
    training: Images,
    validating: Images | None,
    targets: Tensor,
    names: Iterable[str],
    classes: int | None,
    notes: list[Note],
    order: Order | None = None,
) -> Source:
    """The source that gives these pictures, transformed.

    Args:
        data: how.
        training, validating: the pictures, the latter None without labels.
        targets: the classes of the former (N,), all 0 without labels.
        names: what tells the former from other images, wherever they lie.
        classes: how many there are; None without labels.
        notes: see `Source`.
        order: of all training images.

    Raises:
        InputError: fewer images than are asked for; one of few that is broken.
    """
    if data.train_images and data.train_images > len(training):
        raise InputError(
            f"data.train_images is {data.train_images} and there are {len(training)} images to "
            f"train on in {data.root!r}"
        )
    to_train = Readable(training, data.corrupt_images)
    splits = [to_train]
    if validating is not None:
        splits.append(Readable(validating, data.corrupt_images))
    if sum(map(len, splits)) <= DECODED_BEFOREHAND:
        for split in splits:
            for index in range(len(split)):
                split.read(index)

    def train(config: InputConfig, seed: int) -> Dataset[Any]:
        chosen: range | list[int] = range(len(training))
        if data.train_images is not None:
            chosen = balanced_subset(targets.tolist(), data.train_images, seed)
        return Seeded(to_train, chosen, training_transform(data, config), seed)

    def validation(config: InputConfig) -> Dataset[Any]:
        return Measured(splits[1], config)

    return Source(
        classes,
        min(MOST_WORKERS, cores()),
        None,
        train,
        validation if validating is not None else None,
        notes,
        order if data.train_images is None else None,
        lambda: sum(split.broken() for split in splits),
        _identity(targets, names),
    )


class Seeded(Dataset[Any]):
    """Some of `images`, transformed, by the names that `RunBatches` gives them.

    A transform's random numbers depend on seed and name alone: all methods of a seed see the same
    crops, in whichever process they are made.
    """

    def __init__(
        self, images: Readable, chosen: range | list[int], transform: Transform, seed: int
    ) -> None:
        self.images, self.chosen, self.transform, self.seed = images, chosen, transform, seed

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, name: int) -> tuple[Any, ...]:
        item = self.images.read_next(self.chosen, name % len(self))
        seed_all(self.seed, name)
        return (self.transform(item[0]), *item[1:])


class Measured(Dataset[Any]):
    """All of `images`, as they are measured; a broken one is black and its class `IGNORED`."""

    def __init__(self, images: Readable, config: InputConfig) -> None:
        self.images, self.config = images, config
        self.transform: Transform = create_transform(
            config.size, mean=config.mean, std=config.std, crop_pct=0.875
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        item = self.images.read(index)
        if item is None:
            return torch.zeros(self.config.channels, *self.config.size), IGNORED
        return (self.transform(item[0]), *item[1:])


def _identity(targets: Tensor, names: Iterable[str]) -> str:
    digest = hashlib.blake2b(targets.long().numpy().tobytes(), digest_size=8)
    for name in names:
        digest.update(name.encode(errors="surrogateescape") + b"\0")
    return digest.hexdigest()


def cores() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def training_transform(data: Data, config: InputConfig) -> Transform:
    """What is done to a training picture.

    Raises:
        InputError: timm cannot read the policy.
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
    except Exception as error:  # whatever timm makes of a policy that it cannot read
        raise InputError(
            f"data.auto_augment is {data.auto_augment!r}, no policy that timm knows; two are "
            "rand-m9-n2-mstd0.5 and 3a"
        ) from error
    return transform


def balanced_subset(targets: list[int], count: int, seed: int) -> list[int]:
    """Indices of `count` items, as many of each class (to one), other ones for each seed."""
    order = torch.randperm(len(targets), generator=Generator().manual_seed(seed)).tolist()
    turns: dict[int, int] = {}
    ranked = []
    for index in order:
        turn = turns[targets[index]] = turns.get(targets[index], -1) + 1
        ranked.append((turn, targets[index], index))
    return [index for _, _, index in sorted(ranked)[:count]]
