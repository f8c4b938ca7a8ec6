"""Fashion-MNIST: 28x28 grey images of ten kinds of clothing, found here or downloaded."""

import gzip
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image

from scalekd.atomic_io import new_folder
from scalekd.data.corrupt import Sample
from scalekd.data.source import Source, StoredSplit, build_source, build_validation_source
from scalekd.errors import InputError, one_line
from scalekd.reading import open_regular
from scalekd.recipe import Data

NAME = "fashion-mnist"
"""What `data.root` calls it, with all its training and test images."""

CHOOSING = f"{NAME}:choosing"
"""Without the test images: the last training images are there to choose settings by."""

FINAL = f"{NAME}:final"
"""For measuring with settings that were chosen: the same training images, and the test images."""

NAMES = NAME, CHOOSING, FINAL

HELD_OUT = 5_000
"""How many of the last training images the two parts leave out of training."""

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist has its files."""

FILES = {"train": "train", "test": "t10k"}
"""How the names of a split's two files begin."""

IMAGES, LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
"""torchvision's names of the classes, in the order of their numbers."""

MAX_BYTES = 2**28
"""Largest file that is unpacked, five times as large as the training images."""


def open_fashion_mnist(data: Data) -> Source:
    """Open the images to train on and to validate on: 60,000 and the 10,000 of the test set, or
    those of the part that `data.root` names.

    Raises:
        InputError: the files are not on this machine and cannot be downloaded, or are damaged.
    """
    folder = find_or_download()
    which = slice(None) if data.root == NAME else slice(-HELD_OUT)
    training = read_split(folder, "train", which)
    validation, measured_on = _validation_split(data.root, folder)
    note = f"{NAME} is read from {folder}, and accuracy is measured on {measured_on}"
    return build_source(data, training, validation, notes=[note])


def open_fashion_mnist_validation(data: Data) -> Source:
    """Open the images to evaluate on."""
    folder = find_or_download()
    validation, measured_on = _validation_split(data.root, folder)
    note = f"accuracy is measured on {measured_on} of {NAME} in {folder}"
    return build_validation_source(data, validation, [note])


def _validation_split(root: str, folder: Path) -> tuple[StoredSplit, str]:
    if root == CHOOSING:
        held_out = read_split(folder, "train", slice(-HELD_OUT, None))
        return replace(held_out, name="held out"), "its last training images"
    return read_split(folder, "test"), "its test images"


def find_or_download() -> Path:
    """The folder of the four files: Debian's, or the one in torch's hub folder.

    Raises:
        InputError: there is none, and the files cannot be downloaded.
    """
    return find_files() or _download()


def find_files() -> Path | None:
    """The folder of the four files on this machine; None where there is none."""
    for folder in (DEBIAN_FOLDER, _hub_folder() / "FashionMNIST" / "raw"):
        parts = [f"{prefix}-{kind}" for prefix in FILES.values() for kind in (IMAGES, LABELS)]
        if all((folder / part).exists() or (folder / f"{part}.gz").exists() for part in parts):
            return folder
    return None


class FashionMnistSamples:
    """The images of a split. Each process reads the file once: it is not sent to loading processes.

    Args:
        folder: that has the files.
        split: train or test.
        places: of the images in the split's file.
        targets: class of each image.
    """

    def __init__(self, folder: Path, split: str, places: range, targets: list[int]) -> None:
        self.folder, self.split, self.places, self.targets = folder, split, places, targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> Sample:
        return Image.fromarray(self._pixels(index)).convert("RGB"), self.targets[index]

    def content(self, index: int) -> bytes:
        """The pixels of an image."""
        pixels: bytes = self._pixels(index).tobytes()
        return pixels

    def _pixels(self, index: int) -> np.ndarray:
        pixels: np.ndarray = _read_array(self.folder, self.split, IMAGES)[self.places[index]]
        return pixels


def read_split(folder: Path, name: str, which: slice = slice(None)) -> StoredSplit:
    """Read the images `which` of the split "train" or "test" in a folder; see `find_files`.

    Raises:
        InputError: the files are damaged, or have too few images.
    """
    images, labels = (_read_array(folder, name, kind) for kind in (IMAGES, LABELS))
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels) or not len(labels):
        raise InputError(
            f"the {name} files of {NAME} in {str(folder)!r} are damaged: they have images of shape "
            f"{images.shape} and labels of shape {labels.shape}; get them again"
        )
    if labels.max() >= len(CLASSES):
        raise InputError(
            f"{_file(folder, name, LABELS)} has the label {labels.max()}, and {NAME} has "
            f"{len(CLASSES)} classes: get the file again"
        )
    places, targets = range(len(labels))[which], labels[which].tolist()
    if not targets:
        raise InputError(
            f"the {name} files of {NAME} in {str(folder)!r} have {len(labels)} images, of which "
            f"{NAME} holds {HELD_OUT} out: get the files again"
        )
    return StoredSplit(
        name=name,
        samples=FashionMnistSamples(folder, name, places, targets),
        identifiers=[NAME, name, *([] if which == slice(None) else [str(places)])],
        classes=CLASSES,
        targets=torch.tensor(targets, dtype=torch.int64),
    )


@cache
def _read_array(folder: Path, split: str, kind: str) -> np.ndarray:
    """Read a file in the IDX format: unsigned bytes after the sizes of their dimensions.

    Raises:
        InputError: it cannot be read, or is no such file.
    """
    file = _file(folder, split, kind)
    with open_regular(file, str(file)) as stream:
        try:
            content = _unpack(stream, packed=file.suffix == ".gz")
        except (OSError, EOFError) as error:  # gzip's errors are of these kinds
            raise InputError(
                f"{file} cannot be read ({one_line(error)}): get the file again"
            ) from error
    dimensions = content[3] if content[:3] == b"\0\0\x08" and len(content) > 3 else 0
    sizes = [int.from_bytes(content[4 * d : 4 * d + 4], "big") for d in range(1, dimensions + 1)]
    pixels = content[4 + 4 * dimensions :]
    if not dimensions or np.prod(sizes, dtype=object) != len(pixels):
        raise InputError(
            f"{file} is no complete file of unsigned bytes in the IDX format: get the file again"
        )
    return np.frombuffer(pixels, dtype=np.uint8).reshape(sizes)


def _unpack(stream: IO[bytes], packed: bool) -> bytes:
    content = (gzip.GzipFile(fileobj=stream) if packed else stream).read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise OSError(f"it has more than {MAX_BYTES} bytes")
    return content


def _file(folder: Path, split: str, kind: str) -> Path:
    unpacked = folder / f"{FILES[split]}-{kind}"
    return unpacked if unpacked.exists() else unpacked.with_name(f"{unpacked.name}.gz")


def _hub_folder() -> Path:
    return Path(torch.hub.get_dir()) / "datasets"


def _download() -> Path:
    """Download the files by torchvision into torch's hub folder, where they are complete or absent.

    Another process that downloads at the same time does no harm: the first that is done wins.
    """
    from torchvision.datasets import FashionMNIST

    target = _hub_folder() / "FashionMNIST"
    try:
        with new_folder(target) as partial:
            FashionMNIST(str(partial), download=True)  # it checks their checksums
            (partial / "FashionMNIST" / "raw").rename(partial / "raw")
            (partial / "FashionMNIST").rmdir()
    except (OSError, RuntimeError) as error:
        found = find_files()
        if found is None:
            raise InputError(
                f"{NAME} is not on this machine and cannot be downloaded ({one_line(error)}): "
                "install Debian's package dataset-fashion-mnist, or bring torchvision's folder "
                f"FashionMNIST into {_hub_folder()}"
            ) from error
        return found
    return target / "raw"
