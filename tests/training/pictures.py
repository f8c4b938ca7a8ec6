"""Image folders made of real files, and what every refusal must look like."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scalekd.errors import InputError


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


@contextmanager
def refusal(*said: str) -> Iterator[None]:
    """`with refusal("5", "24"):` an InputError of one line that holds these pieces."""
    with pytest.raises(InputError) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    assert all(piece in message for piece in said), message
