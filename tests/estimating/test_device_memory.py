"""The largest micro-batch that fits into a device, and the parts of a device's memory."""

from dataclasses import replace

import pytest
from helpers.small_pair import SMALL_PAIR

from scalekd.estimating.device_memory import MemoryModel, largest_micro_batch
from scalekd.estimating.meta_pair import TrainingImages, build_pair_on_meta


def test_the_largest_micro_batch_is_the_last_multiple_of_eight_that_fits() -> None:
    assert largest_micro_batch(lambda n: 100 + 10 * n, 740) == 64
    assert largest_micro_batch(lambda n: 100 + 10 * n, 739) == 56
    assert largest_micro_batch(lambda n: 100 + 10 * n, 180) == 8


def test_where_eight_images_do_not_fit_the_largest_micro_batch_is_four_two_or_none() -> None:
    limits = (179, 139, 119)
    assert [largest_micro_batch(lambda n: 100 + 10 * n, limit) for limit in limits] == [4, 2, 0]


def test_the_largest_micro_batch_is_found_where_memory_grows_faster_later() -> None:
    def bytes_needed(images: int) -> float:
        return max(100 + 10 * images, 20 * images)

    largest = largest_micro_batch(bytes_needed, 1000)
    assert largest == 48
    assert bytes_needed(largest) <= 1000 < bytes_needed(largest + 8)


def build_memory_model(devices: int = 1, **changes: object) -> MemoryModel:
    recipe = replace(SMALL_PAIR, **changes)  # type: ignore[arg-type]
    pair = build_pair_on_meta(recipe, TrainingImages(100, 1000))
    return MemoryModel(pair, recipe, devices)


def test_fsdp_divides_weights_gradients_and_optimizer_state_but_not_activations() -> None:
    unsharded = build_memory_model().device_memory(4)
    sharded = build_memory_model(4, fsdp=["student", "teacher"]).device_memory(4)
    weights = "teacher_weights", "student_weights", "projector_weights"
    for part in (*weights, "gradients", "optimizer_state"):
        assert getattr(sharded, part) == getattr(unsharded, part) / 4
    assert sharded.student_activations == unsharded.student_activations


def test_the_moving_average_takes_as_much_memory_as_the_student() -> None:
    with_average = build_memory_model(ema=0.9).device_memory(4)
    assert with_average.average_weights == with_average.student_weights
    assert build_memory_model().device_memory(4).average_weights == 0


def test_a_real_peak_calibrates_the_allocator_overhead() -> None:
    model = build_memory_model()
    assumed = model.device_memory(4)
    live = assumed.total - assumed.allocator_overhead - assumed.runtime_libraries
    model.calibrate(4, int(1.25 * live) + 1000, 1000)
    assert model.device_memory(4).total == pytest.approx(1.25 * live + 1000, rel=1e-6)
    assert model.device_memory(8).allocator_overhead > model.device_memory(4).allocator_overhead
    sharded = build_memory_model(4, fsdp=["student", "teacher"])  # the real step is of one process
    sharded.calibrate(4, int(1.25 * live) + 1000, 1000)
    assert sharded.overhead_ratio == pytest.approx(0.25, rel=1e-6)
    assert sharded.device_memory(4).total < model.device_memory(4).total
