"""What the conclusion says in words, and the picture."""

from pathlib import Path
from typing import Literal

import pytest
from rich.console import Console

from scalekd.jobs.console import conclude, in_words, print_note
from scalekd.notes import Note
from scalekd.recipe import Data, Recipe
from scalekd.runs.result import (
    Method,
    PairSummary,
    Result,
    Run,
    all_have_accuracy,
    mean_of_known,
    results_of_method,
)


def results(method: Method, *tops: float, seconds: float = 10.0) -> list[Result]:
    return [
        Result(Run(method, seed), top1, seconds, steps=100, images_per_second=320.0)
        for seed, top1 in enumerate(tops, 1)
    ]


def test_a_gain_larger_than_the_spread() -> None:
    said = in_words(results("scalekd", 0.72, 0.73, 0.75) + results("supervised", 0.70, 0.70, 0.72))
    assert len(said) == 1
    assert "supervised" in said[0]
    assert "+2.67 points (seed by seed +2.00, +3.00, +3.00; spread 0.58)" in said[0]
    assert "larger than the spread" in said[0]
    assert "NOT" not in said[0]
    assert "LOSS" not in said[0]


def test_a_gain_not_larger_than_the_spread() -> None:
    (said,) = in_words(results("scalekd", 0.70, 0.74) + results("supervised", 0.71, 0.72))
    assert "+0.50 points (seed by seed -1.00, +2.00; spread 2.12), NOT larger" in said


def test_a_loss_is_called_a_loss() -> None:
    (said,) = in_words(results("scalekd", 0.60, 0.61) + results("supervised", 0.70, 0.72))
    assert "-10.50 points" in said
    assert "a LOSS larger than the spread" in said


def test_no_difference_at_all_is_not_larger_than_no_spread() -> None:
    (said,) = in_words(results("scalekd", 0.5, 0.5) + results("supervised", 0.5, 0.5))
    assert "NOT larger" in said


def test_one_seed_says_nothing_of_the_spread() -> None:
    (said,) = in_words(results("scalekd", 0.75) + results("supervised", 0.70))
    assert "+5.00 points with one seed" in said
    assert "nothing is known of the spread" in said
    assert "larger" not in said


def test_the_cost_in_time_is_said_for_each_comparison_and_equal_time_left_open() -> None:
    runs = results("scalekd", 0.8, seconds=30) + results("supervised", 0.7, seconds=10)
    alone, logits, open_question = in_words(runs + results("logit_kd", 0.75, seconds=20))
    assert "3.0 times as long" in alone
    assert "1.5 times as long" in logits
    assert "equal time" in open_question
    assert "does not show" in open_question


def unmeasured(method: Method, *losses: float, logits: float = 0.5) -> list[Result]:
    return [
        Result(
            Run(method, seed), None, 10.0, 100, 320.0, {"final_original": loss, "logits": logits}
        )
        for seed, loss in enumerate(losses, 1)
    ]


def test_without_labels_only_the_terms_are_said_and_no_winner() -> None:
    (said, warned) = in_words(unmeasured("scalekd", 2.0, 3.0))
    assert said == "ScaleKD: final 2.500 + kd 0.500."
    assert "do not say" in warned


def test_without_labels_the_logits_term_is_compared() -> None:
    runs = unmeasured("scalekd", 2.0, logits=0.25) + unmeasured("logit_kd", 0.0, logits=0.75)
    said = in_words(runs)[-1]
    assert "0.250 beside the features', 0.750 without them" in said
    assert "1.0 times as long" in said


def test_what_was_measured_is_known_of_all_or_none() -> None:
    assert all_have_accuracy(results("scalekd", 0.7))
    assert not all_have_accuracy(unmeasured("scalekd", 2.0))
    assert unmeasured("scalekd", 2.0)[0].loss == 2.5


def test_a_table_of_losses_shows_every_number_on_a_narrow_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    recipe = Recipe("a", "b", Data("c"), seeds=[1, 2, 3])
    runs = unmeasured("scalekd", 51.0, 52.0, 53.5) + unmeasured("logit_kd", 3.0, 3.0, 3.0)
    conclude(recipe, PairSummary(None, 10, 10, 10, [], labels=False), runs, tmp_path)
    printed = capsys.readouterr().out
    assert "mean of the last 50 of 100 steps" in printed
    for number in ("52.667", "1.258", "51.500", "52.500", "54.000", "3.500", "0.1000"):
        assert number in printed
    assert "top-1" not in printed
    assert "…" not in printed


def test_nothing_compared_is_nothing_said() -> None:
    assert in_words(results("scalekd", 0.8, 0.9)) == []


def test_gains_are_paired_by_seed_in_whatever_order_runs_end() -> None:
    runs = results("scalekd", 0.70, 0.80) + results("supervised", 0.69, 0.79)
    (said,) = in_words(runs[::-1])
    assert "seed by seed +1.00, +1.00" in said
    assert [r.run.seed for r in results_of_method(runs[::-1], "supervised")] == [1, 2]


def test_the_mean_of_nothing_is_none() -> None:
    assert mean_of_known([]) is None
    assert mean_of_known([None, None]) is None
    assert mean_of_known([1.0, 2.0]) == 1.5


@pytest.mark.parametrize(
    ("level", "printed"), [("info", "note: a [b] of c\n"), ("warning", "WARNING: a [b] of c\n")]
)
def test_a_note_is_printed_after_its_level_and_without_markup(
    level: Literal["info", "warning"], printed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    print_note(Console(highlight=False, soft_wrap=True), Note(level, "a [b] of c"))
    assert capsys.readouterr().out == printed
