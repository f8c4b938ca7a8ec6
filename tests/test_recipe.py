"""A recipe refuses values that cannot be meant, by their names."""

from dataclasses import replace
from typing import Any

import pytest
import yaml

from scalekd.errors import InputError
from scalekd.method import LossWeights
from scalekd.recipe import RECIPES, Data, Optim, Recipe, find_recipe

NAN, INFINITE = float("nan"), float("inf")


def recipe(**changes: Any) -> Recipe:
    return Recipe(**{"teacher": "a", "student": "b", "data": Data("digits"), **changes})


def refusal(**changes: Any) -> str:
    with pytest.raises(InputError) as caught:
        recipe(**{key: make() if callable(make) else make for key, make in changes.items()})
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", ["epochs", "batch_size", "validate_every", "temperature"])
@pytest.mark.parametrize("value", [0, -1, NAN])
def test_counts_and_temperature_must_be_positive(name: str, value: float) -> None:
    message = refusal(**{name: value})
    assert name in message
    assert str(value) in message


@pytest.mark.parametrize("value", [0.0, -0.1, NAN, INFINITE])
def test_the_learning_rate_must_be_positive(value: float) -> None:
    message = refusal(optim=Optim(lr=value))
    assert "optim.lr" in message
    assert str(value) in message


@pytest.mark.parametrize("name", ["weight_decay", "warmup_epochs", "min_lr", "clip"])
@pytest.mark.parametrize("value", [-0.5, NAN])
def test_settings_of_the_optimizer_that_may_be_0_may_not_be_negative(
    name: str, value: float
) -> None:
    message = refusal(optim=replace(Optim(), **{name: value}))
    assert f"optim.{name}" in message
    assert str(value) in message
    assert recipe(optim=replace(Optim(), **{name: 0.0})).optim.clip >= 0


@pytest.mark.parametrize("name", ["weight_decay", "warmup_epochs", "min_lr"])
def test_settings_of_the_optimizer_must_be_finite(name: str) -> None:
    message = refusal(optim=replace(Optim(), **{name: INFINITE}))
    assert f"optim.{name}" in message
    assert "inf" in message


@pytest.mark.parametrize("warmup", [2.0, 3.5])
def test_a_warm_up_as_long_as_the_training_is_refused(warmup: float) -> None:
    message = refusal(epochs=2, optim=Optim(warmup_epochs=warmup))
    assert f"optim.warmup_epochs is {warmup}" in message
    assert "epochs is 2" in message


def test_an_unknown_optimizer_is_refused_with_similar_names() -> None:
    message = refusal(optim=Optim(name="adamm"))
    assert "optim.name" in message
    assert "adamm" in message
    assert "adam" in message.replace("adamm", "")


@pytest.mark.parametrize("name", ["image_size", "train_images", "epoch_images"])
@pytest.mark.parametrize("value", [0, -3])
def test_numbers_of_images_must_be_positive(name: str, value: int) -> None:
    message = refusal(data=lambda: Data("digits", **{name: value}))
    assert f"data.{name}" in message
    assert str(value) in message


@pytest.mark.parametrize("term", list(LossWeights.__dataclass_fields__))
@pytest.mark.parametrize("value", [-0.01, NAN, INFINITE])
def test_a_weight_must_be_finite_and_not_negative(term: str, value: float) -> None:
    with pytest.raises(InputError) as caught:
        LossWeights(**{term: value})
    assert term in str(caught.value)
    assert str(value) in str(caught.value)


def test_the_weight_of_the_logits_is_at_most_1() -> None:
    with pytest.raises(InputError, match=r"logits is 1\.5"):
        LossWeights(logits=1.5)


@pytest.mark.parametrize("value", [-0.1, 1.0, NAN])
def test_label_smoothing_is_from_0_to_less_than_1(value: float) -> None:
    message = refusal(label_smoothing=value)
    assert "label_smoothing" in message
    assert str(value) in message


@pytest.mark.parametrize("value", [-0.1, 1.1, NAN])
def test_the_erasing_probability_is_from_0_to_1(value: float) -> None:
    message = refusal(data=lambda: Data("x", erasing=value))
    assert "data.erasing" in message
    assert str(value) in message


def test_a_negative_number_of_workers_is_refused() -> None:
    assert "data.workers is -1" in refusal(data=lambda: Data("x", workers=-1))


@pytest.mark.parametrize("seeds", [[], [1, 1], [2, 1, 2]])
def test_seeds_must_be_given_and_each_only_once(seeds: list[int]) -> None:
    message = refusal(seeds=seeds)
    assert "seeds" in message
    assert str(seeds) in message


def test_a_negative_seed_is_refused() -> None:
    message = refusal(seeds=[1, -1])
    assert "seeds" in message
    assert "-1" in message


def test_a_baseline_named_twice_is_refused() -> None:
    message = refusal(compare=["supervised", "supervised"])
    assert "compare" in message
    assert "supervised" in message


def test_a_recipe_survives_being_written_to_yaml() -> None:
    plain = recipe(heads=(2, 4), seeds=[3], compare=["supervised"]).as_dict()
    assert yaml.safe_load(yaml.safe_dump(plain)) == plain
    assert plain["heads"] == [2, 4]
    assert plain["data"]["root"] == "digits"


def test_find_recipe_finds_every_packaged_recipe() -> None:
    files = sorted(RECIPES.glob("*.yaml"))
    assert files
    assert [find_recipe(f.stem) for f in files] == files


def test_an_unknown_recipe_is_refused_with_the_known_names() -> None:
    with pytest.raises(InputError, match=r"'imagenet'.*digits"):
        find_recipe("imagenet")
