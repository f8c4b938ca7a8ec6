"""Images that cannot be decoded: they end a run, or are skipped and counted, as the user asked."""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, Protocol

import numpy as np
import torch
from PIL import Image

from scalekd.device import usable_cores
from scalekd.errors import InputError

logger = logging.getLogger(__name__)

LabelMap = np.ndarray[tuple[int, int], np.dtype[np.int16]]
"""The class of each pixel of an image (height, width)."""

Sample = tuple[Image.Image] | tuple[Image.Image, int] | tuple[Image.Image, LabelMap]
"""An image, and its class where there are labels, or the class of each of its pixels."""

OnCorrupt = Literal["stop", "skip"]

MAX_CORRUPT_IN_A_ROW = 1_000
"""So many corrupt images, one after another, are no accident."""


class Samples(Protocol):
    """Samples by number, for several threads at once; a corrupt one raises `CorruptImageError`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def content(self, index: int) -> bytes:
        """The encoded image of a sample."""


class CorruptImageError(InputError):
    """The bytes of an image cannot be decoded, now or later."""


class CheckedSamples:
    """Samples of which some may be corrupt; counts the corrupt ones.

    Args:
        samples: all samples of a split.
        on_corrupt: "stop" raises the error of a corrupt image; "skip" names each in a warning, once
            (twice where two processes meet it at the same moment).
    """

    def __init__(self, samples: Samples, on_corrupt: OnCorrupt) -> None:
        self.samples, self.on_corrupt = samples, on_corrupt
        # Shared memory: worker processes set the flags, and the main process counts them.
        self.corrupt = torch.zeros(len(samples), dtype=torch.bool)
        self.corrupt.share_memory_()  # type: ignore[no-untyped-call]

    def __len__(self) -> int:
        return len(self.samples)

    def corrupt_count(self) -> int:
        """How many corrupt images all worker processes have found since the start."""
        return int(self.corrupt.sum())

    def read(self, index: int) -> Sample | None:
        """Read one sample; None for a corrupt image that is skipped.

        Raises:
            InputError: the image is corrupt and not to be skipped, or all images are corrupt.
        """
        if self.corrupt[index]:
            return None
        try:
            return self.samples[index]
        except CorruptImageError as error:
            if self.on_corrupt == "stop":
                raise
            self.corrupt[index] = True
            problem = str(error).partition(": repair")[0]
            logger.warning("%s: skipped", problem)
            if self.corrupt_count() == len(self):
                raise InputError(
                    f"not one of the {len(self)} images can be read: {problem}"
                ) from error
            return None

    def read_all(self, see: Callable[[Sample], None] = lambda sample: None) -> None:
        """Read every sample once, on all cores.

        Args:
            see: called with each sample that can be read, in several threads.

        Raises:
            InputError: that of `read` for the first such sample.
        """

        def check(index: int) -> None:
            sample = self.read(index)
            if sample is not None:
                see(sample)

        with ThreadPoolExecutor(usable_cores()) as pool:
            for _ in pool.map(check, range(len(self))):
                pass

    def read_next(self, indices: range | list[int], position: int) -> Sample:
        """Read the sample at `indices[position]`, or the next readable one, round and round.

        Raises:
            InputError: the image is corrupt and not to be skipped, or `MAX_CORRUPT_IN_A_ROW` are
                corrupt.
        """
        attempts = min(len(indices), MAX_CORRUPT_IN_A_ROW)
        for offset in range(attempts):
            sample = self.read(indices[(position + offset) % len(indices)])
            if sample is not None:
                return sample
        raise InputError(
            f"{attempts} images in a row cannot be read, from number {position} on: were they "
            "damaged in transfer, or are they no images?"
        )
