"""Folders of image files, one for each class: what they give, and what they refuse."""

from pathlib import Path

import pytest
from helpers.pictures import SMALL, image_folder, open_folder
from helpers.refusals import refused
from PIL import Image


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return image_folder(tmp_path / "pictures")


def test_class_folders_give_their_classes_at_the_students_size(root: Path) -> None:
    opened = open_folder(root)
    assert opened.classes == 3
    assert opened.input is None
    train, validation = opened.training_set(SMALL, 0), opened.validation_set(SMALL)
    assert len(train) == len(validation) == 12  # type: ignore[arg-type]
    for image, _ in (train[0], validation[0]):
        assert image.shape == (3, 32, 32)


def test_grey_and_transparent_files_become_rgb(root: Path) -> None:
    Image.new("L", (40, 30), 100).save(root / "val/ant/0.jpg")
    Image.new("RGBA", (40, 30), (1, 2, 3, 4)).save(root / "val/ant/1.png")
    validation = open_folder(root).validation_set(SMALL)
    assert validation[0][0].shape == validation[1][0].shape == (3, 32, 32)


def test_a_single_class_folder_is_refused(tmp_path: Path) -> None:
    with refused("train", "1 class", "at least 2"):
        open_folder(image_folder(tmp_path / "one", ("ant",)))


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_class_folder_without_images_is_named(root: Path, split: str) -> None:
    (root / split / "dog").mkdir()
    with refused(str(root / split / "dog"), "no images"):
        open_folder(root)


def test_a_class_folder_with_nothing_but_hidden_files_has_no_images(root: Path) -> None:
    for split in ("train", "val"):
        (root / split / "dog").mkdir()
        (root / split / "dog" / ".gitkeep").touch()
    with refused(str(root / "train" / "dog"), "no images"):
        open_folder(root)


def test_a_file_that_is_no_image_by_its_name_is_named(root: Path) -> None:
    (root / "train/bee/notes.txt").write_text("bees")
    with refused(str(root / "train/bee/notes.txt")):
        open_folder(root)


def test_hidden_files_in_a_class_folder_are_ignored(root: Path) -> None:
    (root / "train/bee/.DS_Store").write_bytes(b"\0")
    assert len(open_folder(root).training_set(SMALL, 0)) == 12  # type: ignore[arg-type]


def test_classes_of_only_one_split_are_named(root: Path) -> None:
    (root / "val/cat").rename(root / "val/cow")
    with refused("cat", "cow"):
        open_folder(root)
