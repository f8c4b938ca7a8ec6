"""The teacher in the package is the one that teacher.json describes."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers.refusals import refused
from helpers.tiny import tiny_digits
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from scalekd.device import best_device
from scalekd.digits import images, teacher
from scalekd.jobs.distill import distill
from scalekd.networks import input_config
from scalekd.runs.folder import RunFolder
from scalekd.runs.result import read_results
from scalekd.training.prepare import prepare
from scalekd.training.validation import top1


@pytest.fixture(scope="module")
def described() -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(teacher.WEIGHTS.with_name("teacher.json").read_text())
    return facts


def test_the_weights_of_the_digits_teacher_are_those_in_teacher_json(
    described: dict[str, Any],
) -> None:
    assert teacher.WEIGHTS.name == described["file"]
    assert hashlib.sha256(teacher.WEIGHTS.read_bytes()).hexdigest() == described["sha256"]


def test_the_weights_of_the_digits_teacher_are_half_precision_and_about_a_megabyte() -> None:
    assert 0.9e6 < teacher.WEIGHTS.stat().st_size < 1.3e6
    floating = [t for t in load_file(teacher.WEIGHTS).values() if t.is_floating_point()]
    assert floating
    assert {t.dtype for t in floating} == {torch.float16}


def test_timm_builds_the_digits_teacher_by_name_for_one_channel_of_32_pixels(
    described: dict[str, Any],
) -> None:
    model = timm.create_model("scalekd_digits_swin")
    assert sum(p.numel() for p in model.parameters()) == described["parameters"]
    config = input_config(model)
    assert (config.channels, config.size) == (1, (32, 32))
    assert (config.mean, config.std) == ((images.MEAN,), (images.STD,))
    logits, features = (
        model(torch.zeros(2, 1, 32, 32)),
        model.forward_intermediates(
            torch.zeros(2, 1, 32, 32), output_fmt="NCHW", intermediates_only=True
        ),
    )
    assert logits.shape == (2, 10)
    assert [tuple(f.shape[1:]) for f in features] == [(64, 8, 8), (128, 4, 4)]


def test_the_digits_teacher_takes_the_arguments_of_timms_models() -> None:
    model = timm.create_model(
        "scalekd_digits_swin",
        pretrained=True,
        num_classes=5,
        in_chans=3,
        img_size=64,
        drop_path_rate=0.2,
        pretrained_cfg_overlay={"mean": (0.3, 0.4, 0.5)},
    )
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 5)
    assert model.pretrained_cfg["mean"] == (0.3, 0.4, 0.5)
    packaged = load_file(teacher.WEIGHTS)["layers.0.blocks.0.mlp.fc1.weight"].float()
    assert torch.equal(model.state_dict()["layers.0.blocks.0.mlp.fc1.weight"], packaged)


def test_the_digits_teacher_is_a_student_and_its_folder_loads(tmp_path: Path) -> None:
    out = distill(
        tiny_digits(student="scalekd_digits_swin", student_args={}, student_weights="pretrained"),
        tmp_path / "out",
        parallel=1,
    )
    (result,) = read_results(RunFolder(out).results)[0]
    assert result.top1 is not None
    assert result.top1 > 0.8  # it starts from its teacher
    loaded = timm.create_model(f"local-dir:{out / 'student'}", pretrained=True)
    assert loaded.pretrained_cfg["architecture"] == "scalekd_digits_swin"
    card = (out / "student" / "README.md").read_text()
    assert "import timm\nimport scalekd\n" in card


def test_channels_of_a_student_that_the_digits_have_not_are_refused() -> None:
    with refused("student_args has in_chans 3", "'digits' have 1"):
        prepare(tiny_digits(student="test_resnet", student_args={"in_chans": 3}))


def test_the_accuracy_of_the_digits_teacher_is_that_in_teacher_json(
    described: dict[str, Any],
) -> None:
    model = timm.create_model("scalekd_digits_swin", pretrained=True).eval()
    assert next(model.parameters()).dtype == torch.float32
    batches = DataLoader(images.build_test_set(), 250)
    measured = top1(model.to(best_device()), batches, images.CLASSES)
    assert abs(measured - described["test_top1_after_float16"]) <= 0.001
