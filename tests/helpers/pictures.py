"""Sources of images made of real files: class folders, flat folders and tar files."""

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from scalekd.data.open import open_source
from scalekd.data.source import Source
from scalekd.networks import InputConfig
from scalekd.networks.input_config import normalize_bytes
from scalekd.recipe import Data

SMALL = InputConfig(3, (32, 32), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
"""The input of a small student."""

PLAIN = InputConfig(3, (8, 8), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
"""The input of a student that is shown grey values as they are."""


def open_folder(root: Path | str, **options: Any) -> Source:
    """The images in `root`, loaded by this process; options are those of `Data`."""
    return open_source(Data(str(root), **{"workers": 0, **options}))


def mean_byte(image: Tensor) -> int:
    """The mean of a training or validation image that was made for the input `PLAIN`."""
    return round(255 * normalize_bytes(image, PLAIN).mean().item())


def image_folder(
    root: Path, classes: tuple[str, ...] = ("ant", "bee", "cat"), each: int = 4, side: int = 64
) -> Path:
    """ROOT/train and ROOT/val with `each` JPEG and PNG files of noise for every class."""
    noise = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for index in range(each):
                pixels = noise.integers(0, 256, (side, side, 3), dtype=np.uint8)
                file = root / split / name / f"{index}.{('jpg', 'png')[index % 2]}"
                Image.fromarray(pixels).save(file)
    return root


def class_folders(
    root: Path, classes: tuple[str, ...] = ("ant", "bee", "cat"), each: int = 20, side: int = 8
) -> Path:
    """ROOT/CLASS with `each` PNG files for every class, each of a grey value of its own."""
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for index in range(each):
            (root / name / f"{index}.png").write_bytes(png((number * each + index) % 256, side))
    return root


def flat_folder(root: Path, count: int = 8, size: tuple[int, int] = (40, 60)) -> Path:
    """Half of `count` JPEG files of noise in ROOT, half in ROOT/more/and more; (height, width)."""
    noise = np.random.default_rng(0)
    (root / "more" / "and more").mkdir(parents=True)
    for index in range(count):
        pixels = noise.integers(0, 256, (*size, 3), dtype=np.uint8)
        folder = root if index % 2 else root / "more" / "and more"
        Image.fromarray(pixels).save(folder / f"{index}.jpg")
    return root


def png(value: int, side: int = 8) -> bytes:
    """A grey image of one value."""
    content = io.BytesIO()
    Image.new("RGB", (side, side), (value, value, value)).save(content, "PNG")
    return content.getvalue()


def tar(file: Path, members: dict[str, bytes]) -> Path:
    """A tar of these members by name."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file


def tar_folder(root: Path, tars: int = 3, each: int = 4, classes: int = 3) -> Path:
    """ROOT/train/*.tar and ROOT/val/*.tar of grey PNG, sample i of value and class i % classes."""
    for split in ("train", "val"):
        for number in range(tars):
            members = {}
            for i in range(number * each, (number + 1) * each):
                members |= {f"{i:06}.png": png(i % 256), f"{i:06}.cls": b"%d" % (i % classes)}
            tar(root / split / f"{number:04}.tar", members)
    return root
