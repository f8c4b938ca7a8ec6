"""Run folders: what is finished, what may differ when one is resumed, what is left out."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.full_disk import a_disk_that_takes_no_file_larger_than
from helpers.refusals import refused

from scalekd.recipe import Data, Optim, Recipe
from scalekd.runs.checkpoint import write_checkpoint
from scalekd.runs.folder import RunFolder, choose_folder
from scalekd.runs.result import Result, Run

RECIPE = Recipe(
    "test_vit", "test_resnet", Data("digits", workers=1), optim=Optim(lr=0.1), seeds=[1, 2]
)
DONE = Result(Run("scalekd", 1), 0.5, 12.5, 30, 100.0, {"task": 1.5, "logits": 0.25})


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "runs" / "mine")
    folder.make(RECIPE)
    return folder


def test_what_is_finished_is_read_as_it_was_kept(folder: RunFolder) -> None:
    assert folder.finished(RECIPE) == []
    unlabelled = replace(DONE, run=Run("logit_kd", 2), top1=None)
    folder.keep([DONE])
    folder.keep([DONE, unlabelled])
    assert folder.finished(RECIPE) == [DONE, unlabelled]


def test_nothing_is_finished_where_nothing_is(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("empty", "none"):
        assert RunFolder(tmp_path / name).finished(RECIPE) == []


def test_a_folder_of_other_things_is_no_run_folder(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with refused(str(tmp_path), "settings.yaml"):
        RunFolder(tmp_path).finished(RECIPE)


@pytest.mark.parametrize(
    ("other", "name", "then", "now"),
    [
        (replace(RECIPE, epochs=7), "epochs", "100", "7"),
        (replace(RECIPE, optim=Optim(lr=0.2)), "optim.lr", "0.1", "0.2"),
        (replace(RECIPE, seeds=[1]), "seeds", "[1, 2]", "[1]"),
        (replace(RECIPE, student_args={"depth": 3}), "student_args", "{}", "None"),
    ],
)
def test_other_settings_are_refused_by_name(
    folder: RunFolder, other: Recipe, name: str, then: str, now: str
) -> None:
    with refused(str(folder.path), f"with {name} {then}, now it is {now}", "data.workers"):
        folder.finished(other)


def test_what_no_weight_depends_on_may_change(folder: RunFolder) -> None:
    folder.keep([DONE])
    other = replace(
        RECIPE,
        data=replace(RECIPE.data, workers=3),
        save_minutes=1.0,
        save_steps=2,
        log_every=3,
        trackers=["csv"],
    )
    assert folder.finished(other) == [DONE]


def test_what_was_reported_after_the_last_state_is_left_out(folder: RunFolder) -> None:
    runs = [Run("scalekd", 1), Run("scalekd", 2), Run("logit_kd", 1), Run("logit_kd", 2)]
    lines = [
        {"method": run.method, "seed": run.seed, "step": step}
        for step in (10, 20, 30)
        for run in runs
    ]
    whole = "".join(json.dumps(line) + "\n" for line in lines)
    folder.metrics.write_text(whole + '{"method": "scale')
    for run, step in zip(runs[:2], (20, 25), strict=True):
        write_checkpoint({"step": step}, run.checkpoint(folder.path))
    folder.trim_metrics(runs[:3])
    kept: dict[Run, list[int]] = {}
    for line in map(json.loads, folder.metrics.read_text().splitlines()):
        kept.setdefault(Run(line["method"], line["seed"]), []).append(line["step"])
    assert kept == {runs[0]: [10, 20], runs[1]: [10, 20], runs[3]: [10, 20, 30]}


def test_broken_lines_are_left_out_aloud(folder: RunFolder) -> None:
    folder.metrics.write_text(
        '{"method": "sc{"method": "supervised"}\n{"method": "supervised", "seed": 1, "step": 2}\n'
    )
    with pytest.warns(UserWarning, match=r"metrics.jsonl: broken lines that are left out: 1"):
        folder.trim_metrics([])
    assert len(folder.metrics.read_text().splitlines()) == 1


def test_a_full_disk_loses_no_student_and_says_what_it_lost(folder: RunFolder) -> None:
    folder.results.write_text("before\n")
    with a_disk_that_takes_no_file_larger_than(20):
        with pytest.warns(UserWarning, match=r"results.jsonl could not be written .* checkpoint"):
            folder.keep([DONE])
        with refused("students are trained", "summary.json", "make room", "--resume"):
            folder.conclude({"teacher_top1": None, "seeds": [1, 2]})
        with refused(str(folder.path), "cannot be made"):
            folder.make(RECIPE)
    assert folder.results.read_text() == "before\n"
    assert {file.name for file in folder.path.iterdir()} == {"settings.yaml", "results.jsonl"}


def test_a_full_disk_for_the_picture_alone_says_so_too(folder: RunFolder) -> None:
    entry = {"method": "scalekd", "seed": 1, "step": 2, "seconds": 1.0, "top1": 0.5, "loss": 1.0}
    folder.metrics.write_text(json.dumps(entry) + "\n")
    with a_disk_that_takes_no_file_larger_than(2000), refused("students are trained", "curves.png"):
        folder.conclude({"teacher_top1": None})
    assert not folder.curves.exists()
    folder.conclude({"teacher_top1": None})
    assert folder.curves.stat().st_size > 2000


def test_a_default_folder_is_the_next_or_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runs = Path("runs")
    assert choose_folder(RECIPE) == choose_folder(RECIPE, newest=True) == runs / "digits"
    for name in ("digits", "digits-2"):
        (runs / name).mkdir(parents=True)
    assert choose_folder(RECIPE) == runs / "digits-3"
    assert choose_folder(RECIPE, newest=True) == runs / "digits-2"
