"""Label maps: from the PNG of an image's annotation to the class of each pixel."""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from scalekd.data.corrupt import CorruptImageError, LabelMap
from scalekd.data.decoding import read_image_file
from scalekd.data.source import IGNORED
from scalekd.errors import InputError

MODES = {"1", "L", "P", "I", "I;16", "I;16B", "I;16L"}
"""Pillow's modes of images with one whole number a pixel; of a palette's it is the index."""


@dataclass(frozen=True, kw_only=True)
class LabelCoding:
    """What the values of label maps mean.

    Attributes:
        classes: number of classes.
        reduce_zero_label: whether 0 means no class, and 1 is the first class.
        ignore_label: value of pixels without class.
    """

    classes: int
    reduce_zero_label: bool = False
    ignore_label: int = 255

    def __post_init__(self) -> None:
        first = int(self.reduce_zero_label)
        if first <= self.ignore_label < first + self.classes:
            raise InputError(
                f"data.ignore_label is {self.ignore_label}, and the labels of {self.classes} "
                f"classes are {first} to {self.classes - 1 + first}: no pixel would be of that "
                "class; give --data.ignore_label a value that is no class (65535 in 16 bits)"
            )

    def decode(self, values: np.ndarray, name: str) -> LabelMap:
        """The class of each pixel, `IGNORED` where it has none.

        Args:
            values: of a label map (height, width).
            name: how an error names it.

        Raises:
            InputError: a value is no class.
        """
        ignored = values == self.ignore_label
        if self.reduce_zero_label:
            ignored |= values == 0
        numbers = values.astype(np.int32) - self.reduce_zero_label
        wrong = ~ignored & ((numbers < 0) | (numbers >= self.classes))
        if wrong.any():
            first = int(self.reduce_zero_label)
            raise InputError(
                f"the annotation {name} has the label {int(values[wrong][0])}, and the labels of "
                f"{self.classes} classes are {first} to {self.classes - 1 + first} (or "
                f"{self.ignore_label}, which is ignored): give --data.classes, "
                "--data.reduce_zero_label or --data.ignore_label"
            )
        return np.where(ignored, IGNORED, numbers).astype(np.int16)


def read_label_map(path: str, coding: LabelCoding) -> LabelMap:
    """Read the label map in a PNG of 8 or 16 bits, or with a palette.

    Raises:
        CorruptImageError: the file is damaged or no image.
        InputError: the file cannot be read, has colours in place of labels, or a label is no class.
    """
    content = read_image_file(path)
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            mode, values = image.mode, np.asarray(image)
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises many kinds for damaged files
        raise CorruptImageError(
            f"cannot read the annotation {path!r} ({type(error).__name__}): repair or remove it, "
            "or skip such images with --data.corrupt_images skip"
        ) from error
    if mode not in MODES:
        raise InputError(
            f"the annotation {path!r} is an image of mode {mode}: a label map has one number a "
            "pixel, in 8 or 16 bits or as the index of a palette"
        )
    return coding.decode(values, repr(path))
