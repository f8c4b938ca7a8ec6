"""The teacher in the package is the one that teacher.json describes."""

import hashlib
import json
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from scalekd.device import best_device
from scalekd.digits import images, teacher
from scalekd.networks import input_config
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


def test_the_accuracy_of_the_digits_teacher_is_that_in_teacher_json(
    described: dict[str, Any],
) -> None:
    model = timm.create_model("scalekd_digits_swin", pretrained=True).eval()
    assert next(model.parameters()).dtype == torch.float32
    batches = DataLoader(images.build_test_set(), 250)
    measured = top1(model.to(best_device()), batches, images.CLASSES)
    assert abs(measured - described["test_top1_after_float16"]) <= 0.001
