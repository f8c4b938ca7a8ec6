"""A student's folder could be "..", so that a training replaced files outside of its --out."""

from pathlib import Path

import pytest
from helpers.refusals import refused

from scalekd.recipe import Data, Recipe, Student
from scalekd.runs.folder import choose_folder

BAD = ["..", ".", "", " ", "/tmp/x", "a/b", "../x", "a\\b", ".hidden", ".lock", "settings.yaml",
       "results.jsonl", "metrics.jsonl", "summary.json", "curves.png", "train.log", "student",
       "Student", "checkpoints", "trackers", "inputs.json", "x\0y", "x\ny", "\x1b[31m", "a" * 256,
       "ä" * 101]  # fmt: skip


@pytest.mark.parametrize("folder", BAD)
def test_the_folder_of_a_student_is_a_name(folder: str) -> None:
    with refused("more_students", "folder"):
        recipe("resnet18", Student("resnet34", folder=folder))


@pytest.mark.parametrize(
    "folder", ["small", "with space", "größe", "v1.2", "a_b-c+d=[1]", "a" * 200]
)
def test_ordinary_names_are_accepted(folder: str) -> None:
    assert folder in recipe("resnet18", Student("resnet34", folder=folder)).per_student()


def test_two_folders_that_are_one_on_some_file_systems_are_refused() -> None:
    with refused("twice"):
        recipe("resnet18", Student("resnet34", folder="Resnet18"))


def test_the_default_folder_of_long_and_odd_names_can_be_created(tmp_path: Path) -> None:
    teacher = "local-dir:/" + "very long/" * 40 + "[/bold]\x1b..ü"
    folder = choose_folder(Recipe(teacher, "resnet18", Data("x")))
    assert folder.parent == Path("runs")
    assert len(folder.name.encode()) < 240
    assert folder.name.isprintable()
    (tmp_path / folder.name).mkdir()


def recipe(student: str, other: Student) -> Recipe:
    return Recipe("test_vit", student, Data("x"), more_students=[other])
