"""Image folders made of real files, and what every refusal must look like."""

from pathlib import Path

import numpy as np
from PIL import Image


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


def flat_folder(root: Path, count: int = 8, size: tuple[int, int] = (40, 60)) -> Path:
    """Half of `count` JPEG files of noise in ROOT, half in ROOT/more/and more; (height, width)."""
    noise = np.random.default_rng(0)
    (root / "more" / "and more").mkdir(parents=True)
    for index in range(count):
        pixels = noise.integers(0, 256, (*size, 3), dtype=np.uint8)
        folder = root if index % 2 else root / "more" / "and more"
        Image.fromarray(pixels).save(folder / f"{index}.jpg")
    return root
