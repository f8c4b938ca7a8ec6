"""What a person reads while a run trains."""

from dataclasses import replace
from pathlib import Path

import pytest

from scalekd.jobs import console as report
from scalekd.jobs.console import Display
from scalekd.recipe import Data, Recipe
from scalekd.runs.result import PairSummary, Progress, Run, format_duration

RECIPE = Recipe("swin", "resnet", Data("digits"), batch_size=64, accumulate=2)
PAIR = PairSummary(0.9, 2_000_000, 1_000_000, 500_000, [], gflop=12.5, workers=2)
RUN = Run("scalekd", 4)
NEWS = Progress(
    step=300,
    steps=400,
    epoch=1.5,
    seconds=600.0,
    images_per_second=32.0,
    learning_rate=3e-4,
    loss=1.5,
    terms={"task": 1.0, "logits": 0.5},
    top1=0.5,
    recorded=True,
    gradients={"student": 3.0, "projectors": 4.0},
    waiting=0.3,
    memory=3 * 2**30,
)


def said(capsys: pytest.CaptureFixture[str], *news: Progress, recipe: Recipe = RECIPE) -> str:
    with Display() as display:
        display.introduce(recipe, PAIR, Path("runs/r"))
        for one in news:
            display.progress(str(RUN), one)
    return capsys.readouterr().out


def test_it_says_where_the_run_stands_and_what_it_costs(capsys: pytest.CaptureFixture[str]) -> None:
    line = said(capsys, NEWS)
    for piece in ("step 300/400", "epoch 1.5", "32 images/s", "200 s left", "rate 0.0003"):
        assert piece.replace("200 s", "3 min") in line
    for piece in ("gradient 5", "3.0 GiB", "data wait 30%", "loss 1.50 = task 1.00 + kd 0.50"):
        assert piece in line


def test_at_the_start_it_says_what_trains_and_at_what_cost(
    capsys: pytest.CaptureFixture[str],
) -> None:
    start = said(capsys)
    assert "swin (2.00 M parameters, 90.00% on these images) teaches resnet (1.00 M;" in start
    assert "projectors 0.50 M" in start
    assert "12.5 GFLOP an image; 64 images a step, 32 at a time on one device" in start
    assert "loaded by 2 other processes" in start


def test_long_waits_for_images_are_said_once_with_the_remedy(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert said(capsys, NEWS, NEWS).count("--data.workers") == 1
    assert "--data.workers" not in said(capsys, replace(NEWS, waiting=0.1))
    assert "--data.workers" not in said(capsys, replace(NEWS, seconds=5.0))


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (119, "119 s"), (600, "10 min"), (7300, "2 h"), (200_000, "2.3 days")],
)
def test_aduration_is_said_in_its_own_unit(seconds: float, words: str) -> None:
    assert format_duration(seconds) == words


def test_a_log_file_is_not_quiet_for_long(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    unmeasured = [replace(NEWS, top1=None, step=step) for step in range(300, 310)]
    assert "step 30" not in said(capsys, *unmeasured)
    monkeypatch.setattr(report, "QUIET", 0.0)
    assert said(capsys, *unmeasured).count("step 30") == 9  # none before there was time to be quiet


def test_what_was_just_said_is_not_said_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "QUIET", 30.0)
    assert said(capsys, NEWS, replace(NEWS, top1=None)).count("step 300/400") == 1
