"""Images that are named one by one or by their folders, without labels."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from scalekd.data.decoding import decode_image, read_image_file
from scalekd.data.source import build_validation_transform
from scalekd.data.walk import Skipped, identities_upwards, walk
from scalekd.errors import InputError
from scalekd.networks import InputConfig
from scalekd.networks.input_config import normalize_bytes
from scalekd.notes import Note


@dataclass(frozen=True)
class FoundFiles:
    """Image files.

    Attributes:
        files: their paths, which begin as the user named them.
        notes: what was skipped in folders.
    """

    files: tuple[str, ...]
    notes: tuple[Note, ...]


def find_files(places: Sequence[str]) -> FoundFiles:
    """Find the images that are named, and all below the folders that are named.

    Args:
        places: files, whether or not they are images, and folders.

    Raises:
        InputError: not one of the files exists, or a folder cannot be read.
    """
    files, notes = list[str](), list[Note]()
    for place in places:
        if not os.path.isdir(place):
            files.append(place)
            continue
        skipped = Skipped()
        (folders,) = walk([place], identities_upwards(Path(place)), skipped).values()
        files += [os.path.join(folder, name) for folder, names in folders for name in names]
        notes += [Note("info", note) for note in skipped.notes(place)]
    if not any(map(os.path.lexists, files)):
        named = ", ".join(map(repr, places[:5]))
        raise InputError(f"no images in {named or 'nothing'}: name images, or folders of images")
    return FoundFiles(tuple(files), tuple(notes))


class ImageFiles:
    """Image files by number, made as a model takes them.

    Args:
        files: their paths.
        images: what the model takes.

    Example:
        >>> images = ImageFiles(["photo.jpg"], opened.input)
        >>> images.load(0).shape
        torch.Size([3, 224, 224])
    """

    def __init__(self, files: Sequence[str], images: InputConfig) -> None:
        self.files, self.images = files, images
        self._transform = build_validation_transform(images)

    def load(self, number: int) -> Tensor | str:
        """The normalised image (channels, H, W), or why it cannot be read."""
        file = self.files[number]
        try:
            pixels = self._transform(decode_image(read_image_file(file), repr(file)))
            return normalize_bytes(pixels, self.images)
        except InputError as error:
            return str(error).rpartition(": ")[0]  # without what to do about it
        except ValueError as error:  # a null byte in the name
            return f"cannot read the image {file!r} ({error})"
