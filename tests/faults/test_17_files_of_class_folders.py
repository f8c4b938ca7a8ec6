"""Stray files in class folders were refused one at a time, and formats that Pillow reads were
refused as well."""

from pathlib import Path

import pytest
from helpers.pictures import PLAIN, image_folder, mean_byte, open_folder, tar
from helpers.refusals import refused
from PIL import Image, features

FORMATS = ["gif", "jfif", "jpe", "webp", "bmp", "tga", "pcx", "jp2", "ico", "qoi", "dds", "ppm"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return image_folder(tmp_path / "images", each=1)


def test_stray_files_are_skipped_and_counted(root: Path) -> None:
    for name in ("notes.txt", "boxes.xml", "labels.CSV", "clip.mp4", "README", "jpg", "a.pdf"):
        (root / "train" / "ant" / name).write_bytes(b"stray")
    for name in ("Thumbs.db", "desktop.ini"):
        (root / "val" / "bee" / name).write_bytes(b"stray")
    source = open_folder(root)
    assert [split.images for split in source.splits] == [3, 3]
    (note,) = source.notes
    assert "no images by their names: 8 of the files" in note.text


def test_a_class_folder_of_nothing_but_stray_files_is_refused(root: Path) -> None:
    for split in ("train", "val"):
        (root / split / "dog").mkdir()
        (root / split / "dog" / "notes.txt").touch()
    with refused(str(root / "train" / "dog"), "no images"):
        open_folder(root)


@pytest.mark.parametrize("ending", FORMATS + ["avif"] * features.check("avif"))
def test_every_format_that_pillow_reads_is_an_image(ending: str, root: Path) -> None:
    file = root / "train" / "ant" / f"1.{ending.upper()}"
    Image.new("RGB", (16, 16), (200, 200, 200)).save(file)
    source = open_folder(root)
    assert [split.images for split in source.splits] == [4, 3]
    image = source.training_set(PLAIN, 0)[1][0]
    assert mean_byte(image) == pytest.approx(200, abs=5)


def test_the_first_picture_of_an_animation_is_read(root: Path) -> None:
    pictures = [Image.new("RGB", (16, 16), (v, v, v)) for v in (50, 250)]
    for ending in ("gif", "webp", "apng"):
        file = root / "train" / "ant" / f"1.{ending}"
        pictures[0].save(file, save_all=True, append_images=pictures[1:])
        image = open_folder(root).training_set(PLAIN, 0)[1][0]
        assert mean_byte(image) == pytest.approx(50, abs=5), ending
        file.unlink()


def test_a_sample_of_a_tar_file_may_have_any_format(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "x.gif")
    content = (tmp_path / "x.gif").read_bytes()
    for split in ("train", "val"):
        members = {"a.gif": content, "a.cls": b"0", "b.jfif": content, "b.cls": b"1"}
        tar(tmp_path / "tars" / split / "0.tar", members)
    assert [split.images for split in open_folder(tmp_path / "tars").splits] == [2, 2]
