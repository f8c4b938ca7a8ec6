"""A start did not tell how many classes and images each split has, so that a folder too many passed
unseen. Each source now has this at hand."""

from pathlib import Path

import datasets
from helpers.pictures import flat_folder, image_folder, open_folder, png, tar_folder

from scalekd.data.open import open_source
from scalekd.data.source import Split
from scalekd.digits import images as digits
from scalekd.recipe import Data


def test_class_folders_have_their_classes_and_images_in_each_split(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "images", ("bee", "Ant"), each=2)
    assert open_folder(root).splits == (
        Split("train", 4, ("Ant", "bee")),
        Split("val", 4, ("Ant", "bee")),
    )


def test_a_flat_folder_has_images_without_classes(tmp_path: Path) -> None:
    assert open_folder(flat_folder(tmp_path / "flat")).splits == (Split("train", 8, ()),)


def test_tar_files_have_their_labels_as_classes(tmp_path: Path) -> None:
    root = tar_folder(tmp_path / "tars")
    assert open_folder(root).splits == (
        Split("train", 12, ("0", "1", "2")),
        Split("val", 12, ("0", "1", "2")),
    )


def test_a_hugging_face_dataset_has_the_classes_of_its_label(tmp_path: Path) -> None:
    names = ["ant", "bee"]
    rows = {"image": [{"bytes": png(1), "path": None}] * 3, "label": [0, 1, 0]}
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
    split = datasets.Dataset.from_dict(rows, datasets.Features(features))
    datasets.DatasetDict(train=split, test=split).save_to_disk(tmp_path / "set")
    assert open_folder(f"hf:{tmp_path / 'set'}").splits == (
        Split("train", 3, ("ant", "bee")),
        Split("test", 3, ("ant", "bee")),
    )


def test_the_digits_have_ten_classes_and_as_many_test_images_as_they_say() -> None:
    train, test = open_source(Data("digits")).splits
    assert train == Split("train", 4_000, tuple("0123456789"))
    assert test == Split("test", len(digits.build_test_set()), tuple("0123456789"))
