"""Decoding: from the bytes of an image file to the 8-bit RGB image that every source gives.

All sources decode here, so that an image is the same in a folder, a tar file and a dataset: grey
values of 16 bits are scaled to 8, and an image is turned upright as its EXIF orientation says.
"""

import io
import logging
import os
from functools import cache
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from scalekd.data.corrupt import CorruptImageError
from scalekd.errors import InputError
from scalekd.reading import open_without_waiting

logger = logging.getLogger(__name__)

MAX_IMAGE_BYTES = 2**30
"""Larger files are refused: they are no photographs, and loading processes share the memory."""

COMMON_ENDINGS = {"jpg", "jpeg", "png", "ppm", "bmp", "pgm", "tif", "tiff", "webp"}
"""Endings that are an image's where several files of a sample might be one."""

NOT_DECODED = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}
"""Formats that Pillow recognises but decodes only with other programs, or not at all."""

SCALED_TO_16_BITS = {"JPEG2000", "PNG", "PPM"}
"""Formats whose grey values of more than 8 bits Pillow gives from 0 to 65535."""

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How an image of each EXIF orientation is turned upright."""


_warned_of_unused_bits = False
"""Whether this process has warned: a word for each such image would be too many."""


@cache
def image_endings() -> frozenset[str]:
    """Endings of file names, in lower case and without dot, of all formats that Pillow decodes."""
    formats = {**Image.registered_extensions()}
    decoded = ({*Image.OPEN} | {"MPO"}) - NOT_DECODED
    return frozenset(e.removeprefix(".") for e, name in formats.items() if name in decoded)


def is_image_name(name: str) -> bool:
    """Whether a file's name ends as an image's."""
    _, dot, ending = name.rpartition(".")
    return bool(dot) and ending.lower() in image_endings()


def read_image_file(path: str) -> bytes:
    """Read an image file, without waiting for what is no regular file.

    Raises:
        InputError: the file cannot be read now, is no regular file, or is very large.
    """
    try:
        descriptor = open_without_waiting(path)
        if descriptor is None:
            raise InputError(f"the image {path!r} is no regular file: remove it")
        with os.fdopen(descriptor, "rb") as file:
            _check_size(os.fstat(descriptor).st_size, repr(path))
            return file.read()
    except OSError as error:
        raise unreadable(path, error, "the image ") from error


def unreadable(path: str | Path, error: OSError, kind: str = "") -> InputError:
    """The error of a file or folder that the operating system does not let us read."""
    name = f"{kind}{str(path)!r}"
    if isinstance(error, PermissionError):
        return InputError(f"there is no permission to read {name}: give it (chmod u+rX)")
    return InputError(f"cannot read {name} ({error.strerror or error}): bring it back")


def decode_image(content: bytes, name: str) -> Image.Image:
    """Decode an RGB image of 8 bits a channel, upright; of an animated one the first picture.

    What is transparent becomes white.

    Args:
        content: the encoded image.
        name: how an error names it.

    Raises:
        CorruptImageError: the content is damaged or no image, or the range of its values unknown.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            rgb = _to_rgb(image, name)
            turn = UPRIGHT.get(_orientation(image))
            return rgb if turn is None else rgb.transpose(turn)
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises many kinds for damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = "of no known format"  # Pillow's message is the address of the bytes in memory
        raise CorruptImageError(
            f"cannot read the image {name} ({reason}): repair or remove it, or skip such images "
            "with --data.corrupt_images skip"
        ) from error


def _check_size(size: int, name: str) -> None:
    if size > MAX_IMAGE_BYTES:
        raise CorruptImageError(
            f"cannot read the image {name} ({size} bytes are more than 1 GiB): repair or remove "
            "it, or skip such images with --data.corrupt_images skip"
        )


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged metadata, which no viewer minds
        return 1


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Convert to 8-bit RGB; ValueError where the range of the values is unknown."""
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    signed = 2 in tags.get(339, ())  # SampleFormat
    if signed or image.mode == "F" or image.mode.startswith("I"):
        largest = 65_535 if image.format in SCALED_TO_16_BITS and image.mode != "F" else None
        if image.mode.startswith("I;16") and image.format == "TIFF" and not signed:
            largest = 2 ** tags.get(258, (16,))[0] - 1  # BitsPerSample
        if largest is None:
            kind = "floating-point numbers" if image.mode == "F" else "integers"
            raise ValueError(
                f"its values are {'signed ' * signed}{kind} of an unknown range; save it with 8 or "
                "16 unsigned bits a channel"
            )
        values = np.asarray(image).astype(np.uint32)
        if 0 < (brightest := int(values.max(initial=0))) <= largest // 16:
            _warn_of_unused_bits(name, brightest, largest)
        if tags.get(262) == 0:  # PhotometricInterpretation: 0 is white, which Pillow leaves so
            values = largest - values
        image = Image.fromarray(((values * 255 + largest // 2) // largest).astype(np.uint8))
    if image.has_transparency_data:
        return _on_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    """An image with transparent parts on white paper: what the colours there are is no picture."""
    colours = image.convert("RGBA")
    paper = Image.new("RGBA", colours.size, (255, 255, 255, 255))
    return Image.alpha_composite(paper, colours).convert("RGB")


def _warn_of_unused_bits(name: str, brightest: int, largest: int) -> None:
    global _warned_of_unused_bits
    if not _warned_of_unused_bits:
        _warned_of_unused_bits = True
        logger.warning(
            "the image %s is nearly black: its largest value is %d of %d; if its values have fewer "
            "bits than its format, scale such images before training",
            name,
            brightest,
            largest,
        )
