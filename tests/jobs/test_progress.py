"""The live display while runs train, as it is written to a log file."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from rich.console import Console

from scalekd.jobs import progress as display_module
from scalekd.jobs.progress import ProgressDisplay, print_note
from scalekd.notes import Note
from scalekd.recipe import Data, Recipe
from scalekd.runs.result import PairSummary, Progress, Run, format_duration

RECIPE = Recipe("swin", "resnet", Data("digits"), batch_size=64, accumulate=2)
PAIR = PairSummary(0.9, 2_000_000, 1_000_000, 500_000, [], gflop=12.5, workers=2)
RUN = Run("scalekd", 4)
PROGRESS = Progress(
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


def printed(
    capsys: pytest.CaptureFixture[str],
    *steps: Progress,
    recipe: Recipe = RECIPE,
    run: str = str(RUN),
) -> str:
    """What the display prints at the start and for these steps."""
    with ProgressDisplay() as display:
        display.print_start(recipe, PAIR, Path("runs/r"))
        for progress in steps:
            display.update(run, progress)
    return capsys.readouterr().out


def test_a_line_of_progress_has_step_pace_state_and_loss(
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = printed(capsys, PROGRESS)
    for part in ("step 300/400", "epoch 1.5", "32 images/s", "3 min left"):
        assert part in line
    for part in ("learning rate 0.0003", "gradient norm 5", "memory 3.0 GiB"):
        assert part in line
    for part in ("waiting for data 30%", "loss 1.50 = task 1.00 + kd 0.50"):
        assert part in line


def test_a_line_between_measured_gradients_has_no_norm(capsys: pytest.CaptureFixture[str]) -> None:
    assert "gradient norm" not in printed(capsys, replace(PROGRESS, gradients={}))


def test_the_start_has_the_pair_its_sizes_and_the_cost_of_a_step(
    capsys: pytest.CaptureFixture[str],
) -> None:
    start = printed(capsys)
    assert "teacher swin (2.00 M parameters, top-1 90.00% on the validation images)" in start
    assert "student resnet (1.00 M parameters); the projectors (0.50 M parameters)" in start
    assert "12.5 GFLOP per image; its batch of 64 images is processed in" in start
    assert "micro-batches of 32 on one device" in start
    assert "2 worker processes per device load the images" in start
    assert "the run folder is runs/r/" in start


def test_the_start_without_a_teacher_names_the_supervised_baseline(
    capsys: pytest.CaptureFixture[str],
) -> None:
    start = printed(capsys, recipe=replace(RECIPE, teacher=None))
    assert "student resnet (1.00 M parameters) is trained without a teacher" in start
    assert "supervised baseline" in start


def test_brackets_in_names_from_outside_are_printed_unchanged(
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = replace(RECIPE, teacher="[red]", student="[bold]")
    output = printed(capsys, PROGRESS, recipe=recipe, run="[link], scalekd seed 4")
    assert "teacher [red] (" in output
    assert "student [bold] (" in output
    assert "\n[link], scalekd seed 4: step 300/400" in output


def test_a_long_wait_for_images_is_noted_once_with_the_remedy(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert printed(capsys, PROGRESS, PROGRESS).count("--data.workers") == 1
    assert "--data.workers" not in printed(capsys, replace(PROGRESS, waiting=0.1))
    assert "--data.workers" not in printed(capsys, replace(PROGRESS, seconds=5.0))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (119, "119 s"), (600, "10 min"), (7300, "2 h"), (200_000, "2.3 days")],
)
def test_a_duration_is_written_in_its_natural_unit(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_a_log_file_gets_a_line_when_none_was_printed_for_long(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    unmeasured = [replace(PROGRESS, top1=None, step=step) for step in range(300, 310)]
    assert "step 30" not in printed(capsys, *unmeasured)
    monkeypatch.setattr(display_module, "MAX_SECONDS_WITHOUT_LINE", 0.0)
    assert printed(capsys, *unmeasured).count("step 30") == 9  # the first starts the clock


def test_a_step_that_was_just_printed_is_not_printed_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(display_module, "MAX_SECONDS_WITHOUT_LINE", 30.0)
    assert printed(capsys, PROGRESS, replace(PROGRESS, top1=None)).count("step 300/400") == 1


@pytest.mark.parametrize(
    ("level", "line"), [("info", "note: a [b] of c\n"), ("warning", "WARNING: a [b] of c\n")]
)
def test_a_note_is_printed_after_its_level_and_without_markup(
    level: Literal["info", "warning"], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    print_note(Console(highlight=False, soft_wrap=True), Note(level, "a [b] of c"))
    assert capsys.readouterr().out == line
