"""The operations of a step: its parts, and a tail that is computed twice."""

import pytest
import torch
from helpers.small_pair import SMALL_PAIR

from scalekd.estimating.memory_simulation import MemorySimulation
from scalekd.estimating.meta_pair import TrainingImages, build_pair_on_meta, count_tail_gflop
from scalekd.estimating.operations import Kind, Operation
from scalekd.estimating.step_operations import trace_step


@pytest.fixture(scope="module")
def simulation() -> MemorySimulation:
    return MemorySimulation(build_pair_on_meta(SMALL_PAIR, TrainingImages(1, 1000)))


def flop(operations: list[Operation]) -> int:
    return sum(operation.work.flop for operation in operations)


def test_a_step_has_the_work_of_its_parts_and_of_the_projectors(
    simulation: MemorySimulation,
) -> None:
    traced = trace_step(simulation, 4, "32-true")
    assert 0 < flop(traced.teacher) + flop(traced.student) < flop(traced.step)
    assert not any(operation.work.backward for operation in traced.teacher)
    assert any(operation.work.backward for operation in traced.student)
    twice = trace_step(simulation, 8, "32-true")
    assert flop(twice.step) == pytest.approx(2 * flop(traced.step), rel=0.01)


def test_products_are_in_half_precision_under_autocast(simulation: MemorySimulation) -> None:
    def in_float32(precision: str) -> float:
        step = trace_step(simulation, 4, precision).step  # type: ignore[arg-type]
        products = [op.work for op in step if op.work.kind is Kind.MATRIX_PRODUCT]
        return sum(work.flop for work in products if work.float32) / sum(
            work.flop for work in products
        )

    assert in_float32("32-true") == 1
    assert 0 < in_float32("bf16-mixed") < 0.5  # the final alternative view's projector


def test_the_tail_is_computed_for_each_view(simulation: MemorySimulation) -> None:
    traced = trace_step(simulation, 4, "32-true")
    pair = simulation.pair
    assert len(pair.criterion.penultimate) == 2
    meta_pair = build_pair_on_meta(SMALL_PAIR, TrainingImages(1, 1000))
    with torch.device("meta"):
        assert flop(traced.tail) == pytest.approx(4e9 * count_tail_gflop(meta_pair))
