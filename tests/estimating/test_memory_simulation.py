"""The simulated memory of a step against what autograd stores in a real one."""

from functools import cache

import pytest
import torch
from helpers.small_pair import SIDE, SMALL_PAIR
from torch import Tensor

from scalekd import ScaleKD
from scalekd.estimating.memory_simulation import (
    LiveMemory,
    MemorySimulation,
    StepMemory,
    optimizer_state_ratio,
)
from scalekd.estimating.meta_pair import TrainingImages, build_pair_on_meta
from scalekd.networks import FrozenTeacher, build_model


@cache
def simulation() -> MemorySimulation:
    return MemorySimulation(build_pair_on_meta(SMALL_PAIR, TrainingImages(100, 1000)))


def simulate(
    images: int = 4,
    precision: str = "32-true",
    accumulate: bool = False,
    checkpoint_tail: bool = False,
) -> StepMemory:
    return simulation().simulate_step(images, precision, accumulate, checkpoint_tail)  # type: ignore[arg-type]


@cache
def real_pair() -> ScaleKD:
    size = (SIDE, SIDE)
    teacher, _ = build_model("test_vit", "random", size)
    student, _ = build_model("test_resnet", "random", size, num_classes=1000)
    return ScaleKD(FrozenTeacher(teacher, size), student, size=size).train()


def count_bytes(tensors: list[Tensor]) -> int:
    return sum(t.untyped_storage().nbytes() for t in tensors)


def test_simulated_weights_and_gradients_equal_those_of_the_real_pair() -> None:
    step, pair = simulate(), real_pair()
    student = [*pair.student.parameters(), *pair.student.buffers()]
    trained = [*pair.student.parameters(), *pair.criterion.parameters()]
    assert step.teacher_weights == count_bytes([*pair.teacher.model.parameters()])
    assert step.student_weights == count_bytes(student)
    assert step.gradients == count_bytes(trained)


def test_simulated_activations_match_what_autograd_stores_in_a_real_step() -> None:
    """Live beside what autograd stores are the images, the teacher's feature and the outputs."""
    pair = real_pair()
    weights = {t.untyped_storage().data_ptr() for t in [*pair.parameters(), *pair.buffers()]}
    weights |= {p.untyped_storage().data_ptr() for p in pair.teacher.model.parameters()}
    stored: dict[int, int] = {}

    def record(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            stored[storage.data_ptr()] = storage.nbytes()
        return tensor

    images = torch.randn(4, 3, SIDE, SIDE)
    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        loss = pair(images).loss
    assert loss.requires_grad
    step = simulate(4)
    activations = step.student_activations + step.projector_activations
    assert sum(stored.values()) == pytest.approx(activations, rel=0.1)


def test_activations_grow_with_the_images_and_weights_do_not() -> None:
    few, many = simulate(4), simulate(8)
    assert many.student_activations == pytest.approx(2 * few.student_activations, rel=0.02)
    assert many.projector_activations == pytest.approx(2 * few.projector_activations, rel=0.1)
    constant = "teacher_weights", "student_weights", "projector_weights", "gradients"
    assert [getattr(few, part) for part in constant] == [getattr(many, part) for part in constant]


def test_half_precision_and_a_checkpointed_tail_store_fewer_activations() -> None:
    plain = simulate(16)
    assert simulate(16, "bf16-mixed").student_activations < 0.8 * plain.student_activations
    checkpointed = simulate(16, checkpoint_tail=True)
    assert checkpointed.projector_activations < plain.projector_activations
    assert checkpointed.student_activations == plain.student_activations


def test_a_half_precision_teacher_stores_in_half_precision_what_autocast_casts() -> None:
    teacher, _ = build_model("test_vit", "random", (SIDE, SIDE))
    frozen = FrozenTeacher(teacher, (SIDE, SIDE))
    frozen.cast_to_half(torch.bfloat16, torch.device("cpu"))
    cast = count_bytes([*teacher.parameters()])
    assert cast < 0.6 * simulate().teacher_weights
    assert simulate(precision="bf16-mixed").teacher_weights == cast
    full = count_bytes([*real_pair().teacher.model.parameters()])
    assert simulate().teacher_weights == full


def test_accumulated_gradients_do_not_lower_the_peak() -> None:
    accumulated, plain = vars(simulate(accumulate=True)), vars(simulate())
    assert sum(accumulated.values()) >= sum(plain.values())


def test_live_memory_counts_a_shared_storage_once_and_forgets_released_tensors() -> None:
    with LiveMemory() as live:
        tensor = torch.empty(256)
        view = tensor[:16]
        assert live.current == 1024
        del tensor, view
        assert (live.current, live.peak) == (0, 1024)


@pytest.mark.parametrize(("name", "copies"), [("adamw", 2), ("sgd", 1), ("lamb", 2)])
def test_an_optimizer_stores_this_many_copies_of_the_weights(name: str, copies: int) -> None:
    assert optimizer_state_ratio(name) == copies
