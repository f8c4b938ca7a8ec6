"""Masks of objects: COCO's polygons and run lengths, by pycocotools."""

import warnings
from typing import Any

import numpy as np

from scalekd.errors import InputError

RunLengths = dict[str, Any]
"""A mask as pycocotools compresses it: its size and its counts."""


def import_pycocotools() -> Any:
    """The functions of `pycocotools.mask`.

    Raises:
        InputError: pycocotools is not installed.
    """
    try:
        from pycocotools import mask
    except ImportError as error:
        raise InputError(
            "detection needs pycocotools, which is not installed: pip install 'scalekd[transfer]'"
        ) from error
    return mask


def to_run_lengths(segmentation: Any, height: int, width: int) -> RunLengths:
    """The mask of a segmentation, polygons or run lengths, in an image of `height` x `width`.

    Raises:
        InputError: it is of another size, or damaged.
    """
    functions = import_pycocotools()
    if isinstance(segmentation, list):
        merged: RunLengths = functions.merge(functions.frPyObjects(segmentation, height, width))
        return merged
    counts, size = segmentation["counts"], segmentation["size"]
    if size != [height, width]:
        raise InputError(
            f"the mask is {size[0]}x{size[1]} pixels and the image {height}x{width}: they must be "
            "of one size"
        )
    if isinstance(counts, str):
        counts = uncompress(counts)
    covered = sum(counts)
    if covered != height * width:
        raise InputError(
            f"the mask's run lengths cover {covered} pixels, and the image has {height * width}"
        )
    lengths: RunLengths = functions.frPyObjects({"size": size, "counts": counts}, height, width)
    return lengths


def uncompress(counts: str) -> list[int]:
    """The run lengths in COCO's compressed text: five bits a character, differences from the third.

    pycocotools decodes a text that is cut off to whatever is in memory, so it is checked here.

    Raises:
        InputError: the text is damaged.

    Example:
        >>> uncompress("52203")
        [5, 2, 2, 2, 5]
    """
    lengths: list[int] = []
    value = shift = 0
    for character in counts:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise InputError("the mask's run lengths are damaged: they have a foreign character")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:  # another character follows
            continue
        if bits & 16:  # negative, in two's complement
            value -= 1 << shift
        lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
        value = shift = 0
    if shift or any(length < 0 for length in lengths):
        raise InputError("the mask's run lengths are damaged: they end early, or are negative")
    return lengths


def decode_mask(run_lengths: RunLengths) -> np.ndarray:
    """A mask (H, W) of 0 and 1 in 8 bits."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of numpy 2, in pycocotools itself
        mask: np.ndarray = import_pycocotools().decode(run_lengths)
    return mask


def encode_masks(masks: np.ndarray) -> list[RunLengths]:
    """The run lengths of masks (N, H, W) of 0 and 1 in 8 bits."""
    if not len(masks):
        return []
    found: list[RunLengths] = import_pycocotools().encode(
        np.asfortranarray(masks.transpose(1, 2, 0))
    )
    return found
