"""Pictures of more than 8 bits a channel became all white or black, and accuracy chance.

They are scaled to 8 bits where their range is known, and refused by name where it is not, from
every source."""

import io
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import timm
from helpers.evaluating import top1_of
from helpers.pictures import PLAIN, image_folder, open_folder, png, tar
from helpers.refusals import refused
from helpers.warned import warned
from PIL import Image, TiffImagePlugin
from timm.models import save_for_hf

from scalekd.data.decoding import decode_image
from scalekd.data.source import Source
from scalekd.recipe import Data

GREY = 100


def encoded(values: np.ndarray[Any, Any], format: str, **options: Any) -> bytes:
    content = io.BytesIO()
    Image.fromarray(values).save(content, format, **options)
    return content.getvalue()


def flat(dtype: Any, value: float, side: int = 8) -> np.ndarray[Any, Any]:
    return np.full((side, side), value, dtype)


SIXTEEN = flat(np.uint16, GREY * 257)


def twelve_bits() -> bytes:
    """A TIFF of two 12-bit values of 0 to 4095 in each three bytes."""
    value = round(GREY * 4095 / 255)
    pair = bytes((value >> 4, (value & 15) << 4 | value >> 8, value & 255))
    strip = pair * 32
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, content in ((256, 8), (257, 8), (258, 12), (259, 1), (262, 1), (277, 1), (278, 8)):
        tags[tag] = content
    tags[279] = len(strip)
    tags[273] = 0  # from the end of the tags
    return b"II*\0\x08\0\0\0" + tags.tobytes(8) + strip


def white_is_zero() -> bytes:
    return encoded(65_535 - SIXTEEN, "TIFF", tiffinfo={262: 0})


@pytest.mark.parametrize(
    "content",
    [
        encoded(SIXTEEN, "PNG"),
        encoded(SIXTEEN, "TIFF"),
        encoded(SIXTEEN, "TIFF", compression="tiff_lzw"),
        encoded(SIXTEEN.astype(">u2"), "TIFF"),
        encoded(SIXTEEN, "PPM"),
        b"P2 8 8 4095 " + b"%d " % round(GREY * 4095 / 255) * 64,
        b"P5 8 8 65535 " + (GREY * 257).to_bytes(2, "big") * 64,
        encoded(SIXTEEN, "JPEG2000"),
        twelve_bits(),
        white_is_zero(),
    ],
    ids=["PNG", "TIFF", "LZW", "big-endian", "PGM", "12-bit PGM", "P5", "JP2", "12-bit TIFF", "0"],
)
def test_more_than_eight_bits_are_scaled_to_eight(content: bytes) -> None:
    image = decode_image(content, "it")
    assert image.mode == "RGB"
    assert image.getpixel((3, 3)) == (GREY, GREY, GREY)


UNKNOWN = {
    "float": encoded(flat(np.float32, 0.5), "TIFF"),
    "int32": encoded(flat(np.int32, 1000), "TIFF"),
    "signed 16": encoded(flat(np.uint16, 1000), "TIFF", tiffinfo={339: 2}),
    "signed 8": encoded(flat(np.uint8, 100), "TIFF", tiffinfo={339: 2}),
    "PFM": b"Pf\n8 8\n-1.0\n" + flat(np.float32, 0.5).tobytes(),
}


@pytest.mark.parametrize("content", UNKNOWN.values(), ids=UNKNOWN)
def test_values_of_an_unknown_range_are_refused(content: bytes) -> None:
    with refused("the image it", "unknown range", "8 or 16"):
        decode_image(content, "it")


def folders(root: Path, content: bytes) -> Source:
    image_folder(root, each=1)
    for file in root.rglob("*.jpg"):
        file.with_suffix(".tif").write_bytes(content)
        file.unlink()
    return open_folder(root)


def flat_folder(root: Path, content: bytes) -> Source:
    root.mkdir()
    (root / "a.tif").write_bytes(content)
    return open_folder(root)


def tars(root: Path, content: bytes) -> Source:
    for split in ("train", "val"):
        members = {"a.tif": content, "a.cls": b"0", "b.tif": content, "b.cls": b"1"}
        tar(root / split / "0.tar", members)
    return open_folder(root)


def hugging_face(root: Path, content: bytes) -> Source:
    rows = {"image": [{"bytes": content, "path": None}] * 2, "label": [0, 1]}
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}
    split = datasets.Dataset.from_dict(rows, datasets.Features(features))
    datasets.DatasetDict(train=split, test=split).save_to_disk(root)
    return open_folder(f"hf:{root}")


@pytest.mark.parametrize("make", [folders, flat_folder, tars, hugging_face])
def test_every_source_scales_and_refuses(make: Any, tmp_path: Path) -> None:
    source = make(tmp_path / "good", encoded(SIXTEEN, "TIFF"))
    image = source.training_set(PLAIN, 0)[0][0]
    assert image.unique().tolist() == [GREY]
    with refused("unknown range"):
        make(tmp_path / "bad", UNKNOWN["float"])


def test_evaluation_refuses_values_of_an_unknown_range(tmp_path: Path) -> None:
    root, model = image_folder(tmp_path / "images", each=1), tmp_path / "model"
    save_for_hf(timm.create_model("test_resnet", num_classes=3), model)
    file = root / "val" / "ant" / "x.tiff"
    file.write_bytes(UNKNOWN["float"])
    with refused(str(file), "unknown range"):
        top1_of(str(model), Data(str(root), 64))


def test_a_warning_tells_of_values_with_fewer_bits_than_their_format(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("scalekd.data.decoding._warned_of_unused_bits", False)
    with warned("nearly black.*4095 of 65535") as messages:
        for _ in range(3):
            decode_image(encoded(flat(np.uint16, 4095), "PNG"), "it")
    assert len(messages) == 1


def test_eight_bits_stay_as_they_are() -> None:
    assert decode_image(png(GREY), "it").getpixel((0, 0)) == (GREY, GREY, GREY)
