"""A teacher's classes are found by name among its own: some of them, in any order, in English."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers.refusals import refused
from helpers.trained_teacher import coloured_folder, fit_teacher
from timm.models import save_for_hf
from torch import Tensor, nn

from scalekd.jobs.preflight import run_preflight
from scalekd.method import LossWeights
from scalekd.recipe import Data, Optim, Recipe
from scalekd.training.class_names import ClassNames
from scalekd.training.prepare import prepare
from scalekd.training.teacher_classes import put_classes_in_order

ALL = ("ant", "bee", "cat", "cow", "dog", "elk", "fox")
DATA = ["fox", "bee", "Dog"]
IMAGES = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))


def imagenet_model() -> Any:
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=1000).eval()
    nn.init.normal_(model.head.weight)
    return model


def logits_after(names: list[str]) -> tuple[Tensor, Tensor, Any]:
    model = imagenet_model()
    with torch.no_grad():
        before = model(IMAGES)
        order = put_classes_in_order(model, None, names)
        return before, model(IMAGES), order


@pytest.mark.parametrize(
    "names",
    [
        ["n02099601", "n01440764", "n07753592"],
        ["golden_retriever", "Tench", "banana"],
        ["Golden-Retriever", "tinca tinca", "n07753592"],
    ],
    ids=["synsets", "English", "mixed"],
)
def test_some_of_imagenets_classes_give_their_columns(names: list[str]) -> None:
    before, after, order = logits_after(names)
    torch.testing.assert_close(after, before[:, [207, 0, 954]])
    assert order.is_known
    assert order.places == (207, 0, 954)
    assert "3 of the model's 1000 classes were taken by the names" in order.notes[0].text


def test_a_name_of_two_classes_is_none() -> None:
    before, after, order = logits_after(["crane", "tench"])
    assert torch.equal(after, before)
    assert order.places is None
    assert "1 of the data's 2 classes: crane" in order.notes[0].text


def test_two_names_of_one_class_are_none() -> None:
    known = ClassNames(("a", "b"), (("x",), ()))
    assert known.find_all(["a", "x", "b"]) == [None, None, 1]


def test_other_classes_than_imagenets_are_no_concern() -> None:
    before, after, order = logits_after(["red", "green"])
    assert torch.equal(after, before)
    assert order.notes == ()


def test_names_that_only_number_the_classes_are_no_names() -> None:
    model = timm.create_model("test_vit", num_classes=2)
    model.pretrained_cfg = {**model.pretrained_cfg, "label_names": ["LABEL_0", "LABEL_1"]}
    assert ClassNames.of_model(model).names == ("LABEL_0", "LABEL_1")
    assert not ClassNames.of_model(model).tell_classes
    assert put_classes_in_order(model, None, ["a", "b"]).notes == ()


def recipe_with_teacher(tmp_path: Path, images: list[str]) -> Recipe:
    """A teacher in a folder that names all its classes, and images of some classes."""
    coloured_folder(tmp_path / "all", ALL)
    teacher = fit_teacher(tmp_path / "all", ALL, img_size=64)
    arguments = {"img_size": 64}
    save_for_hf(
        teacher, tmp_path / "teacher", model_config={"label_names": ALL}, model_args=arguments
    )
    for split in ("train", "val"):
        for name in images:
            target = tmp_path / "images" / split / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(tmp_path / "all" / split / name.lower())
    data = Data(str(tmp_path / "images"), image_size=64, workers=0)
    folder = f"local-dir:{tmp_path / 'teacher'}"
    return Recipe(
        folder,
        "test_resnet",
        data,
        epochs=2,
        batch_size=12,
        teacher_size=(64, 64),
        optim=Optim(warmup_epochs=1),
    )


def test_a_subset_is_distilled_with_logits(tmp_path: Path) -> None:
    prepared = prepare(recipe_with_teacher(tmp_path, DATA))
    pair = run_preflight(prepared)
    assert pair.teacher_top1 == 1
    assert any("3 of the model's 7 classes" in str(note) for note in pair.notes)
    assert prepared.identity["order of the teacher's classes"] == [4, 1, 6]


def test_classes_without_a_name_in_the_teacher_leave_logits_out(tmp_path: Path) -> None:
    recipe = recipe_with_teacher(tmp_path, DATA)
    (tmp_path / "images" / "train" / "bee").rename(tmp_path / "images" / "train" / "wasp")
    (tmp_path / "images" / "val" / "bee").rename(tmp_path / "images" / "val" / "wasp")
    pair = run_preflight(prepare(recipe))
    (warning,) = [str(note) for note in pair.notes if "wasp" in str(note)]
    assert "1 of the data's 3 classes: wasp; so logits are not distilled" in warning
    assert "--teacher_classes data" in warning
    assert pair.teacher_top1 is None
    with refused("weights.logits is 0.5", "wasp", "set it to 0"):
        prepare(replace(recipe, weights=LossWeights()))
