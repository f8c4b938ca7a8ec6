"""The packaged digits as a source: cluttered handwriting, rendered at every step."""

from typing import Any

import torch
from torch.utils.data import Dataset

from scalekd.data.source import Source, Split, balanced_subset
from scalekd.digits import images as digits
from scalekd.errors import InputError
from scalekd.networks import InputConfig
from scalekd.recipe import Data

RENDERINGS = 1_000_000
"""How many renderings of the digits there are to draw an epoch from: virtually endless."""


def open_digits(data: Data) -> Source:
    """Open the digits: renderings of `data.train_images` originals, others for each seed.

    Raises:
        InputError: `data.train_images` or `data.image_size` cannot be had.
    """
    available = len(digits.load_originals("train"))
    originals = data.train_images or available
    if originals < digits.CLASSES or originals > available:
        raise InputError(
            f"data.train_images is {data.train_images}: of the digits there are 10 to "
            f"{available} to train on"
        )
    for name in (
        "auto_augment",
        "color_jitter",
        "erasing",
        "crop",
        "crop_area",
        "interpolation",
        "mean",
        "std",
    ):
        if value := getattr(data, name):
            raise InputError(
                f"data.{name} is {value!r}, and the digits are used as they are rendered: drop it, "
                "or give other images with --data.root"
            )
    if data.epoch_images and data.epoch_images > RENDERINGS:
        raise InputError(
            f"data.epoch_images is {data.epoch_images}: of the digits there are {RENDERINGS} "
            "renderings; make it smaller"
        )
    names = tuple(map(str, range(digits.CLASSES)))
    size = (digits.SIZE, digits.SIZE)
    if data.size not in (None, size):
        raise InputError(f"data.image_size is {data.image_size}: the digits are 32x32")

    def training_set(_: InputConfig, seed: int) -> Dataset[Any]:
        pool = digits.load_originals("train")
        subset = torch.tensor(balanced_subset(pool.labels.tolist(), originals, seed))
        return digits.Renderings(pool.subset(subset), RENDERINGS, seed)

    def validation_set(_: InputConfig) -> Dataset[Any]:
        return digits.build_test_set()

    return Source(
        classes=digits.CLASSES,
        workers=0,
        input=InputConfig(1, size, (digits.MEAN,), (digits.STD,), crop=1.0),
        training_set=training_set,
        validation_set=validation_set,
        images_per_view=originals,
        splits=(
            Split("train", available, names),
            Split("test", digits.TEST_IMAGES, names),
        ),
        unaugmented_set=lambda config: training_set(config, 0),
    )
