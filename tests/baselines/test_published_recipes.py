"""The commands of docs/baselines.md that make other papers' methods of logit KD's settings."""

import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny import tiny_digits
from torch import Tensor
from torch.nn import functional as F

from scalekd.data.mixup import build_mixup
from scalekd.recipe import Data, Recipe, recipe_from_settings
from scalekd.runs.result import main_run
from scalekd.training.batch import Batch
from scalekd.training.prepare import prepare

PAGE = Path(__file__).parents[2] / "docs" / "baselines.md"


def recipe_of(name: str) -> Recipe:
    """The recipe of the command below a method's name."""
    section = PAGE.read_text().split(f"**{name}**")[1]
    found = re.search(r"\n\n((?:    .*\n)+)", section)
    assert found is not None
    words = shlex.split(found[1].replace("\\\n", " "))
    settings: dict[str, Any] = {}
    for option, value in zip(words[2::2], words[3::2], strict=True):
        *groups, last = option.removeprefix("--").split(".")
        inner = settings
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[last] = value
    return recipe_from_settings(settings)


def losses_of(recipe: Recipe) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss of a mixed batch of digits by the recipe's method, the student's logits, the teacher's,
    and the mixed targets."""
    torch.manual_seed(0)
    data = replace(Data("digits"), mixup=recipe.data.mixup, cutmix=recipe.data.cutmix)
    small = tiny_digits(
        method=recipe.method, weights=recipe.weights, task=recipe.task, data=data, compare=[]
    )
    prepared = prepare(small)
    learner: Any = prepared.build_learner(main_run(small)).train()
    mixup = build_mixup(data, prepared.source.classes)
    assert mixup is not None
    images, targets = mixup(torch.rand(8, 1, 32, 32), torch.arange(8))
    step = Batch(images, targets).loss(learner)
    assert step.logits is not None
    taught = learner.run_teacher(images).logits
    return step.loss, step.logits, taught, targets


def cross_entropy(student: Tensor, teacher: Tensor) -> Tensor:
    return -(teacher.softmax(1) * student.log_softmax(1)).sum(1).mean()


def test_funmatch_matches_the_teacher_on_the_mixed_image_and_reads_no_label() -> None:
    recipe = recipe_of("FunMatch")
    assert recipe.data.mixup == 1
    loss, student, teacher, _ = losses_of(recipe)
    torch.testing.assert_close(loss, cross_entropy(student, teacher))


def test_vanilla_kd_is_binary_cross_entropy_and_logit_kd_at_equal_weights() -> None:
    recipe = recipe_of("VanillaKD")
    assert (recipe.data.mixup, recipe.data.cutmix) == (0.1, 1)
    assert recipe.optim.name == "lamb"
    loss, student, teacher, targets = losses_of(recipe)
    labels = F.binary_cross_entropy_with_logits(student, targets, reduction="none").sum(1).mean()
    torch.testing.assert_close(loss, (labels + cross_entropy(student, teacher)) / 2)


@pytest.mark.parametrize("name", ["FunMatch", "VanillaKD"])
def test_the_commands_are_long_trainings(name: str) -> None:
    assert recipe_of(name).epochs >= 300
