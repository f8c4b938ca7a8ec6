"""Arguments in Python were accepted, and something else was done than they said."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
from helpers.refusals import refused
from helpers.small_models import SIZE, images, resnet, swin, vit

from scalekd import FeatureSelection, FeatureShapes, FrozenTeacher, ScaleKD, ScaleKDLoss
from scalekd.recipe import Data, Recipe

SHAPES = FeatureShapes((16, 4, 4), (16, 2, 2))

WORDS: dict[str, Callable[[Any], Any]] = {
    "teacher_prefix": lambda word: ScaleKD(vit(), resnet(), size=SIZE, teacher_prefix=word),
    "one_token": lambda word: ScaleKD(vit(), resnet(), size=SIZE, one_token=word),
    "norm": lambda word: FeatureSelection(norm=word),
    "task": lambda word: Recipe("t", "s", Data("r"), task=word),
    "precision": lambda word: Recipe("t", "s", Data("r"), precision=word),
    "compare": lambda word: Recipe("t", "s", Data("r"), compare=[word]),
    "trackers": lambda word: Recipe("t", "s", Data("r"), trackers=[word]),
    "fsdp": lambda word: Recipe("t", "s", Data("r"), fsdp=[word]),
    "corrupt_images": lambda word: Data("r", corrupt_images=word),
}


@pytest.mark.parametrize("word", ["foo", "", 3, True])
@pytest.mark.parametrize("name", WORDS)
def test_a_word_that_is_not_one_of_the_few_is_refused(name: str, word: Any) -> None:
    with refused(name, repr(word)):
        WORDS[name](word)


def test_the_loss_and_the_teacher_refuse_other_words_as_well() -> None:
    with refused("one_token is 'foo'", "'refuse' or 'drop'"):
        ScaleKDLoss(student=SHAPES, teacher=SHAPES, heads=(1, 1), one_token="foo")  # type: ignore[arg-type]
    with refused("teacher_prefix is 'foo'", "'own' or 'none'"):
        FrozenTeacher(vit(), prefix="foo")  # type: ignore[arg-type]


@pytest.mark.parametrize("index", ["1", 1.0, [1]])
def test_an_index_of_a_feature_is_a_whole_number(index: Any) -> None:
    with refused(f"penultimate is {index!r}"):
        FeatureSelection(penultimate=index)


def test_no_classes_are_a_student_without_classifier() -> None:
    distiller = ScaleKD(swin(), "test_resnet", num_classes=0, size=SIZE)
    assert distiller.student.num_classes == 0
    assert "logits" not in distiller.train()(images(4)).terms


@pytest.mark.parametrize("name", ["mean", "std"])
@pytest.mark.parametrize(
    "values",
    [
        (math.nan, 0.5, 0.5),
        (0.5, math.inf, 0.5),
        (0.5, 0.5),
        (),
        ("a", "b", "c"),
        [None, 0.5, 0.5],
    ],
)
def test_a_mean_or_std_that_is_no_number_for_each_channel_is_refused(
    name: str, values: Any
) -> None:
    with refused(f"{name} ", "finite number a channel"):
        ScaleKD(swin(), resnet(), size=SIZE, **{name: values})


@pytest.mark.parametrize("values", [(0.5, 0.0, 0.5), (0.5, -0.5, 0.5)])
def test_a_std_that_is_not_above_zero_is_refused(values: Any) -> None:
    with refused("std", "above 0"):
        ScaleKD(swin(), resnet(), size=SIZE, std=values)


def test_a_student_that_shares_modules_with_its_teacher_is_refused() -> None:
    teacher, student = vit(), vit()
    student.blocks[1] = teacher.blocks[2]
    for of_pair in (teacher, FrozenTeacher(copy.deepcopy(teacher))):
        shared = of_pair.model.blocks[2] if isinstance(of_pair, FrozenTeacher) else None
        if shared is not None:
            student.blocks[1] = shared
        with refused("shares tensors", "blocks.1.", "the teacher's blocks.2.", "copy.deepcopy"):
            ScaleKD(of_pair, student, size=SIZE)


def test_a_refused_student_is_left_trainable() -> None:
    teacher, student = vit(), vit()
    student.blocks[1] = teacher.blocks[2]
    with refused("shares tensors"):
        ScaleKD(teacher, student, size=SIZE)
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_a_student_whose_parameter_shares_the_teachers_memory_is_refused() -> None:
    teacher, student = vit(), vit()
    student.norm.weight.data = teacher.norm.weight.data
    with refused("shares tensors", "norm.weight is the teacher's norm.weight"):
        ScaleKD(teacher, student, size=SIZE)


def test_a_copy_of_the_teacher_is_a_student() -> None:
    teacher = vit()
    distiller = ScaleKD(teacher, copy.deepcopy(teacher), size=SIZE)
    assert all(parameter.requires_grad for parameter in distiller.student.parameters())


def test_a_student_by_name_has_the_classes_asked_for() -> None:
    distiller = ScaleKD(swin(), "test_resnet", num_classes=3, size=SIZE)
    assert distiller.student.num_classes == 3
