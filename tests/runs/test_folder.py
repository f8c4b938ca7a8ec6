"""Run folders: finished results, settings that a resumed run may change, trimmed metrics."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.full_disk import limited_file_size
from helpers.refusals import refused
from helpers.warned import warned

from scalekd.recipe import Data, Optim, Recipe
from scalekd.runs.checkpoint import write_checkpoint
from scalekd.runs.folder import RunFolder, choose_folder
from scalekd.runs.result import Result, Run

RECIPE = Recipe(
    "test_vit", "test_resnet", Data("digits", workers=1), optim=Optim(lr=0.1), seeds=[1, 2]
)
EMPTY_STATE = {"scalekd_student": {}, "learner": {}, "average": None}

DONE = Result(Run("scalekd", 1), 0.5, 12.5, 30, 100.0, {"task": 1.5, "logits": 0.25})


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "runs" / "mine")
    folder.start(RECIPE, {}, [])
    return folder


def entry(run: Run, step: int) -> dict[str, Any]:
    """A line of metrics.jsonl."""
    numbers = {"step": step, "steps": 30, "seconds": 1.0, "loss": 1.0, "top1": 0.5}
    return {"method": run.method, "seed": run.seed, **numbers}


def test_results_are_read_as_they_were_recorded(folder: RunFolder) -> None:
    assert folder.finished_results(RECIPE) == []
    unlabelled = replace(DONE, run=Run("logit_kd", 2), top1=None)
    folder.record_results([DONE])
    folder.record_results([DONE, unlabelled])
    assert folder.finished_results(RECIPE) == [DONE, unlabelled]


def test_a_missing_or_empty_folder_has_no_results(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("empty", "none"):
        assert RunFolder(tmp_path / name).finished_results(RECIPE) == []


def test_a_folder_of_other_files_is_refused_as_no_run_folder(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with refused(str(tmp_path), "settings.yaml"):
        RunFolder(tmp_path).finished_results(RECIPE)


@pytest.mark.parametrize(
    ("other", "name", "then", "now"),
    [
        (replace(RECIPE, epochs=7), "epochs", "100", "7"),
        (replace(RECIPE, optim=Optim(lr=0.2)), "optim.lr", "0.1", "0.2"),
        (replace(RECIPE, seeds=[1]), "seeds", "[1, 2]", "[1]"),
        (replace(RECIPE, student_args={"depth": 3}), "student_args", "{}", "None"),
    ],
)
def test_changed_settings_are_refused_by_name_with_both_values(
    folder: RunFolder, other: Recipe, name: str, then: str, now: str
) -> None:
    with refused(str(folder.path), f"with {name} {then}, now it is {now}", "data.workers"):
        folder.finished_results(other)


def test_settings_that_no_weight_depends_on_may_change(folder: RunFolder) -> None:
    folder.record_results([DONE])
    other = replace(
        RECIPE,
        data=replace(RECIPE.data, workers=3),
        save_minutes=1.0,
        save_steps=2,
        log_every=3,
        trackers=["csv"],
    )
    assert folder.finished_results(other) == [DONE]


def test_a_setting_that_changes_more_than_rounding_may_change_with_a_warning(
    folder: RunFolder,
) -> None:
    folder.record_results([DONE])
    other = replace(RECIPE, accumulate=2, channels_last=True)
    assert folder.finished_results(other) == [DONE]
    with warned("may not be bit-identical") as messages:
        folder.check_inputs(other, {})
    assert len(messages) == 2
    assert "accumulate is now 2 and was 1" in messages[0]
    assert "BatchNorm" in messages[0]
    assert messages[1].endswith("an undisturbed one")


def test_metrics_recorded_after_the_newest_checkpoint_are_dropped(folder: RunFolder) -> None:
    runs = [Run("scalekd", 1), Run("scalekd", 2), Run("logit_kd", 1), Run("logit_kd", 2)]
    for step in (10, 20, 30):
        for run in runs:
            folder.append_metrics(entry(run, step))
    with folder.metrics.open("a") as metrics:
        metrics.write('{"method": "scale')
    for run, step in zip(runs[:2], (20, 25), strict=True):
        write_checkpoint({**EMPTY_STATE, "step": step}, folder.checkpoint(run))
    folder.trim_metrics(runs[:3])
    steps: dict[Run, list[int]] = {}
    for line in map(json.loads, folder.metrics.read_text().splitlines()):
        steps.setdefault(Run(line["method"], line["seed"]), []).append(line["step"])
    assert steps == {runs[0]: [10, 20], runs[1]: [10, 20], runs[3]: [10, 20, 30]}


def test_broken_lines_of_metrics_are_skipped_with_a_warning(folder: RunFolder) -> None:
    folder.metrics.write_text('{"method": "sc{"method": "supervised"}\n')
    folder.append_metrics(entry(Run("supervised", 1), 2))
    with warned(r"metrics.jsonl: broken lines that are skipped: 1"):
        folder.trim_metrics([])
    assert len(folder.metrics.read_text().splitlines()) == 1


def test_a_full_disk_loses_no_student_and_the_lost_file_is_named(
    folder: RunFolder,
) -> None:
    folder.results.write_text("previous\n")
    with limited_file_size(20):
        with warned(r"results.jsonl could not be written .* checkpoint"):
            folder.record_results([DONE])
        with refused("students are trained", "summary.json", "make room", "--resume"):
            folder.write_summary({"teacher_top1": None, "seeds": [1, 2]})
        with refused(str(folder.path), "cannot be written"):
            folder.start(RECIPE, {}, [])
    assert folder.results.read_text() == "previous\n"
    names = {file.name for file in folder.path.iterdir()}
    assert names == {"settings.yaml", "inputs.json", "metrics.jsonl", "results.jsonl"}


def test_a_full_disk_when_the_curves_are_drawn_is_refused(
    folder: RunFolder,
) -> None:
    folder.append_metrics(entry(Run("scalekd", 1), 2))
    with limited_file_size(2000), refused("students are trained", "curves.png"):
        folder.write_summary({"teacher_top1": None})
    assert not folder.curves.exists()
    folder.write_summary({"teacher_top1": None})
    assert folder.curves.stat().st_size > 2000


def test_the_default_folder_is_the_next_free_one_or_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runs = Path("runs")
    assert choose_folder(RECIPE) == choose_folder(RECIPE, newest=True) == runs / "digits"
    for name in ("digits", "digits-2"):
        (runs / name).mkdir(parents=True)
    assert choose_folder(RECIPE) == runs / "digits-3"
    assert choose_folder(RECIPE, newest=True) == runs / "digits-2"
    several = choose_folder(replace(RECIPE, more_students=["test_vit"]))
    several.mkdir()
    added = replace(RECIPE, more_students=["test_vit", "test_vit2"])
    assert choose_folder(added, newest=True) == several
