"""Images to train and to measure on. A new source is one more function that gives a `Source`."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image, UnidentifiedImageError
from timm.data import create_transform
from torch import Generator, Tensor
from torch.utils.data import Dataset, Subset
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS

from scalekd.digits import images as digits
from scalekd.errors import InputError
from scalekd.networks import InputConfig
from scalekd.training.randomness import seed_all
from scalekd.training.recipe import Data

DECODED_BEFOREHAND = 5_000
"""Folders of up to so many images are decoded once before training, to name broken files early."""

SPLITS = ("train", "training", "val", "valid", "validation")
"""Names, in any case, of folders that are no part of a pool without labels."""

VIRTUALLY_ENDLESS = 1_000_000
"""How many renderings of the digits there are to draw an epoch from."""


@dataclass(frozen=True)
class Source:
    """Where images come from.

    classes: how many; None of images without labels.
    input: what the images are, where the source alone decides; None where the student does.
    workers: loading processes that are worth their cost.
    train, validation: data sets for the student's input; `train` also takes the run's seed, and is
        indexed by the names that `RunBatches` gives. Items are (image, class). Without labels they
        are (image,), and there is no validation.
    notes: one line for each thing that was decided here and not by the caller.
    """

    classes: int | None
    workers: int
    input: InputConfig | None
    train: Callable[[InputConfig, int], Dataset[Any]]
    validation: Callable[[InputConfig], Dataset[Any]] | None
    notes: list[str] = field(default_factory=list)


Layout = Literal["digits", "classes", "flat"]
"""The packaged digits; train/ and val/ with a folder for each class; images without labels."""


def open_source(data: Data) -> Source:
    """The images that `data` names; InputError for whatever is wrong with them."""
    openers = {"digits": digits_source, "classes": folder_source, "flat": flat_source}
    return openers[layout(data)](data)


def layout(data: Data) -> Layout:
    """How `data.root` is laid out, which no image is read for; InputError where it is nothing."""
    root = Path(data.root)
    if data.root == "digits":
        return "digits"
    if not root.is_dir():
        raise InputError(
            f"no folder {data.root!r}; --data.root takes one with train/ and val/ in it, or one of "
            "images without labels"
        )
    if (root / "train").is_dir() and (root / "val").is_dir():
        return "classes"
    # Training/ and Valid/ are meant to have labels: they must not be learnt from as one pool.
    splits = [p for p in root.iterdir() if p.is_dir() and p.name.lower() in SPLITS]
    if not splits and next(_files(root, IMG_EXTENSIONS), None):
        return "flat"
    raise InputError(
        f"{data.root!r} must hold train/CLASS/*.jpg and val/CLASS/*.jpg, or, to train without "
        "labels, images and neither train/ nor val/; it holds "
        f"{', '.join(sorted(p.name for p in root.iterdir())[:5]) or 'nothing'}"
    )


def digits_source(data: Data) -> Source:
    """Cluttered digits, rendered from `data.train_images` originals, others for each seed."""
    originals = data.train_images or len(digits.originals("train"))
    if originals < digits.CLASSES or originals > len(digits.originals("train")):
        raise InputError(
            f"data.train_images is {originals}: of the digits there are 10 to "
            f"{len(digits.originals('train'))} to train on"
        )
    size = (digits.SIZE, digits.SIZE)
    if data.size not in (None, size):
        raise InputError(f"data.image_size is {data.image_size}: the digits are 32x32")

    def train(_: InputConfig, seed: int) -> Dataset[Any]:
        pool = digits.originals("train")
        chosen = pool.subset(torch.tensor(_balanced(pool.labels.tolist(), originals, seed)))
        return digits.Renderings(chosen, VIRTUALLY_ENDLESS, seed)

    def validation(_: InputConfig) -> Dataset[Any]:
        return digits.test_set()

    config = InputConfig(1, size, (digits.MEAN,), (digits.STD,))
    return Source(digits.CLASSES, 0, config, train, validation)


def folder_source(data: Data) -> Source:
    """ROOT/train/CLASS/*.jpg and ROOT/val/CLASS/*.jpg."""
    root = Path(data.root)
    training, validating = _image_folder(root / "train"), _image_folder(root / "val")
    if training.classes != validating.classes:
        odd = sorted(set(training.classes) ^ set(validating.classes))
        raise InputError(
            f"{data.root!r}: train/ and val/ have different classes, only one has: "
            f"{', '.join(odd[:5])}"
        )
    _enough(data, len(training), root / "train")
    _decode_few([path for path, _ in training.samples + validating.samples])

    def train(config: InputConfig, seed: int) -> Dataset[Any]:
        images = _image_folder(root / "train", _training_transform(data, config))
        if data.train_images is None:
            return Seeded(images, seed)
        return Seeded(Subset(images, _balanced(images.targets, data.train_images, seed)), seed)

    def validation(config: InputConfig) -> Dataset[Any]:
        transform = create_transform(config.size, mean=config.mean, std=config.std, crop_pct=0.875)
        images: Dataset[Any] = _image_folder(root / "val", transform)
        return images

    return Source(len(training.classes), min(8, os.cpu_count() or 1), None, train, validation)


def flat_source(data: Data) -> Source:
    """Images without labels: all below ROOT, whatever its folders are called."""
    root = Path(data.root)
    files = sorted(_files(root))
    images = [file for file in files if file.lower().endswith(IMG_EXTENSIONS)]
    others = [file for file in files if not file.lower().endswith(IMG_EXTENSIONS)]
    _enough(data, len(images), root)
    _decode_few(images)

    def train(config: InputConfig, seed: int) -> Dataset[Any]:
        chosen = images
        if data.train_images is not None:
            chosen = [images[i] for i in _balanced([0] * len(images), data.train_images, seed)]
        return Seeded(Unlabelled(chosen, _training_transform(data, config)), seed)

    notes = []
    if others:
        notes.append(
            f"left out, no images by their names: {len(others)} of the files in {data.root}, "
            f"for example {others[0]}"
        )
    return Source(None, min(8, os.cpu_count() or 1), None, train, None, notes)


class Unlabelled(Dataset[tuple[Tensor]]):
    """The images of `files`, each as (image,)."""

    def __init__(self, files: list[str], transform: Callable[[Image.Image], Tensor]) -> None:
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor]:
        return (self.transform(load_image(self.files[index])),)


class Seeded(Dataset[Any]):
    """The items of `images` by the names that `RunBatches` gives them.

    A transform's random numbers depend on seed and name alone: all arms of a seed see the same
    crops, in whichever process they are made.
    """

    def __init__(self, images: Dataset[Any], seed: int) -> None:
        self.images, self.seed = images, seed

    def __len__(self) -> int:
        return len(self.images)  # type: ignore[arg-type]

    def __getitem__(self, name: int) -> Any:
        seed_all(self.seed, name)
        return self.images[name % len(self)]


def load_image(path: str) -> Image.Image:
    """An RGB image, or an InputError that names the file."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, UnidentifiedImageError, SyntaxError) as error:
        raise InputError(
            f"cannot read the image {path!r} ({error}): repair or remove it"
        ) from error


def _files(root: Path, endings: tuple[str, ...] = ("",)) -> Iterator[str]:
    """Files below `root` whose names end so, but for hidden ones; links to folders are followed."""
    for folder, below, names in os.walk(root, followlinks=True):
        below[:] = [name for name in below if name[0] != "."]
        for name in names:
            if name[0] != "." and name.lower().endswith(endings):
                yield os.path.join(folder, name)


def _enough(data: Data, images: int, folder: Path) -> None:
    if data.train_images and data.train_images > images:
        raise InputError(
            f"data.train_images is {data.train_images} and there are {images} images in "
            f"{str(folder)!r}"
        )


def _decode_few(files: list[str]) -> None:
    if len(files) <= DECODED_BEFOREHAND:
        for file in files:
            load_image(file)


def _training_transform(data: Data, config: InputConfig) -> Callable[[Image.Image], Tensor]:
    shape = config.size[1] / config.size[0]
    try:
        transform: Callable[[Image.Image], Tensor] = create_transform(
            config.size,
            is_training=True,
            # Crops have about the shape of what they are resized to, as they have in validation.
            ratio=(3 / 4 * shape, 4 / 3 * shape),
            mean=config.mean,
            std=config.std,
            auto_augment=data.auto_augment,
            re_prob=data.erasing,
            color_jitter=None,
        )
    except Exception as error:  # whatever timm makes of a policy that it cannot read
        raise InputError(
            f"data.auto_augment is {data.auto_augment!r}, no policy that timm knows; one is "
            "rand-m9-n2-mstd0.5"
        ) from error
    return transform


def _image_folder(
    folder: Path, transform: Callable[[Image.Image], Tensor] | None = None
) -> ImageFolder:
    classes = sorted(p for p in folder.iterdir() if p.is_dir())
    if len(classes) < 2:
        raise InputError(
            f"{str(folder)!r} has {len(classes)} class folders; at least 2 are needed, "
            "one folder of images for each class"
        )
    for directory in classes:
        files = [f for f in directory.rglob("*") if f.is_file() and f.name[0] != "."]
        if not files:
            raise InputError(
                f"the class folder {str(directory)!r} has no images: fill or remove it"
            )
        for file in files:
            if file.suffix.lower() not in IMG_EXTENSIONS:
                raise InputError(f"{str(file)!r} is not an image by its name: remove it")
    return ImageFolder(str(folder), transform, loader=load_image)


def _balanced(targets: list[int], count: int, seed: int) -> list[int]:
    """Indices of `count` items, as many of each class (to one), other ones for each seed."""
    order = torch.randperm(len(targets), generator=Generator().manual_seed(seed)).tolist()
    turns: dict[int, int] = {}
    ranked = []
    for index in order:
        turn = turns[targets[index]] = turns.get(targets[index], -1) + 1
        ranked.append((turn, targets[index], index))
    return [index for _, _, index in sorted(ranked)[:count]]
