"""A complete job on image folders, with networks that timm builds by name."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers.evaluating import top1_of
from helpers.pictures import image_folder
from helpers.refusals import refused
from helpers.tiny import tiny

from scalekd.jobs.distill import distill
from scalekd.networks.student import StudentSpec
from scalekd.recipe import Recipe


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    pictures = image_folder(tmp_path_factory.mktemp("data") / "pictures")
    return tiny(pictures, teacher="vit_tiny_patch16_224", student="resnet10t")


def small(recipe: Recipe, **changes: Any) -> Recipe:
    plain = {"teacher": "test_vit", "student": "test_resnet", "teacher_args": {}, **changes}
    return replace(recipe, data=replace(recipe.data, image_size=None), **plain)


def summary(out: Path) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return plain


def test_a_vit_with_other_classes_is_distilled_into_a_resnet_of_three(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = distill(replace(recipe, compare=["supervised"]), tmp_path / "out", parallel=1)
    lines = [line for line in capsys.readouterr().out.splitlines() if "logit" in line]
    assert len([line for line in lines if "is skipped" in line]) == 1
    assert "1000 classes" in lines[0]
    assert "student 3" in lines[0]
    student = timm.create_model(f"local-dir:{out / 'student'}", pretrained=True).eval()
    assert student.num_classes == 3
    assert student(torch.zeros(1, 3, 64, 64)).shape == (1, 3)
    assert tuple(student.pretrained_cfg["mean"]) == (0.485, 0.456, 0.406)
    summarised = summary(out)
    assert summarised["teacher_top1"] is None
    assert summarised["student_top1"] is not None
    terms = [json.loads(line)["terms"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert all("logits" not in t for t in terms)
    assert top1_of(str(out / "student"), recipe.data) == summarised["student_top1"]


def test_a_teacher_with_the_tasks_classes_is_measured_and_its_logits_distilled(
    recipe: Recipe, tmp_path: Path
) -> None:
    same = small(recipe, teacher_args={"num_classes": 3}, compare=["logit_kd"])
    summarised = summary(distill(same, tmp_path / "out", parallel=1))
    assert summarised["teacher_top1"] is not None
    assert summarised["logit_kd_top1"] is not None
    assert not [note for note in summarised["notes"] if "skipped" in note["text"]]


@pytest.mark.parametrize(("classes", "part"), [(1000, "the student 3"), (0, "no classifier")])
def test_logit_kd_is_refused_if_the_teacher_has_other_classes(
    recipe: Recipe, tmp_path: Path, classes: int, part: str
) -> None:
    other = small(recipe, teacher_args={"num_classes": classes}, compare=["logit_kd"])
    with refused("compare has logit_kd", part):
        distill(other, tmp_path / "out", parallel=1)
    assert not (tmp_path / "out").exists()


def test_random_weights_of_the_teacher_are_noted(recipe: Recipe, tmp_path: Path) -> None:
    summarised = summary(distill(small(recipe), tmp_path / "out", parallel=1))
    assert [note for note in summarised["notes"] if "RANDOM" in note["text"]]


def test_a_teacher_smaller_than_its_student_is_noted(recipe: Recipe, tmp_path: Path) -> None:
    swapped = small(recipe, teacher="test_resnet", student="resnet10t")
    summarised = summary(distill(swapped, tmp_path / "out", parallel=1))
    assert [note for note in summarised["notes"] if "swapped" in note["text"]]


def test_student_args_survive_in_the_students_folder(recipe: Recipe, tmp_path: Path) -> None:
    with_student_args = small(recipe, student_args={"drop_rate": 0.1, "global_pool": "max"})
    out = distill(with_student_args, tmp_path / "out", parallel=1)
    student = timm.create_model(f"local-dir:{out / 'student'}", pretrained=True)
    assert student.drop_rate == 0.1
    assert student.global_pool.pool_type == "max"


def test_a_job_with_a_worker_process_reads_folders(recipe: Recipe, tmp_path: Path) -> None:
    workers = small(recipe)
    workers = replace(workers, data=replace(workers.data, workers=1))
    assert summary(distill(workers, tmp_path / "out", parallel=1))["steps"] == 3


def test_evaluating_on_images_of_other_classes_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    with refused("test_resnet", "1000", "3"):
        top1_of("test_resnet", recipe.data, "random")


def test_evaluating_at_an_impossible_size_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    spec = StudentSpec("test_resnet", {}, 3, None)
    spec.export(spec.build(), tmp_path / "student")
    with refused("data.image_size", "-2"):
        top1_of(str(tmp_path / "student"), replace(recipe.data, image_size=-2))
