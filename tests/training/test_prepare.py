"""What a recipe's runs share."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.pictures import image_folder
from helpers.tiny import tiny

from scalekd import FrozenTeacher, ScaleKD
from scalekd.baselines import Supervised
from scalekd.data.source import Source
from scalekd.jobs.distill import distill
from scalekd.runs.result import Run
from scalekd.training.prepare import prepare, prepare_on_meta


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("prepare") / "images")


def test_a_job_of_several_methods_and_seeds_builds_its_teacher_once(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[object] = []
    build = FrozenTeacher.__init__

    def count(self: FrozenTeacher, *arguments: object) -> None:
        built.append(self)
        build(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(FrozenTeacher, "__init__", count)
    recipe = tiny(images, compare=["supervised"], seeds=[1, 2])
    distill(recipe, tmp_path / "out", parallel=1)
    assert len(built) == 1


def test_every_method_of_a_seed_starts_from_the_same_student(images: Path) -> None:
    prepared = prepare(tiny(images))
    distilled, supervised = (
        prepared.build_learner(Run(method, 1)) for method in ("scalekd", "supervised")
    )
    assert isinstance(distilled, ScaleKD)
    assert isinstance(supervised, Supervised)
    assert distilled.teacher is prepared.frozen_teacher
    for one, other in zip(
        distilled.student.parameters(), supervised.student.parameters(), strict=True
    ):
        assert torch.equal(one, other)


def test_a_pair_on_the_meta_device_has_the_shapes_of_the_real_one(images: Path) -> None:
    recipe = tiny(images)
    real = prepare(recipe).build_learner(Run("scalekd", 1))
    outline = prepare_on_meta(recipe, Source.without_images(classes=3)).build_pair_on_meta()
    assert isinstance(real, ScaleKD)
    assert outline.teacher.shapes == real.teacher.shapes
    assert outline.student_extractor.shapes == real.student_extractor.shapes
    shapes = {name: tensor.shape for name, tensor in real.state_dict().items()}
    assert {name: tensor.shape for name, tensor in outline.state_dict().items()} == shapes
    assert all(tensor.is_meta for tensor in outline.state_dict().values())
    assert all(tensor.is_meta for tensor in outline.teacher.model.state_dict().values())


def test_a_student_has_the_teachers_classes_or_its_own_where_no_images_are_meant() -> None:
    cases: tuple[tuple[dict[str, Any], int], ...] = (
        ({}, 1000),
        ({"teacher_args": {"num_classes": 7}}, 7),
        ({"teacher_args": {"num_classes": 7}, "student_args": {"num_classes": 5}}, 5),
    )
    for settings, classes in cases:
        prepared = prepare_on_meta(replace(tiny("nowhere"), **settings))
        assert prepared.build_pair_on_meta().student.num_classes == classes
