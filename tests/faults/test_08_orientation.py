"""The EXIF orientation of an image was followed by no source, though image viewers and Hugging
Face's library follow it. Now every source turns an image upright."""

import io
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from helpers.pictures import PLAIN, image_folder, open_folder, tar
from PIL import Image, ImageOps

from scalekd.data.decoding import decode_image


def encoded(orientation: Any, format: str = "PNG") -> bytes:
    """An image whose left half is black and whose right half is white, to be turned."""
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:, 4:] = 255
    pixels[0, 0] = (255, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format, exif=exif, **({"quality": 100}))
    return content.getvalue()


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_as_pillow_turns_it(orientation: int, format: str) -> None:
    content = encoded(orientation, format)
    with Image.open(io.BytesIO(content)) as image:
        expected = ImageOps.exif_transpose(image).convert("RGB")
    assert decode_image(content, "it").tobytes() == expected.tobytes()


def test_damaged_metadata_and_unknown_orientations_change_nothing() -> None:
    upright = decode_image(encoded(1, "JPEG"), "it")
    for orientation in (0, 9):
        assert decode_image(encoded(orientation, "JPEG"), "it").tobytes() == upright.tobytes()
    content = encoded(6, "JPEG")
    damaged = content.replace(b"Exif\0\0MM\0*", b"Exif\0\0MM\0*"[:6] + b"\xff" * 4)
    assert decode_image(damaged, "it").tobytes() == upright.tobytes()


def test_every_source_turns_its_images(tmp_path: Path) -> None:
    content = encoded(6)
    image_folder(tmp_path / "folders", each=1)
    for file in (tmp_path / "folders").rglob("*.jpg"):
        file.with_suffix(".png").write_bytes(content)
        file.unlink()
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "a.png").write_bytes(content)
    for split in ("train", "val"):
        members = {"a.png": content, "a.cls": b"0", "b.png": content, "b.cls": b"1"}
        tar(tmp_path / "tars" / split / "0.tar", members)
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}
    rows = {"image": [{"bytes": content, "path": None}] * 2, "label": [0, 1]}
    split = datasets.Dataset.from_dict(rows, datasets.Features(features))
    datasets.DatasetDict(train=split, test=split).save_to_disk(tmp_path / "set")
    for root in (*(tmp_path / n for n in ("folders", "flat", "tars")), f"hf:{tmp_path / 'set'}"):
        opened = open_folder(root)
        images = [opened.training_set(PLAIN, 0).samples.read(0)[0]]  # type: ignore[attr-defined]
        if opened.validation_set is not None:
            image = opened.validation_set(PLAIN)[0][0]
            assert image[:, 0, :4].float().mean() < 128 < image[:, -1, 4:].float().mean()
        for image in images:
            assert image.getpixel((7, 0)) == (255, 0, 0), root
            assert image.getpixel((1, 6)) == (255, 255, 255)
