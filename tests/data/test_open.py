"""Finding out what `data.root` is, and refusing what is no source of images."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.pictures import flat_folder, image_folder, open_folder, tar_folder
from helpers.refusals import refused
from PIL import Image

from scalekd.data.open import find_layout, open_source
from scalekd.recipe import Data


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return image_folder(tmp_path / "pictures")


@pytest.mark.parametrize(
    ("make", "layout"),
    [
        (image_folder, "class_folders"),
        (flat_folder, "flat_folder"),
        (tar_folder, "webdataset"),
        (lambda _: "digits", "digits"),
        (lambda _: "hf:mnist", "hugging_face"),
    ],
    ids=["class folders", "flat folder", "tar files", "digits", "Hugging Face"],
)
def test_the_layout_of_each_kind_of_source_is_found(
    make: Callable[[Path], object], layout: str, tmp_path: Path
) -> None:
    assert find_layout(Data(str(make(tmp_path / "images")))) == layout


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with refused(str(tmp_path / "nowhere"), "--data.root"):
        open_folder(tmp_path / "nowhere")


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with refused(str(tmp_path), "train/", "val/", "nothing"):
        open_folder(tmp_path)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_folder_with_one_split_is_refused_with_what_it_holds(root: Path, split: str) -> None:
    shutil.rmtree(root / split)
    with refused(str(root), "train/CLASS", "val/CLASS", {"train": "val", "val": "train"}[split]):
        open_folder(root)


def nothing(root: Path) -> None:
    root.mkdir()


def no_image(root: Path) -> None:
    (root / "more").mkdir(parents=True)
    (root / "more" / "notes.txt").touch()


def only_train(root: Path) -> None:
    image_folder(root)
    (root / "val").rename(root / "more")


@pytest.mark.parametrize(
    ("make", "holds"),
    [(nothing, "nothing"), (no_image, "more"), (only_train, "more, train")],
    ids=["nothing", "no image", "train only"],
)
def test_a_folder_of_no_layout_is_refused_with_all_layouts(
    make: Callable[[Path], None], holds: str, tmp_path: Path
) -> None:
    make(tmp_path / "here")
    with refused(str(tmp_path / "here"), "train/CLASS", "val/CLASS", "without labels", holds):
        open_source(Data(str(tmp_path / "here")))


def test_train_and_val_beside_stray_images_are_class_folders(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "pictures", each=1)
    Image.new("RGB", (8, 8)).save(root / "cover.jpg")
    assert open_source(Data(str(root))).classes == 3
