"""Images of all kinds become what an image viewer shows: RGB with 8 bits a channel, upright."""

import io
from pathlib import Path

import numpy as np
import pytest
from helpers.pictures import PLAIN, class_folders, open_folder
from PIL import Image

from scalekd.data.decoding import decode_image

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    content = io.BytesIO()
    image.save(content, form, **options)
    return content.getvalue()


def shown(image: Image.Image, form: str, **options: object) -> tuple[int, ...]:
    """The colour of the first pixel of an image that was stored and read."""
    decoded = decode_image(encoded(image, form, **options), "x")
    assert decoded.mode == "RGB"
    pixel = decoded.getpixel((0, 0))
    assert isinstance(pixel, tuple)
    return pixel


@pytest.mark.parametrize("form", ["JPEG", "TIFF"])
def test_cmyk_is_converted(form: str) -> None:
    cyan = shown(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), form)
    assert np.allclose(cyan, (0, 255, 255), atol=3)
    black = shown(Image.new("CMYK", (8, 8), (0, 0, 0, 255)), form)
    assert np.allclose(black, 0, atol=3)


@pytest.mark.parametrize("form", ["PNG", "GIF", "BMP"])
def test_a_palette_is_looked_up(form: str) -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([*RED, *GREEN])
    assert shown(image, form) == GREEN


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_what_is_transparent_is_white(mode: str) -> None:
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0)).convert(mode)
    assert shown(image, "TIFF" if mode == "PA" else "PNG") == WHITE


def test_half_transparent_colours_are_mixed_with_white() -> None:
    pixel = shown(Image.new("RGBA", (8, 8), (0, 0, 0, 128)), "PNG")
    assert np.allclose(pixel, 127, atol=1)
    assert shown(Image.new("RGBA", (8, 8), (*BLUE, 255)), "PNG") == BLUE


def test_a_transparent_colour_of_a_palette_is_white() -> None:
    image = Image.new("P", (8, 8), 0)
    image.putpalette([*RED, *GREEN])
    assert shown(image, "PNG", transparency=0) == WHITE
    assert shown(image, "GIF", transparency=0) == WHITE
    assert shown(image, "PNG", transparency=1) == RED


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_is_shown(form: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]
    options = {"lossless": True} if form == "WEBP" else {}
    pixel = shown(frames[0], form, save_all=True, append_images=frames[1:], **options)
    assert pixel == RED


def test_an_orientation_is_applied() -> None:
    image = Image.new("RGB", (16, 8), WHITE)
    image.paste(RED, (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees
    decoded = decode_image(encoded(image, "PNG", exif=exif), "x")
    assert decoded.size == (8, 16)
    assert (decoded.getpixel((4, 2)), decoded.getpixel((4, 14))) == (RED, WHITE)


def test_grey_values_of_16_bits_are_scaled() -> None:
    values = np.full((8, 8), 40_000, np.uint16)
    assert shown(Image.fromarray(values), "PNG") == (round(40_000 / 257),) * 3


@pytest.mark.parametrize("names", [("Käfer", "蜂"), ("муравей", "قطة"), ("🐜", "a b#c%d")])
def test_classes_have_names_in_any_script(names: tuple[str, str], tmp_path: Path) -> None:
    assert set(open_folder(class_folders(tmp_path / "images", names, 4)).class_names) == set(names)


def test_stray_files_are_left_out_and_counted(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "images")
    for name in ("Thumbs.db", ".DS_Store", "notes.txt", "0.xmp", "0.json", "desktop.ini"):
        (root / "bee" / name).write_bytes(b"stray")
    source = open_folder(root)
    assert sum(split.images for split in source.splits) == 60
    assert "4 of the files" in str(source.notes[-1])
    assert source.validation_set is not None
    assert len(source.training_set(PLAIN, 0)[0]) == 2
