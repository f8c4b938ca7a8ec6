"""Links that lead upwards, or in a loop, multiplied images and put them into the wrong class; what
is no regular file made a run wait for ever. Each folder is now read once, and the rest counted."""

import os
from pathlib import Path

import pytest
from helpers.pictures import PLAIN, flat_folder, image_folder, open_folder, png, tar_folder
from helpers.refusals import refused
from torchvision.datasets import ImageFolder

from scalekd.data.source import Source
from scalekd.data.webdataset import find_tars


def images(source: Source) -> list[int]:
    return [split.images for split in source.splits]


def notes(source: Source) -> str:
    return "\n".join(str(note) for note in source.notes)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return image_folder(tmp_path / "images", each=2)


def test_a_loop_in_a_flat_folder_changes_nothing(tmp_path: Path) -> None:
    flat = flat_folder(tmp_path / "flat")
    (flat / "more" / "up").symlink_to("..")
    (flat / "itself").symlink_to("itself")
    (flat / "out").symlink_to(tmp_path)
    source = open_folder(flat)
    assert images(source) == [8]
    assert "2 of the links" in notes(source)


@pytest.mark.parametrize("target", ["..", "../..", "../../..", "../bee", "../../val", "."])
def test_a_link_from_a_class_to_what_is_read_anyway_is_skipped(target: str, root: Path) -> None:
    (root / "train" / "ant" / "link").symlink_to(target)
    source = open_folder(root)
    assert images(source) == [6, 6]
    assert [split.classes for split in source.splits] == [("ant", "bee", "cat")] * 2
    assert "1 of the links" in notes(source)


@pytest.mark.parametrize("target", [".", "..", "../.."])
def test_a_link_upwards_in_the_place_of_a_class_is_none(target: str, root: Path) -> None:
    (root / "train" / "loop").symlink_to(target)
    source = open_folder(root)
    assert [split.classes for split in source.splits] == [("ant", "bee", "cat")] * 2
    assert images(source) == [6, 6]


def test_two_classes_of_one_folder_are_refused(root: Path) -> None:
    (root / "train" / "again").symlink_to("bee")
    with refused(str(root / "train" / "again"), str(root / "train" / "bee"), "same folder"):
        open_folder(root)


def test_images_in_a_linked_folder_are_read(root: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        (root / split / "cat").rename(tmp_path / f"{split} cats")
        (root / split / "cat").mkdir()
        (root / split / "cat" / "here").symlink_to(tmp_path / f"{split} cats")
        (root / split / "dog").symlink_to(tmp_path / "dogs")
    (tmp_path / "dogs").mkdir()
    (tmp_path / "dogs" / "0.png").write_bytes(png(1))
    source = open_folder(root)
    assert images(source) == [7, 7]
    assert source.class_names == ("ant", "bee", "cat", "dog")
    assert source.notes == []


def test_a_whole_split_may_be_a_link(root: Path) -> None:
    for name in ("ant", "bee", "cat"):
        for file in (root / "val" / name).iterdir():
            file.unlink()
        (root / "val" / name).rmdir()
    (root / "val").rmdir()
    (root / "val").symlink_to("train")
    assert images(open_folder(root)) == [6, 6]


def test_the_order_of_images_is_that_of_the_names_of_folders_and_files(root: Path) -> None:
    (root / "train" / "ant" / "b").mkdir()
    (root / "train" / "ant" / "a").mkdir()
    for name in ("b/0.png", "a/1.png", "a/0.png", "10.png", "9.png"):
        (root / "train" / "ant" / name).write_bytes(png(1))
    samples = open_folder(root).training_set(PLAIN, 0).samples.samples  # type: ignore[attr-defined]
    names = [os.path.relpath(file, root / "train") for file in samples.files]
    ant = ["0.jpg", "1.png", "10.png", "9.png", "a/0.png", "a/1.png", "b/0.png"]
    assert names[:7] == [f"ant/{name}" for name in ant]
    torchvisions = [file for file, _ in ImageFolder(str(root / "train")).samples]
    assert samples.files == torchvisions


def test_links_to_images_that_lead_nowhere_are_named(root: Path) -> None:
    link = root / "val" / "cat" / "lost.jpg"
    link.symlink_to("/nowhere/lost.jpg")
    with refused(repr(str(link)), "leads nowhere"):
        open_folder(root)
    link.unlink()
    link.symlink_to(link.name)
    with refused(repr(str(link)), "leads nowhere"):
        open_folder(root)


def test_what_is_no_regular_file_is_skipped_and_counted(root: Path, tmp_path: Path) -> None:
    os.mkfifo(root / "train" / "ant" / "pipe.jpg")
    (root / "train" / "bee" / "endless.png").symlink_to("/dev/zero")
    source = open_folder(root)
    assert images(source) == [6, 6]
    assert "no regular files: 2 of the files" in notes(source)
    flat = flat_folder(tmp_path / "flat")
    os.mkfifo(flat / "pipe.jpg")
    assert images(open_folder(flat)) == [8]


def test_a_loop_and_a_pipe_beside_tar_files_change_nothing(tmp_path: Path) -> None:
    root = tar_folder(tmp_path / "tars")
    expected = find_tars(root)
    (root / "loop").symlink_to(".")
    (root / "again").symlink_to("train")
    os.mkfifo(root / "train" / "pipe.tar")
    assert find_tars(root) == expected
