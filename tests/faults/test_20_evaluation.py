"""Evaluation needed images to train on, and all classes of the model; a class without validation
images stopped training with advice that led in a circle."""

import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import pytest
import timm
from helpers.evaluating import top1_of
from helpers.pictures import SMALL, flat_folder, image_folder, open_folder, png, tar, tar_folder
from helpers.refusals import refused
from timm.models import save_for_hf

from scalekd.data.open import open_validation
from scalekd.evaluation.classes import match_classes
from scalekd.evaluation.opened_model import open_model
from scalekd.recipe import Data

NAMES = ("ant", "bee", "cat")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return image_folder(tmp_path / "images")


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A folder of a model of three classes, in an order of its own, with their names."""
    network = timm.create_model("test_resnet", num_classes=3)
    save_for_hf(network, tmp_path / "model", model_args={})
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    names = ["cat", "ant", "bee"]
    config |= {"label_names": names}
    config["pretrained_cfg"] |= {"label_names": names}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    return str(tmp_path / "model")


def accuracy(model: str, root: Path | str) -> float:
    return top1_of(model, Data(str(root), 64))


@pytest.mark.parametrize("name", ["val", "validation", "valid", "test", "."])
def test_validation_images_are_enough(name: str, model: str, root: Path, tmp_path: Path) -> None:
    expected = accuracy(model, root)
    alone = tmp_path / "alone" / name
    shutil.copytree(root / "val", alone)
    assert accuracy(model, tmp_path / "alone") == expected


def test_training_images_are_not_decoded(model: str, root: Path) -> None:
    for file in (root / "train").rglob("*.*"):
        file.write_bytes(b"no image")
    accuracy(model, root)


def test_some_of_the_models_classes_are_measured_by_name(model: str, root: Path) -> None:
    opened = open_model(model)
    assert match_classes(opened, NAMES, "").logits == (1, 2, 0)
    assert match_classes(opened, ("cat", "bee"), "").logits == (0, 2)
    rights = []
    for name in NAMES:
        one = root.parent / name
        shutil.copytree(root / "val" / name, one / "val" / name)
        rights.append(accuracy(model, one))
    assert accuracy(model, root) == pytest.approx(sum(rights) / 3)


def test_names_that_the_model_has_not_are_refused(model: str, root: Path) -> None:
    (root / "val" / "ant").rename(root / "val" / "cow")
    with refused("1 of the 3 classes", "cow", model):
        accuracy(model, root)


def test_other_names_of_as_many_classes_are_taken_by_number(model: str, tmp_path: Path) -> None:
    accuracy(model, tar_folder(tmp_path / "tars"))


def test_a_subset_for_a_model_without_names_is_refused(root: Path, tmp_path: Path) -> None:
    save_for_hf(timm.create_model("test_resnet", num_classes=5), tmp_path / "other")
    with refused("5 classes", "3", "label_names", "it has none"):
        accuracy(str(tmp_path / "other"), root)


def test_imagenets_classes_are_known_by_name() -> None:
    opened = open_model("test_resnet", weights="random")
    assert match_classes(opened, ("n01440764", "n15075141"), "").logits == (0, 999)


def test_tar_files_and_datasets_of_validation_images_alone_are_evaluated(
    model: str, tmp_path: Path
) -> None:
    root = tar_folder(tmp_path / "tars")
    expected = accuracy(model, root)
    shutil.rmtree(root / "train")
    assert accuracy(model, root) == expected
    (root / "val").rename(root / "more")
    assert accuracy(model, root) == expected
    rows = {"image": [{"bytes": png(i), "path": None} for i in range(3)], "label": [0, 1, 2]}
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(NAMES))}
    split = datasets.Dataset.from_dict(rows, datasets.Features(features))
    datasets.DatasetDict(test=split).save_to_disk(tmp_path / "set")
    assert 0 <= accuracy(model, f"hf:{tmp_path / 'set'}") <= 1


def test_training_images_alone_are_no_images_to_evaluate_on(root: Path, tmp_path: Path) -> None:
    shutil.rmtree(root / "val")
    with refused("none to evaluate on", "--data.val_share", "val/CLASS", str(root / "train")):
        open_validation(Data(str(root)))
    tars = tar_folder(tmp_path / "tars")
    shutil.rmtree(tars / "val")
    with refused("none to evaluate on", "val/"):
        open_validation(Data(str(tars)))


def unlabelled_tars(root: Path) -> Path:
    return tar(root / "0.tar", {"a.png": png(1)}).parent


@pytest.mark.parametrize("make", [flat_folder, unlabelled_tars])
def test_images_without_labels_are_refused(make: Any, tmp_path: Path) -> None:
    with refused("no labels to evaluate with"):
        open_validation(Data(str(make(tmp_path / "images"))))


@pytest.mark.parametrize("empty", [True, False], ids=["empty", "missing"])
def test_a_class_without_validation_images_is_trained_and_noted(empty: bool, root: Path) -> None:
    shutil.rmtree(root / "val" / "bee")
    if empty:
        (root / "val" / "bee").mkdir()
    source = open_folder(root)
    assert source.classes == 3
    assert [note.text for note in source.notes] == [
        "val has no image of 1 of the 3 classes, for example bee"
    ]
    assert source.validation_set is not None
    images = source.validation_set(SMALL)
    assert {images[i][1] for i in range(8)} == {0, 2}


def test_a_validation_class_that_is_not_trained_is_refused(root: Path) -> None:
    shutil.copytree(root / "val" / "bee", root / "val" / "cow")
    with refused("different classes", "cow"):
        open_folder(root)
