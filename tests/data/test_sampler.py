"""The batches of a run: their order, micro-batches and ranks."""

import doctest
from typing import Any

import pytest

from scalekd.data import sampler as sampler_module
from scalekd.data.sampler import ResumableBatchSampler


def sampler(images: int = 50, batch_size: int = 5, **options: Any) -> ResumableBatchSampler:
    options = {"images_per_epoch": images, "seed": 3, "epochs": 2, **options}
    return ResumableBatchSampler(images=images, batch_size=batch_size, **options)


def test_an_epoch_is_ordered_by_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        batches = list(sampler(seed=seed))[epoch * 10 : (epoch + 1) * 10]
        keys = [key for batch in batches for key in batch]
        assert {key // 50 for key in keys} == {epoch}
        return [key % 50 for key in keys]

    assert order(1, 0) == order(1, 0)
    assert sorted(order(1, 0)) == sorted(order(1, 1)) == list(range(50))
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)


@pytest.mark.parametrize(("images", "per_epoch", "batch_size"), [(50, 50, 7), (1000, 20, 4)])
def test_a_resumed_run_gets_the_batches_that_remain(
    images: int, per_epoch: int, batch_size: int
) -> None:
    options = {"images_per_epoch": per_epoch, "epochs": 3}
    all_batches = list(sampler(images, batch_size, **options))
    assert len(all_batches) == 3 * (per_epoch // batch_size)
    for start in range(len(all_batches) + 1):
        remaining = sampler(images, batch_size, **options, start_step=start)
        assert list(remaining) == all_batches[start:]
        assert len(remaining) == len(all_batches) - start


def test_micro_batches_of_a_step_make_its_batch() -> None:
    batches, micro_batches = (sampler(batch_size=6, start_step=5, micro_batches=n) for n in (1, 3))
    assert len(micro_batches) == 3 * len(batches)
    drawn = list(micro_batches)
    joined = [sum(drawn[i : i + 3], []) for i in range(0, len(drawn), 3)]  # noqa: RUF017
    assert joined == list(batches)


def test_an_epoch_of_a_few_images_has_other_images_each_time() -> None:
    batches = list(sampler(1000, 10, images_per_epoch=20, epochs=3))
    epochs = [{key % 1000 for batch in batches[i : i + 2] for key in batch} for i in (0, 2, 4)]
    assert [len(epoch) for epoch in epochs] == [20, 20, 20]
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("start", [0, 3])
def test_ranks_together_get_the_batches_of_a_single_rank(
    world_size: int, micro_batches: int, start: int
) -> None:
    options = {"images_per_epoch": 40, "batch_size": 16, "start_step": start}
    batches = list(sampler(**options))
    samplers = [
        sampler(**options, micro_batches=micro_batches, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    of_rank = [list(s) for s in samplers]
    assert {len(drawn) for drawn in of_rank} == {len(batches) * micro_batches}
    for step, batch in enumerate(batches):
        keys = [
            key
            for drawn in of_rank
            for keys in drawn[step * micro_batches : (step + 1) * micro_batches]
            for key in keys
        ]
        assert keys == batch
    assert all(len(keys) == 16 // world_size // micro_batches for d in of_rank for keys in d)
    assert [len(s) for s in samplers] == [len(drawn) for drawn in of_rank]


def test_the_example_in_the_docstring_of_the_sampler_runs() -> None:
    results = doctest.testmod(sampler_module)
    assert results.attempted > 0
    assert results.failed == 0
