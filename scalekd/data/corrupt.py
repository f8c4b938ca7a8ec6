"""Images that cannot be read: they end a run, or are replaced and counted, as it was asked."""

import io
import warnings
from typing import BinaryIO, Literal, Protocol

import torch
from PIL import Image, UnidentifiedImageError

from scalekd.errors import InputError

Item = tuple[Image.Image] | tuple[Image.Image, int]
"""A picture, and its class where there are labels."""

OnBroken = Literal["stop", "skip"]

IN_A_ROW = 1_000
"""So many broken images, one after another, are no accident."""


class Images(Protocol):
    """Pictures by number. One that is damaged raises `BrokenImageError`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Item: ...


class BrokenImageError(InputError):
    """The bytes of an image make no picture, now or later."""


def load_image(path: str) -> Image.Image:
    """An RGB image out of a file; see `decode`."""
    try:
        with open(path, "rb") as file:
            return decode(file, repr(path))
    except OSError as error:
        raise InputError(f"cannot read the image {path!r} ({error}): bring it back") from error


def decode(content: BinaryIO | bytes, name: str) -> Image.Image:
    """An RGB image.

    Raises:
        BrokenImageError: that names it.
        InputError: it could not be read at all, which another time it may be.
    """
    try:
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as image:
            return image.convert("RGB")
    except MemoryError:
        raise
    except Exception as error:  # what Pillow makes of damaged files is of many kinds
        said = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            said = "of no known format"  # Pillow says where the bytes are in memory
        if isinstance(error, OSError) and error.errno:
            raise InputError(f"cannot read the image {name} ({said}): bring it back") from error
        raise BrokenImageError(
            f"cannot read the image {name} ({said}): repair or remove it, or leave such images out "
            "with --data.corrupt_images skip"
        ) from error


class Readable:
    """Images of which some may be broken, and how many were.

    Args:
        images: all of a split.
        on_broken: stop at a broken one, or skip it: then each is named once, in a warning; twice
            where two processes meet it at the same moment.
    """

    def __init__(self, images: Images, on_broken: OnBroken) -> None:
        self.images, self.on_broken = images, on_broken
        # Shared with the loading processes: they find them, the main one tells how many there are.
        self.found = torch.zeros(len(images), dtype=torch.bool)
        self.found.share_memory_()  # type: ignore[no-untyped-call]

    def __len__(self) -> int:
        return len(self.images)

    def broken(self) -> int:
        """How many were found since the start, in all loading processes."""
        return int(self.found.sum())

    def read(self, index: int) -> Item | None:
        """One of them, or None if it is broken and to be skipped.

        Raises:
            InputError: it is broken and not to be skipped, or all are broken.
        """
        if self.found[index]:
            return None
        try:
            return self.images[index]
        except BrokenImageError as error:
            if self.on_broken == "stop":
                raise
            self.found[index] = True
            said = str(error).partition(": repair")[0]
            warnings.warn(f"{said}: left out", stacklevel=2)
            if self.broken() == len(self):
                raise InputError(
                    f"not one of the {len(self)} images can be read: {said}"
                ) from error
            return None

    def read_next(self, indices: range | list[int], at: int) -> Item:
        """That at `indices[at]`, or the next readable one, round and round."""
        for step in range(min(len(indices), IN_A_ROW)):
            item = self.read(indices[(at + step) % len(indices)])
            if item is not None:
                return item
        raise InputError(
            f"{min(len(indices), IN_A_ROW)} images in a row cannot be read, from number {at} on: "
            "are they damaged on the way, or no images?"
        )
