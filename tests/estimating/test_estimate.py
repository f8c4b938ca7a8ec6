"""`estimate`: of a named GPU and of this machine, by small pairs."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from estimating.test_memory_simulation import RECIPE
from helpers.pictures import image_folder
from helpers.refusals import refused

from scalekd.estimating.estimate import TOGETHER, Estimate, estimate
from scalekd.estimating.gpus import GPUS
from scalekd.estimating.meta_pair import IMAGENET_IMAGES, count_training_images
from scalekd.estimating.text import format_estimate
from scalekd.recipe import Data


@cache
def modelled() -> Estimate:
    return estimate(replace(RECIPE, batch_size=256, accumulate=2), devices=4, gpu="a100")


def test_a_batch_is_shared_by_devices_and_parts() -> None:
    found = modelled()
    assert found.at_once == 32
    assert found.images == IMAGENET_IMAGES
    assert found.steps == IMAGENET_IMAGES // 256
    assert found.images_per_second == pytest.approx(256 / found.step[1])
    assert found.days[1] == pytest.approx(100 * found.steps * found.step[1] / 86_400)


def test_a_gpu_is_modelled_from_its_peak_and_assumed_shares() -> None:
    found = modelled()
    assert not found.pace.measured
    flop = 1e9 * 64 * (found.gflop.teacher + found.gflop.student + found.gflop.rest)
    change = found.pace.parts["optimizer"]
    assert found.pace.middle - change == pytest.approx(flop / (0.75 * 1e12 * GPUS["a100"].fp32))
    assert found.step[1] == pytest.approx(found.pace.middle / TOGETHER)
    assert sum(found.pace.parts.values()) == pytest.approx(found.pace.middle)
    assert "assumed" in found.pace.said


def test_what_is_not_known_is_said_and_no_number_is_made_up() -> None:
    by_name = {gain.setting: gain for gain in modelled().gains}
    compiled = by_name["compile"]
    assert (compiled.seconds, compiled.memory) == (None, None)
    tail = by_name["checkpoint_tail"]
    assert tail.seconds is not None
    assert tail.seconds < 0
    assert tail.memory is not None
    assert tail.memory > 0
    assert by_name["a cache of the teacher"].seconds == modelled().pace.parts["teacher"]


def test_compilation_is_modelled_in_half_precision_alone() -> None:
    found = estimate(replace(RECIPE, precision="bf16-mixed"), gpu="a100")
    (compiled,) = (gain for gain in found.gains if gain.setting == "compile")
    faster = estimate(replace(RECIPE, precision="bf16-mixed", compile=True), gpu="a100")
    assert compiled.seconds == pytest.approx(found.pace.middle - faster.pace.middle)
    assert compiled.seconds > 0
    assert "compile" not in [gain.setting for gain in faster.gains]


def test_a_small_memory_takes_more_parts() -> None:
    recipe = replace(RECIPE, batch_size=256)
    runtime = 1.0  # GB, assumed of a GPU
    found = estimate(recipe, gpu="a100", memory=runtime + 0.2)
    assert found.memory.total > found.limit
    assert 0 < found.largest < 256
    assert found.needed_accumulate is not None
    assert 256 // found.needed_accumulate <= found.largest
    assert f"--accumulate {found.needed_accumulate}" in format_estimate(found)
    nothing = estimate(recipe, gpu="a100", memory=0.5)
    assert (nothing.largest, nothing.needed_accumulate) == (0, None)
    assert "not even two" in format_estimate(nothing)


def test_this_machine_is_measured() -> None:
    found = estimate(
        replace(RECIPE, batch_size=16, seeds=[1, 2], compare=["supervised"]), images=160
    )
    assert found.pace.measured
    assert 0 < found.pace.low <= found.pace.middle <= found.pace.high
    assert all(seconds >= 0 for seconds in found.pace.parts.values())
    assert found.pace.parts["teacher"] > 0
    assert found.runs == 4
    assert found.steps == 10
    assert found.memory.runtime > 1e8
    assert found.memory.total < found.limit
    assert "8 images on this machine" in format_estimate(found)
    bf16 = next(gain for gain in found.gains if gain.setting.startswith("precision"))
    assert bf16.seconds is None


def test_images_are_counted_where_they_are(tmp_path: Path) -> None:
    root = str(image_folder(tmp_path / "images", each=5))
    seen = count_training_images(replace(RECIPE, data=Data(root)))
    assert (seen.count, seen.classes) == (15, 3)
    assert count_training_images(replace(RECIPE, data=Data(root)), images=99).count == 99
    digits = count_training_images(replace(RECIPE, data=Data("digits", epoch_images=500)))
    assert (digits.count, digits.classes) == (500, 10)


def test_what_cannot_be_estimated_is_refused() -> None:
    with refused("h1000", "h100", "a100"):
        estimate(RECIPE, gpu="h1000")
    with refused("cache is 'x', and what is estimated is the live teacher"):
        estimate(replace(RECIPE, cache="x"), gpu="h100")
    with refused("devices is 0"):
        estimate(RECIPE, devices=0)
    with refused("128", "3 devices", "multiple of 3", "126"):
        estimate(RECIPE, devices=3)
    with refused("memory is -1"):
        estimate(RECIPE, memory=-1.0)
    with refused("T4", "no bf16", "16-mixed"):
        estimate(replace(RECIPE, precision="bf16-mixed"), gpu="t4")
    with refused("/nowhere", "--images"):
        estimate(replace(RECIPE, data=Data("/nowhere")))
    with refused("images is 0"):
        estimate(RECIPE, images=0)
    with refused("100 images", "batch_size is 128"):
        estimate(RECIPE, images=100)
    with refused("no teacher"):
        estimate(replace(RECIPE, teacher=None))
    with refused("crossvit_tiny_240", "several final features"):
        estimate(replace(RECIPE, student="crossvit_tiny_240", data=Data("imagenet")))
