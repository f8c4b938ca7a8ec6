"""Optimizers that cannot be used failed after the preflight; absurd numbers filled the memory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.refusals import refused
from helpers.tiny import tiny_digits

from scalekd.jobs.distill import distill
from scalekd.recipe import Data, Optim, Recipe
from scalekd.training.optim import check_optimizer


@pytest.mark.parametrize("name", ["adahessian", "bnbadamw8bit", "fusedlamb"])
def test_an_optimizer_that_cannot_take_a_step_is_refused_at_once(name: str, tmp_path: Path) -> None:
    with refused("optim.name", name, "adamw"):
        distill(tiny_digits(optim=Optim(name=name, warmup_epochs=0)), tmp_path / "out", 1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["adamw", "lamb", "sgd", "muon", "lion", "adafactor"])
def test_trying_an_optimizer_changes_no_random_number(name: str) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    check_optimizer(Optim(name=name))
    assert torch.equal(before, torch.get_rng_state())


ABSURD: list[tuple[dict[str, Any], str]] = [
    ({"epochs": 10**20}, "epochs"), ({"batch_size": 10**12}, "batch_size"),
    ({"temperature": 1e300}, "temperature"), ({"heads": (10**9, 1)}, "heads"),
    ({"heads": (0, 1)}, "heads"), ({"heads": (-4, 1)}, "heads"),
    ({"teacher_size": (10**6, 10**6)}, "teacher_size"), ({"teacher_size": (0, 8)}, "teacher_size"),
    ({"save_minutes": 1e300}, "save_minutes"), ({"save_steps": 10**30}, "save_steps"),
    ({"log_every": 10**30}, "log_every"), ({"validate_every": 10**30}, "validate_every"),
    ({"max_skipped": 10**30}, "max_skipped"), ({"seeds": [2**32]}, "seeds"),
    ({"seeds": list(range(1001))}, "seeds"), ({"student_args": {"img_size": 10**6}}, "img_size"),
    ({"teacher_args": {"img_size": [10**6, 8]}}, "img_size"),
    ({"student_args": {"num_classes": 10**9}}, "num_classes"),
    ({"student_args": {"layers": [10**9]}}, "layers"),
    ({"student_args": {"drop_rate": float("nan")}}, "drop_rate"),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "name"), ABSURD, ids=[str(a)[:40] for a, _ in ABSURD])
def test_an_absurd_setting_is_refused_when_the_recipe_is_made(
    settings: dict[str, Any], name: str
) -> None:
    with refused(name):
        Recipe(**{"teacher": "a", "student": "b", "data": Data("x"), **settings})


@pytest.mark.parametrize("role", ["teacher", "student"])
@pytest.mark.parametrize(
    ("argument", "setting"),
    [
        ("pretrained", "give {}_weights"),
        ("model_name", "give {}"),
        ("weights", "give {}_weights"),
    ],
)
def test_an_argument_that_is_a_setting_is_refused_with_that_setting(
    role: str, argument: str, setting: str
) -> None:
    with refused(f"{role}_args has {argument}", setting.format(role)):
        Recipe("a", "b", Data("x"), **{f"{role}_args": {argument: 8}})


def test_a_size_among_a_models_arguments_is_refused_with_its_setting() -> None:
    for role, setting in (("teacher", "give teacher_size"), ("student", "give data.image_size")):
        with refused(f"{role}_args has size", setting):
            Recipe("a", "b", Data("x"), **{f"{role}_args": {"size": 8}})


BUILDERS: list[tuple[Callable[[], Any], str]] = [
    (lambda: Data("x", image_size=10**6), "data.image_size"),
    (lambda: Data("x", image_size=(8, 10**6)), "data.image_size"),
    (lambda: Data("x", workers=10**6), "data.workers"),
    (lambda: Data("x", mixup=1e300), "data.mixup"),
    (lambda: recipe(lr=1e300), "optim.lr"),
    (lambda: recipe(min_lr=1e300), "optim.min_lr"),
    (lambda: recipe(min_lr=0.1, lr=0.01), "optim.min_lr"),
    (lambda: recipe(weight_decay=1e300), "optim.weight_decay"),
    (lambda: recipe(drops=[float("nan")]), "optim.drops"),
    (lambda: recipe(lr_batch_size=10**30), "optim.lr_batch_size"),
]


@pytest.mark.parametrize(
    ("build", "name"), BUILDERS, ids=[f"{i} {n}" for i, (_, n) in enumerate(BUILDERS)]
)
def test_absurd_images_and_rates_are_refused(build: Callable[[], Any], name: str) -> None:
    with refused(name):
        build()


def recipe(**optim: Any) -> Recipe:
    return Recipe("a", "b", Data("x"), optim=Optim(**optim))
