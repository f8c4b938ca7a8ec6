"""Finished runs are prolonged with a warm restart, and end as if it had been planned."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.pictures import image_folder
from helpers.places import snapshot
from helpers.real_runs import random_settings
from helpers.refusals import refused
from helpers.warned import warned

from scalekd.jobs.distill import distill
from scalekd.recipe import Data, Optim, Recipe
from scalekd.runs.folder import RunFolder
from scalekd.runs.status import read_run_folder


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    root = tmp_path_factory.mktemp("prolong")
    image_folder(root / "images", each=8, side=48)
    settings: dict[str, Any] = random_settings(root)
    data = Data(**{**settings.pop("data"), "workers": 0})
    optim = Optim(**settings.pop("optim"))
    return replace(Recipe(data=data, optim=optim, **settings), epochs=2, validate_every=1)


def planned(recipe: Recipe, epochs: int, **optim: Any) -> Recipe:
    return replace(recipe, epochs=epochs, optim=replace(recipe.optim, **optim))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state = torch.load(RunFolder(folder).checkpoints / "scalekd-seed7.ckpt", weights_only=True)
    return dict(state["learner"])


def rates(folder: Path) -> list[float]:
    lines = RunFolder(folder).metrics.read_text().splitlines()
    return [json.loads(line)["learning_rate"] for line in lines]


def test_a_prolonged_run_equals_one_with_the_planned_restart(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = distill(recipe, tmp_path / "run", parallel=1)
    first = weights(out)
    capsys.readouterr()
    distill(planned(recipe, 4), out, parallel=1, resume=True)
    said = "prolonged from 2 to 4 epochs with a warm restart"
    assert said in " ".join(capsys.readouterr().out.split())
    whole = distill(planned(recipe, 4, restarts=[2]), tmp_path / "whole", parallel=1)
    ended, expected = weights(out), weights(whole)
    assert all(torch.equal(ended[name], expected[name]) for name in expected)
    assert any(not torch.equal(first[name], expected[name]) for name in expected)
    # 24 images in batches of 4: the third epoch begins with step 13, at the full rate.
    at_step = dict(zip(_recorded(out), rates(out), strict=True))
    assert at_step[14] > at_step[12]
    assert read_run_folder(RunFolder(out)).state == "finished"
    assert (out / "results-2-epochs.jsonl").exists()
    assert (out / "summary-2-epochs.json").exists()
    before = snapshot(out / "checkpoints")
    distill(planned(recipe, 4), out, parallel=1, resume=True)  # finished: nothing is trained
    assert snapshot(out / "checkpoints") == before
    (out / "student" / "notes.txt").write_text("mine")
    with warned(r"student has files that no run wrote.*student-before-1"):
        distill(planned(recipe, 5), out, parallel=1, resume=True)
    assert RunFolder(out).planned_training() == (5, [2, 4])
    assert (out / "student-before-1" / "notes.txt").read_text() == "mine"
    assert not (out / "student" / "notes.txt").exists()


def _recorded(folder: Path) -> list[int]:
    lines = RunFolder(folder).metrics.read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def test_after_drops_the_rate_stays(recipe: Recipe, tmp_path: Path) -> None:
    dropped = planned(recipe, 2, drops=[1.5])
    out = distill(dropped, tmp_path / "run", parallel=1)
    last = rates(out)[-1]
    distill(planned(dropped, 3), out, parallel=1, resume=True)
    assert rates(out)[-1] == last
    assert RunFolder(out).planned_training() == (3, [])


def test_what_cannot_be_prolonged_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    out = distill(recipe, tmp_path / "run", parallel=1)
    before = snapshot(out)
    with refused("epochs 2, now it is 1"):
        distill(planned(recipe, 1, warmup_epochs=0.5), out, parallel=1, resume=True)
    with refused("optim.lr"):
        distill(planned(recipe, 3, lr=1e-5), out, parallel=1, resume=True)
    (out / "results.jsonl").unlink()
    del before["results.jsonl"]
    with refused("epochs is 3", "have not finished their 2", "--epochs 2 first"):
        distill(planned(recipe, 3), out, parallel=1, resume=True)
    assert snapshot(out) == before


def test_a_polynomial_schedule_is_not_prolonged(recipe: Recipe, tmp_path: Path) -> None:
    out = distill(planned(recipe, 2, poly_power=0.9), tmp_path / "run", parallel=1)
    before = snapshot(out)
    with refused("epochs is 3", "finished their 2", "optim.poly_power", "another --out"):
        distill(planned(recipe, 3, poly_power=0.9), out, parallel=1, resume=True)
    assert snapshot(out) == before


@pytest.mark.parametrize(
    ("optim", "message"),
    [
        ({"restarts": [5]}, "[5]: they must rise, and lie between"),
        ({"restarts": [3, 2]}, "must rise"),
        ({"restarts": [1]}, "the warm-up's 1 and"),
        ({"restarts": [2], "drops": [3.0]}, "drop one of the two"),
    ],
)
def test_restarts_out_of_order_are_refused(optim: dict[str, Any], message: str) -> None:
    with refused("optim.restarts are", message):
        Recipe(None, "test_resnet", Data("any"), epochs=5, optim=Optim(warmup_epochs=1, **optim))
