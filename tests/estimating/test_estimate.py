"""`estimate`: of a modelled GPU and of this machine, with small pairs."""

import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from helpers.pictures import image_folder
from helpers.refusals import refused
from helpers.small_pair import SMALL_PAIR

from scalekd.estimating.estimate import SCALING_EFFICIENCY, Estimate, estimate
from scalekd.estimating.gpus import GPUS
from scalekd.estimating.measured_rates import expected_error, read_rates
from scalekd.estimating.meta_pair import IMAGENET_IMAGES, count_training_images
from scalekd.estimating.text import format_estimate
from scalekd.recipe import Data, Optim


@cache
def estimate_of_four_a100() -> Estimate:
    return estimate(replace(SMALL_PAIR, batch_size=256, accumulate=2), devices=4, gpu="a100")


def test_a_batch_is_split_over_devices_and_micro_batches() -> None:
    result = estimate_of_four_a100()
    assert result.micro_batch == 32
    assert result.images_per_epoch == IMAGENET_IMAGES
    assert result.steps_per_epoch == IMAGENET_IMAGES // 256
    step_seconds = result.step_seconds.middle
    assert result.images_per_second == pytest.approx(256 / step_seconds)
    days = 100 * result.steps_per_epoch * step_seconds / 86_400
    assert result.days.middle == pytest.approx(days)


def test_a_gpu_step_is_modelled_from_its_operations_and_the_update() -> None:
    result = estimate_of_four_a100()
    step_time = result.step_time
    assert not step_time.measured
    assert all(seconds > 0 for seconds in step_time.parts.values())
    assert sum(step_time.parts.values()) == pytest.approx(step_time.seconds.middle)
    all_devices = step_time.seconds.middle / SCALING_EFFICIENCY
    assert result.step_seconds.middle == pytest.approx(all_devices)
    # Two micro-batches of 32 images, each at most as fast as the FLOP at the card's peak in TF32.
    flop = 1e9 * 64 * (result.gflop.teacher + result.gflop.student + result.gflop.rest)
    assert step_time.seconds.middle > flop / (1e12 * GPUS["a100"].tf32)


def test_a_modelled_step_has_the_range_and_the_neighbours_of_the_measured_speeds() -> None:
    result = estimate_of_four_a100()
    seconds, error = result.step_time.seconds, expected_error(read_rates(), "A100 80GB SXM")
    assert seconds.low == pytest.approx(seconds.middle / error.factor)
    assert seconds.high == pytest.approx(seconds.middle * error.factor)
    assert str(error) in result.step_time.basis
    assert len(result.step_time.nearest) == 3
    lines = format_estimate(result).splitlines()
    assert len([line for line in lines if line.startswith("measured")]) == 3


def test_a_faster_card_and_more_images_at_once_make_a_difference() -> None:
    bf16 = replace(SMALL_PAIR, precision="bf16-mixed")
    h100, rtx3090 = (estimate(bf16, gpu=name) for name in ("h100", "rtx3090"))
    assert h100.images_per_second > rtx3090.images_per_second
    halved = estimate(replace(bf16, accumulate=2), gpu="rtx3090")  # twice as many launches
    assert halved.step_time.seconds.middle > rtx3090.step_time.seconds.middle


def test_every_known_gpu_is_named_in_the_help() -> None:
    assert estimate.__doc__ is not None
    assert all(name in estimate.__doc__ for name in GPUS)


def test_savings_of_a_modelled_step_are_modelled() -> None:
    result = estimate_of_four_a100()
    savings = {saving.setting: saving for saving in result.savings}
    compiled = savings["compile"]
    assert compiled.seconds is not None
    assert compiled.memory is None
    for name in ("checkpoint_tail", "checkpoint_projectors"):
        seconds, memory = savings[name].seconds, savings[name].memory
        assert seconds is not None
        assert seconds < 0
        assert memory is not None
        assert memory > 0
    assert savings["cache"].seconds == result.step_time.parts["teacher"]


@pytest.mark.parametrize("setting", [{"compile": True}, {"precision": "bf16-mixed"}])
def test_what_a_setting_saves_is_the_difference_of_two_estimates(setting: dict[str, Any]) -> None:
    result = estimate(SMALL_PAIR, gpu="a100")
    (name,) = setting
    (saving,) = (saving for saving in result.savings if saving.setting.startswith(name))
    with_it = estimate(replace(SMALL_PAIR, **setting), gpu="a100")
    saved = result.step_time.seconds.middle - with_it.step_time.seconds.middle
    assert saving.seconds == pytest.approx(saved)
    assert saved > 0
    assert name not in [saving.setting for saving in with_it.savings]


@pytest.mark.parametrize("name", ["checkpoint_tail", "checkpoint_projectors"])
def test_a_checkpoint_takes_and_saves_what_its_saving_tells(name: str) -> None:
    result = estimate(SMALL_PAIR, gpu="a100")
    (saving,) = (saving for saving in result.savings if saving.setting == name)
    checkpointed = estimate(replace(SMALL_PAIR, **{name: True}), gpu="a100")  # type: ignore[arg-type]
    added = checkpointed.step_time.seconds.middle - result.step_time.seconds.middle
    assert saving.seconds == pytest.approx(-added)
    assert saving.memory == result.memory.total - checkpointed.memory.total
    assert name not in [saving.setting for saving in checkpointed.savings]


def test_a_small_memory_needs_more_micro_batches() -> None:
    recipe = replace(SMALL_PAIR, batch_size=256)
    runtime = 1.0  # GB, assumed of a GPU
    result = estimate(recipe, gpu="a100", memory=runtime + 0.2)
    assert result.memory.total > result.memory_limit
    assert 0 < result.largest_micro_batch < 256
    assert result.smallest_accumulate is not None
    assert 256 // result.smallest_accumulate <= result.largest_micro_batch
    assert f"--accumulate for this batch is {result.smallest_accumulate}" in format_estimate(result)
    too_small = estimate(recipe, gpu="a100", memory=0.5)
    assert (too_small.largest_micro_batch, too_small.smallest_accumulate) == (0, None)
    assert "not even two" in format_estimate(too_small)


def test_a_step_is_measured_on_this_machine_without_a_gpu_name() -> None:
    recipe = replace(
        SMALL_PAIR,
        batch_size=16,
        seeds=[1, 2],
        compare=["supervised"],
        student_weights="nowhere.pth",
        teacher_classes="natural",
    )
    result = estimate(recipe, images=160)
    step_time = result.step_time
    assert step_time.measured
    assert 0 < step_time.seconds.low <= step_time.seconds.middle <= step_time.seconds.high
    assert all(seconds >= 0 for seconds in step_time.parts.values())
    assert step_time.parts["teacher"] > 0
    assert result.runs == 4
    assert result.steps_per_epoch == 10
    assert result.memory.runtime_libraries > 1e8
    assert result.memory.total < result.memory_limit
    assert "8 images on this machine" in format_estimate(result)
    bf16 = next(saving for saving in result.savings if saving.setting.startswith("precision"))
    assert bf16.seconds is None


def test_a_script_that_estimates_without_a_guard_is_told_so(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from scalekd.estimating.estimate import estimate\n"
        "from scalekd.recipe import Data, Recipe\n"
        'estimate(Recipe("test_vit", "test_resnet", Data("imagenet", image_size=64)), images=999)\n'
    )
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert "InputError: the process that measures a step ended" in ran.stderr
    assert 'if __name__ == "__main__":' in ran.stderr.splitlines()[-1]


def test_images_are_counted_in_the_data_folder(tmp_path: Path) -> None:
    root = str(image_folder(tmp_path / "images", each=5))
    recipe = replace(SMALL_PAIR, data=Data(root))
    images = count_training_images(recipe)
    assert (images.count, images.classes) == (15, 3)
    assert count_training_images(recipe, images=99).count == 99
    of_an_epoch = replace(SMALL_PAIR, data=Data("imagenet", epoch_images=50))
    assert count_training_images(of_an_epoch, images=99).count == 50
    assert count_training_images(of_an_epoch, images=9).count == 9
    few = replace(SMALL_PAIR, data=Data("imagenet", train_images=128_000))
    assert count_training_images(few).count == 128_000
    digits = count_training_images(replace(SMALL_PAIR, data=Data("digits", epoch_images=500)))
    assert (digits.count, digits.classes) == (500, 10)


def test_a_recipe_that_cannot_be_estimated_is_refused() -> None:
    with refused("gpu is 'h1000'", "h100", "a100"):
        estimate(SMALL_PAIR, gpu="h1000")
    with refused("cache is 'x'", "estimated with the teacher's forward pass", "--cache"):
        estimate(replace(SMALL_PAIR, cache="x"), gpu="h100")
    with refused("devices is 0"):
        estimate(SMALL_PAIR, devices=0)
    with refused("optim.name is 'adahessian'", "cannot be used here"):
        estimate(replace(SMALL_PAIR, optim=Optim("adahessian")), gpu="h100")
    with refused("128", "3 devices", "multiple of 3", "126"):
        estimate(SMALL_PAIR, devices=3)
    with refused("memory is -1"):
        estimate(SMALL_PAIR, memory=-1.0)
    with refused("T4", "no bf16", "16-mixed"):
        estimate(replace(SMALL_PAIR, precision="bf16-mixed"), gpu="t4")
    with refused("/nowhere", "--images"):
        estimate(replace(SMALL_PAIR, data=Data("/nowhere")))
    with refused("images is 0"):
        estimate(SMALL_PAIR, images=0)
    with refused("100 images", "batch_size is 128"):
        estimate(SMALL_PAIR, images=100)
    with refused("no teacher"):
        estimate(replace(SMALL_PAIR, teacher=None))
    with refused("crossvit_tiny_240", "several final features"):
        estimate(replace(SMALL_PAIR, student="crossvit_tiny_240", data=Data("imagenet")))
