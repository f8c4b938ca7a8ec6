"""Training on a flat folder of images: features and logits, no task, nothing measured."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from helpers.evaluating import top1_of
from helpers.pictures import flat_folder
from helpers.refusals import refused
from helpers.tiny import tiny
from PIL import Image

from scalekd.data import image_folder as folders
from scalekd.jobs.distill import distill
from scalekd.jobs.preflight import run_preflight
from scalekd.method import LossWeights
from scalekd.networks import InputConfig
from scalekd.recipe import Recipe
from scalekd.runs.checkpoint import load_student
from scalekd.runs.folder import RunFolder
from scalekd.runs.result import Run
from scalekd.training.prepare import prepare

SMALL = InputConfig(3, (32, 48), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
FEATURES = {"tpp_original", "tpp_alternative", "final_original", "final_alternative"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return flat_folder(tmp_path / "flat")


@pytest.fixture
def recipe(root: Path) -> Recipe:
    return tiny(root, teacher_args={"num_classes": 7}, epochs=2)


def summary(out: Path) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return plain


def metrics(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def exported(out: Path) -> torch.nn.Module:
    model: torch.nn.Module = timm.create_model(f"local-dir:{out / 'student'}", pretrained=True)
    return model.eval()


def test_features_and_logits_are_distilled_and_the_loss_is_reported(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = distill(replace(recipe, compare=["logit_kd"]), tmp_path / "out", parallel=1)
    summarised = summary(out)
    losses = "only features and logits are distilled, without a task loss"
    note = f"no labels in {recipe.data.root}: {losses}"
    assert summarised["notes"][0] == {"level": "info", "text": note}
    assert {
        n: summarised[n]
        for n in ("teacher_top1", "student_top1", "logit_kd_top1", "supervised_top1")
    } == {
        "teacher_top1": None,
        "student_top1": None,
        "logit_kd_top1": None,
        "supervised_top1": None,
    }
    assert set(summarised["student_terms"]) == FEATURES | {"logits"}
    assert set(summarised["logit_kd_terms"]) == {"logits"}
    assert summarised["student_loss"] == pytest.approx(sum(summarised["student_terms"].values()))
    assert summarised["student_loss_by_seed"] == {"1": summarised["student_loss"]}
    for method in ("scalekd", "logit_kd"):
        lines = [m for m in metrics(out) if m["method"] == method]
        assert (lines[-1]["step"], lines[-1]["steps"]) == (4, 4)
        assert {m["top1"] for m in lines} == {None}
    printed = capsys.readouterr().out
    assert f"note: {note}" in printed
    assert "scalekd seed 1: step 4/4" in printed
    assert f"loss {summarised['student_loss']:.4f} after 4 steps" in printed
    assert f"{summarised['student_loss']:.3f}" in printed
    assert "top-1" not in printed
    assert exported(out).num_classes == 7
    with Image.open(out / "curves.png") as picture:
        picture.load()


def test_a_teacher_without_classifier_gives_a_student_without_one(
    recipe: Recipe, tmp_path: Path
) -> None:
    out = distill(replace(recipe, teacher_args={"num_classes": 0}), tmp_path / "out", parallel=1)
    summarised = summary(out)
    note = f"no labels in {recipe.data.root}: only features are distilled, without a task loss"
    assert {"level": "info", "text": note} in summarised["notes"]
    assert set(summarised["student_terms"]) == FEATURES
    student, spec = load_student(RunFolder(out).checkpoint(Run("scalekd", 1)))
    loaded = exported(out)
    assert loaded.num_classes == student.num_classes == spec.classes == 0
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(loaded(images), student(images))


@pytest.mark.parametrize(
    ("weights", "student_args", "classes"),
    [(None, {}, 7), (LossWeights(logits=0), {}, 0), (None, {"num_classes": 5}, 5)],
    ids=["with logits", "without logits", "as student_args set it"],
)
def test_the_students_classifier_has_the_classes_it_can_learn_unless_set(
    weights: LossWeights | None, student_args: dict[str, Any], classes: int, recipe: Recipe
) -> None:
    pair = run_preflight(prepare(replace(recipe, weights=weights, student_args=student_args)))
    plain = timm.create_model("test_resnet", num_classes=classes)
    assert pair.student_parameters == sum(p.numel() for p in plain.parameters())
    assert (pair.teacher_top1, pair.labels) == (None, False)
    untrained = [
        n for n in pair.notes if "nothing trains the student's classifier of 5 classes" in n.text
    ]
    assert len(untrained) == (classes == 5)


def test_a_note_names_logits_as_the_only_loss(recipe: Recipe) -> None:
    notes = run_preflight(prepare(replace(recipe, weights=LossWeights(0, 0, 0, 0, 0.5)))).notes
    assert notes[0].text.endswith("only logits are distilled, without a task loss")
    assert "features" not in notes[0].text


@pytest.mark.parametrize(
    ("changes", "message_parts"),
    [
        ({"compare": ["supervised"]}, ["compare", "supervised", "labels"]),
        ({"compare": ["ofa"]}, ["compare", "ofa", "labels"]),
        ({"method": "ofa"}, ["method is ofa", "labels"]),
        ({"label_smoothing": 0.1}, ["label_smoothing is 0.1", "labels"]),
        (
            {"compare": ["logit_kd"], "teacher_args": {"num_classes": 0}},
            ["compare has logit_kd", "no classifier"],
        ),
        (
            {"weights": LossWeights(0, 0, 0, 0, 0)},
            ["nothing to learn"],
        ),
    ],
    ids=[
        "supervised",
        "OFA-KD beside",
        "OFA-KD",
        "smoothing",
        "logits of a headless teacher",
        "nothing",
    ],
)
def test_settings_that_need_labels_or_leave_no_loss_are_refused(
    changes: dict[str, Any], message_parts: list[str], recipe: Recipe, tmp_path: Path
) -> None:
    with refused(*message_parts):
        distill(replace(recipe, **changes), tmp_path / "out", parallel=1)
    assert not (tmp_path / "out").exists()


def test_settings_that_need_labels_are_refused_before_an_image_is_read(
    recipe: Recipe, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(_: str) -> None:
        raise AssertionError

    monkeypatch.setattr(folders, "read_image_file", read)
    with refused("supervised"):
        run_preflight(prepare(replace(recipe, compare=["supervised"])))
    with refused("no labels", str(root), "val/CLASS"):
        top1_of("test_resnet", recipe.data, "random")


def test_settings_of_a_run_without_labels_survive_yaml(recipe: Recipe) -> None:
    plain = recipe.as_dict()
    assert yaml.safe_load(yaml.safe_dump(plain)) == plain
