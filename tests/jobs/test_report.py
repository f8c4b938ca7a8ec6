"""The report at the end of a job: its sentences and its tables."""

from pathlib import Path

import pytest

from scalekd.jobs.report import compare_in_sentences, print_report
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


def measured(method: Method, *accuracies: float, seconds: float = 10.0) -> list[Result]:
    return [
        Result(Run(method, seed), top1, seconds, steps=100, images_per_second=320.0)
        for seed, top1 in enumerate(accuracies, 1)
    ]


def test_a_gain_is_reported_by_seed_and_called_larger_than_the_spread() -> None:
    (sentence,) = compare_in_sentences(
        measured("scalekd", 0.72, 0.73, 0.75) + measured("supervised", 0.70, 0.70, 0.72)
    )
    assert "supervised" in sentence
    assert "+2.67 points (by seed +2.00, +3.00, +3.00; spread 0.58)" in sentence
    assert "larger than the spread" in sentence
    assert "NOT" not in sentence
    assert "LOSS" not in sentence


def test_a_gain_within_the_spread_is_called_not_larger() -> None:
    (sentence,) = compare_in_sentences(
        measured("scalekd", 0.70, 0.74) + measured("supervised", 0.71, 0.72)
    )
    assert "+0.50 points (by seed -1.00, +2.00; spread 2.12), NOT larger" in sentence


def test_a_loss_is_called_a_loss() -> None:
    (sentence,) = compare_in_sentences(
        measured("scalekd", 0.60, 0.61) + measured("supervised", 0.70, 0.72)
    )
    assert "-10.50 points" in sentence
    assert "a LOSS larger than the spread" in sentence


def test_no_difference_is_not_larger_than_a_spread_of_zero() -> None:
    (sentence,) = compare_in_sentences(
        measured("scalekd", 0.5, 0.5) + measured("supervised", 0.5, 0.5)
    )
    assert "NOT larger" in sentence


def test_with_one_seed_the_spread_is_called_unknown() -> None:
    (sentence,) = compare_in_sentences(measured("scalekd", 0.75) + measured("supervised", 0.70))
    assert "+5.00 points with one seed" in sentence
    assert "the spread between seeds is unknown" in sentence
    assert "larger" not in sentence


def test_each_comparison_has_its_cost_in_time_and_equal_time_is_called_open() -> None:
    runs = measured("scalekd", 0.8, seconds=30) + measured("supervised", 0.7, seconds=10)
    supervised, logit_kd, open_question = compare_in_sentences(
        runs + measured("logit_kd", 0.75, seconds=20)
    )
    assert "3.0 times as long" in supervised
    assert "1.5 times as long" in logit_kd
    assert "In the same training time" in open_question
    assert "does not show" in open_question


def unmeasured(method: Method, *losses: float, logits: float = 0.5) -> list[Result]:
    return [
        Result(
            Run(method, seed), None, 10.0, 100, 320.0, {"final_original": loss, "logits": logits}
        )
        for seed, loss in enumerate(losses, 1)
    ]


def test_without_labels_the_terms_are_reported_and_no_winner() -> None:
    (terms, limits) = compare_in_sentences(unmeasured("scalekd", 2.0, 3.0))
    assert terms == "ScaleKD: loss = final 2.500 + kd 0.500."
    assert "do not show how good a student is" in limits


def test_without_labels_the_logits_term_is_compared() -> None:
    runs = unmeasured("scalekd", 2.0, logits=0.25) + unmeasured("logit_kd", 0.0, logits=0.75)
    sentence = compare_in_sentences(runs)[-1]
    assert "0.250 with feature distillation, 0.750 without" in sentence
    assert "1.0 times as long" in sentence


def test_results_without_labels_have_a_loss_and_no_accuracy() -> None:
    assert all_have_accuracy(measured("scalekd", 0.7))
    assert not all_have_accuracy(unmeasured("scalekd", 2.0))
    assert unmeasured("scalekd", 2.0)[0].loss == 2.5


def test_a_table_of_losses_shows_every_value_on_a_narrow_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    recipe = Recipe("a", "b", Data("c"), seeds=[1, 2, 3])
    runs = unmeasured("scalekd", 51.0, 52.0, 53.5) + unmeasured("logit_kd", 3.0, 3.0, 3.0)
    print_report(recipe, PairSummary(None, 10, 10, 10, [], labels=False), runs, tmp_path)
    printed = capsys.readouterr().out
    assert "mean of the last 50 of 100 steps" in printed
    for value in ("52.667", "1.258", "51.500", "52.500", "54.000", "3.500", "0.1000"):
        assert value in printed
    assert "top-1" not in printed
    assert "…" not in printed


def test_a_job_without_baselines_has_no_comparison() -> None:
    assert compare_in_sentences(measured("scalekd", 0.8, 0.9)) == []


def test_gains_are_paired_by_seed_in_any_order_of_the_results() -> None:
    runs = measured("scalekd", 0.70, 0.80) + measured("supervised", 0.69, 0.79)
    (sentence,) = compare_in_sentences(runs[::-1])
    assert "by seed +1.00, +1.00" in sentence
    assert [r.run.seed for r in results_of_method(runs[::-1], "supervised")] == [1, 2]


def test_the_mean_of_nothing_is_none() -> None:
    assert mean_of_known([]) is None
    assert mean_of_known([None, None]) is None
    assert mean_of_known([1.0, 2.0]) == 1.5


def test_brackets_in_a_folders_name_are_printed_unchanged(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    recipe = Recipe("a", "b", Data("c"), seeds=[1])
    pair = PairSummary(None, 10, 10, 10, [], labels=False)
    print_report(recipe, pair, unmeasured("scalekd", 51.0), tmp_path / "[bold]")
    assert capsys.readouterr().out.count("[bold]") == 2
