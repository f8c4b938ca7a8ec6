"""What fits into a device, and what its parts come to."""

from dataclasses import replace

import pytest
from estimating.test_memory_simulation import RECIPE

from scalekd.estimating.device_memory import Needs, largest
from scalekd.estimating.meta_pair import TrainingImages, build_on_meta


def test_the_largest_is_the_last_multiple_of_eight_that_fits() -> None:
    assert largest(lambda n: 100 + 10 * n, 740) == 64
    assert largest(lambda n: 100 + 10 * n, 739) == 56
    assert largest(lambda n: 100 + 10 * n, 180) == 8


def test_of_fewer_than_eight_four_two_or_none_fit() -> None:
    assert [largest(lambda n: 100 + 10 * n, limit) for limit in (179, 139, 119)] == [4, 2, 0]


def test_it_is_found_where_the_need_grows_faster_later() -> None:
    def needed(images: int) -> float:
        return max(100 + 10 * images, 20 * images)

    found = largest(needed, 1000)
    assert found == 48
    assert needed(found) <= 1000 < needed(found + 8)


def needs(devices: int = 1, **changes: object) -> Needs:
    recipe = replace(RECIPE, **changes)  # type: ignore[arg-type]
    return Needs(build_on_meta(recipe, TrainingImages(100, 1000)), recipe, devices)


def test_shards_are_divided_by_the_devices_and_activations_are_not() -> None:
    whole = needs().of(4)
    shared = needs(4, fsdp=["student", "teacher"]).of(4)
    for part in ("teacher", "student", "projectors", "gradients", "optimizer"):
        assert getattr(shared, part) == getattr(whole, part) / 4
    assert shared.student_activations == whole.student_activations


def test_an_average_is_one_more_student() -> None:
    averaged = needs(ema=0.9).of(4)
    assert averaged.average == averaged.student
    assert needs().of(4).average == 0


def test_a_real_peak_gives_the_overhead() -> None:
    found = needs()
    alive = found.of(4).total - found.of(4).overhead - found.of(4).runtime
    found.learn_from(4, int(1.25 * alive) + 1000, 1000)
    assert found.of(4).total == pytest.approx(1.25 * alive + 1000, rel=1e-6)
    assert found.of(8).overhead > found.of(4).overhead
