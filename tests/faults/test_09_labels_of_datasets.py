"""A Hugging Face dataset whose classes were integers or strings, and no ClassLabel, was trained
without labels. Its values are the classes, by name."""

from pathlib import Path
from typing import Any

import datasets
import pytest
from helpers.pictures import PLAIN, open_folder, png
from helpers.refusals import refused

from scalekd.data.source import Source


def opened(root: Path, train: dict[str, list[Any]], test: dict[str, list[Any]]) -> Source:
    """A dataset of grey images, number i of value i."""

    def split(columns: dict[str, list[Any]]) -> datasets.Dataset:
        (count,) = {len(values) for values in columns.values()}
        images = [{"bytes": png(i), "path": None} for i in range(count)]
        rows = datasets.Dataset.from_dict({"image": images, **columns})
        return rows.cast_column("image", datasets.Image())

    datasets.DatasetDict(train=split(train), test=split(test)).save_to_disk(root)
    return open_folder(f"hf:{root}")


@pytest.mark.parametrize(
    ("train", "test", "names"),
    [
        ([7, 10, 9], [9, 7], ("7", "9", "10")),
        (["b", "c", "a"], ["a", "b"], ("a", "b", "c")),
        ([True, False, True], [False, True], ("False", "True")),
    ],
    ids=["integers", "strings", "truth values"],
)
@pytest.mark.parametrize("column", ["label", "Class"])
def test_the_values_of_a_label_are_the_classes(
    column: str, train: list[Any], test: list[Any], names: tuple[str, ...], tmp_path: Path
) -> None:
    source = opened(tmp_path / "set", {column: train}, {column: test})
    assert source.classes == len(names)
    assert source.class_names == names
    assert f"{len(names)} values of its feature {column}" in source.notes[0].text
    assert source.validation_set is not None
    for split, values in (
        (source.training_set(PLAIN, 0), train),
        (source.validation_set(PLAIN), test),
    ):
        assert [names[split[i][1]] for i in range(len(values))] == list(map(str, values))


def test_a_value_that_only_the_validation_split_has_is_refused(tmp_path: Path) -> None:
    with refused("different classes", "c"):
        opened(tmp_path / "set", {"label": ["a", "b"]}, {"label": ["a", "c"]})


def test_a_missing_value_is_refused(tmp_path: Path) -> None:
    with refused("1 of the 3 images of the split train", "number 1"):
        opened(tmp_path / "set", {"label": ["a", None, "b"]}, {"label": ["a"]})


@pytest.mark.parametrize("values", [[0.5, 1.5], [[1], [1, 2]]], ids=["floats", "lists"])
def test_a_label_that_is_no_class_is_refused_with_a_remedy(
    values: list[Any], tmp_path: Path
) -> None:
    with refused("the feature label", "class_encode_column", "remove_columns"):
        opened(tmp_path / "set", {"label": values}, {"label": values})


def test_two_features_that_may_be_the_label_are_refused(tmp_path: Path) -> None:
    both = {"label": [0, 1], "category": ["a", "b"]}
    with refused("label: Value, category: Value", "remove_columns"):
        opened(tmp_path / "set", both, both)


def test_a_note_says_how_to_train_with_labels_of_another_name(tmp_path: Path) -> None:
    source = opened(tmp_path / "set", {"species": ["a", "b"]}, {"species": ["a", "b"]})
    assert source.classes is None
    assert "rename_column" in source.notes[0].text
