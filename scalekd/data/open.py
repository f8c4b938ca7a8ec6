"""Images to train and to measure on. A new source is one more function that gives a `Source`."""

from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.data import Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS

from scalekd.data.huggingface import PREFIX, open_huggingface
from scalekd.data.image_folder import files_below, open_class_folders, open_flat_folder
from scalekd.data.source import Source, balanced_subset
from scalekd.data.webdataset import has_tars, open_webdataset
from scalekd.digits import images as digits
from scalekd.errors import InputError
from scalekd.networks import InputConfig
from scalekd.recipe import Data

SPLITS = ("train", "training", "val", "valid", "validation")
"""Names, in any case, of folders that are no part of a pool without labels."""

VIRTUALLY_ENDLESS = 1_000_000
"""How many renderings of the digits there are to draw an epoch from."""

DataLayout = Literal["digits", "classes", "flat", "shards", "hub"]
"""The packaged digits; train/ and val/ with a folder for each class; images without labels; tars of
either kind; a dataset of Hugging Face."""


def open_source(data: Data) -> Source:
    """The images that `data` names; InputError for whatever is wrong with them."""
    openers = {
        "digits": digits_source,
        "classes": open_class_folders,
        "flat": open_flat_folder,
        "shards": open_webdataset,
        "hub": open_huggingface,
    }
    return openers[find_layout(data)](data)


def find_layout(data: Data) -> DataLayout:
    """How `data.root` is laid out, which no image is read for; InputError where it is nothing."""
    root = Path(data.root)
    if data.root == "digits":
        return "digits"
    if data.root.startswith(PREFIX):
        return "hub"
    if "://" in data.root or data.root.startswith("pipe:"):
        raise InputError(
            f"{data.root!r} is not on this machine: copy or mount it, and give --data.root its "
            "folder"
        )
    if not root.is_dir():
        raise InputError(
            f"no folder {data.root!r}; --data.root takes one with train/ and val/ in it, or one of "
            "images without labels"
        )
    if has_tars(root):
        return "shards"
    if (root / "train").is_dir() and (root / "val").is_dir():
        return "classes"
    # Training/ and Valid/ are meant to have labels: they must not be learnt from as one pool.
    splits = [p for p in root.iterdir() if p.is_dir() and p.name.lower() in SPLITS]
    if not splits and next(files_below(root, IMG_EXTENSIONS), None):
        return "flat"
    raise InputError(
        f"{data.root!r} must hold train/CLASS/*.jpg and val/CLASS/*.jpg, or train/*.tar and "
        "val/*.tar, or, to train without labels, images and neither train/ nor val/; it holds "
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
        chosen = pool.subset(torch.tensor(balanced_subset(pool.labels.tolist(), originals, seed)))
        return digits.Renderings(chosen, VIRTUALLY_ENDLESS, seed)

    def validation(_: InputConfig) -> Dataset[Any]:
        return digits.test_set()

    config = InputConfig(1, size, (digits.MEAN,), (digits.STD,))
    return Source(digits.CLASSES, 0, config, train, validation, view=originals)
