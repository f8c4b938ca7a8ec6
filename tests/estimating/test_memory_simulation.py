"""The memory of a step, found without running it, against what autograd keeps in a real one."""

from functools import cache

import pytest
import torch
from torch import Tensor

from scalekd import ScaleKD
from scalekd.estimating.memory_simulation import Footprint, Rehearsal, optimizer_share
from scalekd.estimating.meta_pair import TrainingImages, build_on_meta
from scalekd.networks import FrozenTeacher, build_model
from scalekd.recipe import Data, Recipe

SIDE = 64
RECIPE = Recipe(
    teacher="test_vit",
    student="test_resnet",
    data=Data("imagenet", image_size=SIDE),
    teacher_size=(SIDE, SIDE),
)


@cache
def rehearsal() -> Rehearsal:
    return Rehearsal(build_on_meta(RECIPE, TrainingImages(100, 1000)))


def footprint(
    images: int = 4,
    precision: str = "32-true",
    accumulate: bool = False,
    checkpoint_tail: bool = False,
) -> Footprint:
    return rehearsal().footprint(images, precision, accumulate, checkpoint_tail)  # type: ignore[arg-type]


@cache
def real() -> ScaleKD:
    teacher, _ = build_model("test_vit", "random", (SIDE, SIDE))
    student, _ = build_model("test_resnet", "random", (SIDE, SIDE), num_classes=1000)
    size = (SIDE, SIDE)
    return ScaleKD(FrozenTeacher(teacher, size), student, size=size).train()


def bytes_of(tensors: list[Tensor]) -> int:
    return sum(t.untyped_storage().nbytes() for t in tensors)


def test_weights_and_gradients_are_those_of_the_real_pair() -> None:
    seen, pair = footprint(), real()
    assert seen.teacher == bytes_of([*pair.teacher.model.parameters()])
    assert seen.student == bytes_of([*pair.student.parameters(), *pair.student.buffers()])
    assert seen.gradients == bytes_of([*pair.student.parameters(), *pair.criterion.parameters()])


def test_activations_are_what_autograd_keeps_in_a_real_step() -> None:
    """It keeps a little less than what is alive: the images, the teacher's feature, the outputs."""
    pair = real()
    own = {t.untyped_storage().data_ptr() for t in [*pair.parameters(), *pair.buffers()]}
    own |= {p.untyped_storage().data_ptr() for p in pair.teacher.model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    images = torch.randn(4, 3, SIDE, SIDE)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = pair(images).loss
    assert loss.requires_grad
    seen = footprint(4)
    activations = seen.student_activations + seen.projector_activations
    assert sum(kept.values()) == pytest.approx(activations, rel=0.1)


def test_activations_grow_with_the_images_and_weights_do_not() -> None:
    few, many = footprint(4), footprint(8)
    assert many.student_activations == pytest.approx(2 * few.student_activations, rel=0.02)
    assert many.projector_activations == pytest.approx(2 * few.projector_activations, rel=0.1)
    weights = "teacher", "student", "projectors", "gradients"
    assert [getattr(few, w) for w in weights] == [getattr(many, w) for w in weights]


def test_half_precision_and_a_checkpointed_tail_keep_less() -> None:
    plain = footprint(16)
    assert footprint(16, "bf16-mixed").student_activations < 0.8 * plain.student_activations
    again = footprint(16, checkpoint_tail=True)
    assert again.projector_activations < plain.projector_activations
    assert again.student_activations == plain.student_activations


def test_of_a_teacher_in_half_precision_those_weights_are_halved_that_autocast_casts() -> None:
    teacher, _ = build_model("test_vit", "random", (SIDE, SIDE))
    frozen = FrozenTeacher(teacher, (SIDE, SIDE))
    frozen.cast_to_half(torch.bfloat16, torch.device("cpu"))
    halved = bytes_of([*teacher.parameters()])
    assert halved < 0.6 * footprint().teacher
    assert footprint(precision="bf16-mixed").teacher == halved
    assert footprint().teacher == bytes_of([*real().teacher.model.parameters()])


def test_gradients_that_stay_are_there_when_the_pass_begins() -> None:
    assert footprint(accumulate=True).peak >= footprint().peak


@pytest.mark.parametrize(("name", "share"), [("adamw", 2), ("sgd", 1), ("lamb", 2)])
def test_an_optimizer_keeps_so_many_copies_of_the_weights(name: str, share: int) -> None:
    assert optimizer_share(name) == share
