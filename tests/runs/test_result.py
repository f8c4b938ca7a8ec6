"""Runs and results as data, and the numbers computed from results."""

from dataclasses import asdict
from typing import Any

import pytest

from scalekd.recipe import Data, Recipe
from scalekd.runs.result import (
    Result,
    Run,
    accuracy_gains,
    format_duration,
    main_run,
    mean_of_known,
    methods_to_train,
)

RESULT = Result(Run("scalekd", 1), 0.5, 12.5, 30, 100.0, {"task": 1.5, "logits": 0.25})


def test_the_main_run_is_the_first_method_with_the_first_seed() -> None:
    recipe = Recipe("swin", "resnet", Data("digits"), seeds=[3, 1], compare=["supervised"])
    assert methods_to_train(recipe.teacher, recipe.compare) == ["scalekd", "supervised"]
    assert main_run(recipe) == Run("scalekd", 3)
    assert methods_to_train(None, recipe.compare) == ["supervised"]
    assert str(Run("supervised", 3)) == "supervised seed 3"


def test_a_result_is_rebuilt_from_plain_data() -> None:
    assert Result.from_dict(asdict(RESULT)) == RESULT
    assert RESULT.loss == 1.75


@pytest.mark.parametrize(
    "plain",
    [{}, {"run": {"method": "scalekd"}}, {**asdict(RESULT), "colour": 1}],
    ids=["empty", "missing fields", "unknown field"],
)
def test_a_result_is_not_built_from_other_data(plain: dict[str, Any]) -> None:
    with pytest.raises((TypeError, KeyError)):
        Result.from_dict(plain)


def test_gains_are_paired_by_seed() -> None:
    tops = {("scalekd", 1): 0.8, ("scalekd", 2): 0.7, ("supervised", 2): 0.6, ("logit_kd", 1): None}
    results = [Result(Run(m, s), top1, 1.0, 1, 1.0) for (m, s), top1 in tops.items()]  # type: ignore[arg-type]
    assert accuracy_gains(results, "supervised") == pytest.approx([10.0])
    assert accuracy_gains(results, "logit_kd") == []


def test_the_mean_of_known_values_ignores_unknown_ones() -> None:
    assert mean_of_known([1.0, None, 2.0]) == 1.5
    assert mean_of_known([None]) is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(90.4, "90 s"), (2700, "45 min"), (20 * 3600, "20 h"), (84 * 3600, "3.5 days")],
)
def test_a_duration_is_in_its_natural_unit(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
