"""The settings of a segmentation, and the polynomial schedule."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonargparse
import pytest
import torch
from helpers.refusals import refused

from scalekd.recipe import Optim
from scalekd.runs.folder import RunFolder
from scalekd.runs.status import read_run_folder
from scalekd.training.optim import build_schedule
from scalekd.transfer.segmentation.recipe import SegmentData, SegmentRecipe


def recipe(**changes: Any) -> SegmentRecipe:
    return SegmentRecipe("timm:test_resnet", SegmentData("scenes"), **changes)


def test_a_recipe_is_read_from_what_it_writes() -> None:
    settings = recipe(
        steps=7, optim=Optim(warmup_epochs=0.5, poly_power=0.9), backbone_args={"drop_rate": 0.1}
    ).as_dict()
    parser = jsonargparse.ArgumentParser()
    parser.add_class_arguments(SegmentRecipe, as_group=False)
    read = SegmentRecipe(**vars(parser.instantiate(parser.parse_object(settings))))
    assert read.as_dict() == settings


def test_the_learning_rate_falls_by_a_polynomial_after_a_linear_warm_up() -> None:
    optim = Optim(lr=0.5, warmup_epochs=0.4, min_lr=0.1, poly_power=0.9)
    weights = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weights], lr=0.5)
    schedule = build_schedule(optimizer, optim, learning_rate=0.5, steps=20, steps_per_epoch=10)
    rates = []
    for step in range(21):
        schedule.step_update(step)
        rates.append(optimizer.param_groups[0]["lr"])
    fallen = [0.1 + 0.4 * (1 - step / 20) ** 0.9 for step in range(4, 21)]
    assert rates[4:] == pytest.approx(fallen)
    assert rates[0] == pytest.approx(0.5 / 4)
    assert rates[:4] == sorted(rates[:4])


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"optim": Optim(warmup_epochs=0, poly_power=0.0)}, ["optim.poly_power is 0.0"]),
        ({"optim": Optim(poly_power=1.0, drops=[50])}, ["optim.poly_power", "one schedule"]),
        ({"optim": Optim(warmup_epochs=200)}, ["optim.warmup_epochs is 200"]),
        ({"steps": 0}, ["steps is 0"]),
        ({"accumulate": 3}, ["accumulate is 3", "16"]),
        ({"auxiliary": -0.1}, ["auxiliary is -0.1"]),
        ({"head_channels": 7}, ["head_channels is 7", "even"]),
        ({"seed": -1}, ["seed is -1"]),
        ({"backbone_args": {"pretrained": True}}, ["backbone_args has pretrained"]),
        ({"inference": "tiled"}, ["inference", "whole"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_setting_that_cannot_be_is_refused(changes: dict[str, Any], parts: list[str]) -> None:
    with refused(*parts):
        recipe(**changes)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("classes", 1),
        ("ignore_label", -1),
        ("short_side", 0),
        ("scale", (2.0, 1.0)),
        ("flip", 1.5),
        ("max_class_share", 0.0),
        ("epoch_images", 0),
        ("workers", -1),
    ],
)
def test_a_setting_of_the_images_that_cannot_be_is_refused(name: str, value: Any) -> None:
    with refused(f"data.{name}"):
        replace(SegmentData("scenes"), **{name: value})


def test_the_list_of_runs_shows_a_transfer(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.start(recipe(), {}, [])
    assert read_run_folder(folder).state == "stopped"
    line = {"method": "segment", "seed": 0, "step": 8, "steps": 8, "seconds": 2.0, "loss": 1.0}
    folder.append_metrics({**line, "top1": None, "scores": {"miou": 0.25}})
    status = read_run_folder(folder)
    assert (status.state, status.step, status.problems) == ("finished", 8, [])
    assert (status.student, status.transfer) == ("timm:test_resnet", "segmentation")
    assert status.scores == {"miou": 0.25}
    assert json.loads(json.dumps(status.settings))["data.root"] == "scenes"
