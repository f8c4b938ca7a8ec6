"""A student that starts from weights: files, folders, other classes, and what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers.pictures import image_folder
from helpers.refusals import refused
from torch import nn

from scalekd.networks.student import export_student
from scalekd.recipe import Data, Recipe, Student
from scalekd.runs.result import Run
from scalekd.training.prepare import Prepared, prepare

RUN = Run("supervised", seed=1)
CLASSES = ("ant", "bee", "cat")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("images"))


def recipe_for(images: Path, weights: Path | str, **changes: Any) -> Recipe:
    data = Data(str(images), image_size=64, workers=0)
    return replace(
        Recipe(None, "test_resnet", data, student_weights=str(weights), epochs=6), **changes
    )


def trained(seed: int = 0, **arguments: Any) -> nn.Module:
    torch.manual_seed(seed)
    model: nn.Module = timm.create_model("test_resnet", **arguments)
    return model


def student_of(prepared: Prepared) -> dict[str, torch.Tensor]:
    return prepared.build_learner(RUN).student.state_dict()


def without_head(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: t for n, t in model.state_dict().items() if not n.startswith("fc.")}


def assert_same(state: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, tensor in expected.items():
        assert torch.equal(state[name], tensor), name


def test_all_methods_and_students_start_from_the_file(images: Path, tmp_path: Path) -> None:
    model = trained(num_classes=3)
    torch.save({"state_dict": model.state_dict(), "epoch": 7}, tmp_path / "c.pth.tar")
    teacher = {"teacher": "test_vit", "teacher_weights": "random", "teacher_size": (64, 64)}
    recipe = recipe_for(images, tmp_path / "c.pth.tar", **teacher)
    recipe = replace(recipe, compare=["supervised"], teacher_args={"img_size": 64})
    other = Student("test_resnet", folder="b", student_weights=str(tmp_path / "c.pth.tar"))
    prepared = prepare(recipe)
    for method in ("scalekd", "supervised"):
        learner = prepared.build_learner(Run(method, seed=1))
        assert_same(learner.student.state_dict(), model.state_dict())
        assert any("the student starts from" in str(note) for note in learner.notes)
    several = replace(recipe, more_students=[other]).per_student()
    assert several["b"].student_weights == str(tmp_path / "c.pth.tar")


def test_a_classifier_of_other_classes_is_new_and_random_by_the_seed(
    images: Path, tmp_path: Path
) -> None:
    model = trained(num_classes=7)
    torch.save(model.state_dict(), tmp_path / "c.pth")
    prepared = prepare(recipe_for(images, tmp_path / "c.pth"))
    assert_same(student_of(prepared), without_head(model))
    (note,) = [str(n) for n in prepared.build_learner(RUN).notes]
    tensors = len(model.state_dict())
    assert f"{tensors - 2} of {tensors} tensors" in note
    assert "the classifier of 3 classes is new, because the weights are for 7" in note
    heads = [
        prepared.build_learner(Run("supervised", seed)).student.fc.weight for seed in (1, 1, 2)
    ]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_a_folder_gives_weights_normalisation_and_classes_by_name(
    images: Path, tmp_path: Path
) -> None:
    model = trained(num_classes=3, pretrained_cfg_overlay={"mean": (0.1,) * 3, "std": (0.2,) * 3})
    export_student(model, tmp_path / "run" / "student", {}, ("cat", "ant", "bee"))
    prepared = prepare(recipe_for(images, tmp_path / "run"))  # a run folder's student
    state = student_of(prepared)
    assert_same(state, without_head(model))
    assert torch.equal(state["fc.weight"], model.fc.weight[[1, 2, 0]])
    assert prepared.input.mean == (0.1,) * 3
    assert prepared.input.std == (0.2,) * 3
    data = Data(str(images), image_size=64, workers=0, mean=[0.5] * 3)
    own = prepare(recipe_for(images, tmp_path / "run" / "student", data=data))
    assert own.input.mean == (0.5,) * 3
    assert own.input.std == (0.2,) * 3


def test_as_many_classes_of_other_names_are_other_classes(images: Path, tmp_path: Path) -> None:
    model = trained(num_classes=3)
    export_student(model, tmp_path / "student", {}, ("cow", "dog", "emu"))
    prepared = prepare(recipe_for(images, tmp_path / "student"))
    (note,) = [str(n) for n in prepared.build_learner(RUN).notes]
    assert "new, because that of the weights is for cow ... emu" in note
    assert not torch.equal(student_of(prepared)["fc.weight"], model.fc.weight)


def test_timms_weights_are_asked_for(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network the refusal shows that timm was asked for the student's."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with refused("student_weights is 'pretrained'", "test_resnet", "a file"):
        prepare(recipe_for(images, "pretrained"))


def test_other_weights_make_another_run(images: Path, tmp_path: Path) -> None:
    for number in (1, 2):
        torch.save(trained(number, num_classes=3).state_dict(), tmp_path / f"{number}.pth")
    first, second = (prepare(recipe_for(images, tmp_path / f"{n}.pth")).identity for n in (1, 2))
    assert first["start of the student"] != second["start of the student"]
    assert prepare(recipe_for(images, "random")).identity["start of the student"] is None


def test_unsuitable_weights_are_refused(images: Path, tmp_path: Path) -> None:
    torch.save(timm.create_model("test_vit", num_classes=3).state_dict(), tmp_path / "vit.pth")
    with refused("student_weights is", "vit.pth", "do not fit test_resnet", "missing"):
        prepare(recipe_for(images, tmp_path / "vit.pth"))
    export_student(timm.create_model("test_vit", num_classes=3), tmp_path / "vit", {})
    with refused("student_weights is", "test_vit", "--student test_vit"):
        prepare(recipe_for(images, tmp_path / "vit"))
    with refused("student_weights is", "missing.pth"):
        prepare(recipe_for(images, tmp_path / "missing.pth"))
    channels = {"channels": (32, 32, 64, 128)}
    export_student(trained(num_classes=3, **channels), tmp_path / "other", channels)
    with refused("do not fit the student test_resnet", "of another shape: layer2"):
        prepare(recipe_for(images, tmp_path / "other"))
    prepare(recipe_for(images, tmp_path / "other", student_args=channels))
