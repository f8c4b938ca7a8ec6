"""A teacher whose weights are in half precision, cast as autocast would cast them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.small_models import SIZE, images, resnet, swin, vit
from helpers.teachers import TEACHERS, freeze, images_for, tokens_for
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from scalekd import FrozenTeacher, ScaleKD

CPU = torch.device("cpu")


def half() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


def passed(teacher: FrozenTeacher, tokens: Tensor) -> list[Tensor]:
    seen = teacher(images_for(teacher, 3))
    given = teacher.tail(tokens)
    (gradient,) = torch.autograd.grad(given.float().square().sum(), tokens)
    return [t for t in (seen.final, seen.logits, given, gradient) if t is not None]


@pytest.mark.parametrize("make", TEACHERS.values(), ids=TEACHERS)
def test_a_teacher_in_half_precision_is_bit_identical_to_autocast_in_less_memory(
    make: Callable[[], nn.Module],
) -> None:
    teacher = freeze(make())
    tokens = tokens_for(teacher, 3)
    with half():
        expected = passed(teacher, tokens)
    before = sum(p.nbytes for p in teacher.model.parameters())
    teacher.cast_to_half(torch.bfloat16, CPU)
    assert teacher.half_dtype is torch.bfloat16
    assert sum(p.nbytes for p in teacher.model.parameters()) < 0.75 * before
    with half():
        under = passed(teacher, tokens)
    assert [t.dtype for t in under] == [t.dtype for t in expected]
    assert all(map(torch.equal, under, expected))
    without = passed(teacher, tokens)  # by others who have no autocast on
    assert {t.dtype for t in without} == {torch.float32}
    assert all(torch.equal(t, e.float()) for t, e in zip(without[:-1], expected[:-1], strict=True))


def test_dropping_the_trunk_leaves_a_tail_in_half_precision_bit_identical() -> None:
    teacher = freeze(swin())
    teacher.cast_to_half(torch.bfloat16, CPU)
    kept, tokens = teacher.to_cache(images_for(teacher, 3)), tokens_for(teacher, 3)
    expected = teacher.tail(tokens)
    teacher.drop_trunk()
    teacher.from_cache(kept)
    assert torch.equal(teacher.tail(tokens), expected)


class Peeking(Block):
    """Uses a weight in another way than the layer that has it."""

    def forward(self, x: Tensor, **given: Any) -> Tensor:
        out: Tensor = super().forward(x, **given)
        return out * (1 + self.mlp.fc1.weight.square().mean())


class Strict(Block):
    """Wants its weights as they were."""

    def forward(self, x: Tensor, **given: Any) -> Tensor:
        if self.mlp.fc1.weight.dtype != torch.float32:
            raise RuntimeError("expected weights in float32")
        out: Tensor = super().forward(x, **given)
        return out


class Typed(Block):
    """Says so in another way."""

    def forward(self, x: Tensor, **given: Any) -> Tensor:
        if self.mlp.fc1.weight.dtype != torch.float32:
            raise TypeError("expected weights in float32")
        out: Tensor = super().forward(x, **given)
        return out


@pytest.mark.parametrize("kind", [Peeking, Strict, Typed])
def test_a_teacher_that_uses_a_weight_outside_of_its_layer_stays_in_full_precision(
    kind: type[Block],
) -> None:
    model = vit()
    model.blocks[0].__class__ = kind
    teacher = freeze(model)
    tokens = tokens_for(teacher, 3)
    with half():
        expected = passed(teacher, tokens)
    state = {n: t.clone() for n, t in model.state_dict().items()}
    teacher.cast_to_half(torch.bfloat16, CPU)
    assert teacher.half_dtype is None
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())
    with half():
        assert all(map(torch.equal, passed(teacher, tokens), expected))


def test_a_teacher_in_half_precision_follows_images_to_double_precision() -> None:
    teacher = freeze(swin())
    teacher.cast_to_half(torch.bfloat16, CPU)
    assert teacher(images(2).double()).final.dtype == torch.float64
    assert teacher.half_dtype is None
    assert {p.dtype for p in teacher.model.parameters()} == {torch.float64}


def test_a_step_outside_of_autocast_under_a_half_precision_teacher_reaches_every_parameter() -> (
    None
):
    method = ScaleKD(swin(), resnet(), size=SIZE)
    method.teacher.cast_to_half(torch.bfloat16, CPU)
    method(images(4), torch.tensor([0, 1, 2, 0])).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())
