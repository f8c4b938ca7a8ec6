"""Cached outputs of a teacher: its tail runs on them as after the pass itself."""

from collections.abc import Callable

import pytest
import torch
from helpers.refusals import refused
from helpers.small_models import images, swin, vit
from helpers.teachers import TEACHERS, freeze, images_for, tokens_for
from torch import Tensor, nn

from scalekd import FrozenTeacher, HookedFeatures, InputConfig
from scalekd.networks import CachedOutputs


@pytest.mark.parametrize("make", TEACHERS.values(), ids=TEACHERS)
def test_cached_outputs_reproduce_features_tail_and_gradients_bit_identical(
    make: Callable[[], nn.Module],
) -> None:
    teacher = freeze(make())
    seen = images_for(teacher, 3)
    live = teacher(seen)
    tokens = tokens_for(teacher, 3)
    expected = teacher.tail(tokens)
    (gradient,) = torch.autograd.grad(expected.square().sum(), tokens)
    kept = teacher.to_cache(seen)
    teacher(images_for(teacher, 5))  # another pass in between

    recalled = teacher.from_cache(kept)
    given = teacher.tail(tokens)
    assert torch.equal(recalled.final, live.final)
    assert (recalled.logits is None) == (live.logits is None)
    assert live.logits is None or torch.equal(recalled.logits, live.logits)  # type: ignore[arg-type]
    assert torch.equal(given, expected)
    assert torch.equal(torch.autograd.grad(given.square().sum(), tokens)[0], gradient)


@pytest.mark.parametrize("make", TEACHERS.values(), ids=TEACHERS)
def test_cached_outputs_can_be_split_and_reordered_by_image(make: Callable[[], nn.Module]) -> None:
    teacher = freeze(make())
    kept = teacher.to_cache(images_for(teacher, 3))
    assert {len(part) for part in (kept.final, kept.logits, *kept.tail_inputs)} == {3}
    cells = kept.final.shape[2] * kept.final.shape[3]
    assert sum(part[0].numel() for part in kept.tail_inputs) < kept.final[0].numel() * 9 / cells

    order = [2, 0]
    teacher.from_cache(
        CachedOutputs(kept.final[order], kept.logits[order], [p[order] for p in kept.tail_inputs])
    )
    tokens = tokens_for(teacher, 2)
    mixed = teacher.tail(tokens)
    teacher(images_for(teacher, 3)[order])
    torch.testing.assert_close(mixed, teacher.tail(tokens), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", [swin, vit])
def test_dropping_the_trunk_keeps_only_the_tail_in_memory(make: Callable[[], nn.Module]) -> None:
    teacher = freeze(make())
    kept, tokens = teacher.to_cache(images_for(teacher, 2)), tokens_for(teacher, 2)
    expected = teacher.tail(tokens)
    before = sum(p.numel() for p in teacher.model.parameters())
    needed = {
        p for name in teacher.tail_modules for p in teacher.model.get_submodule(name).parameters()
    }
    teacher.drop_trunk()
    left = sum(p.numel() for p in teacher.model.parameters())
    assert left == sum(p.numel() for p in needed) < before
    teacher.from_cache(kept)
    assert torch.equal(teacher.tail(tokens), expected)
    teacher.from_cache(
        CachedOutputs(
            kept.final.double(), kept.logits.double(), [p.double() for p in kept.tail_inputs]
        )
    )
    assert teacher.tail(tokens.double()).dtype == torch.float64
    with refused("the teacher's trunk was dropped"):
        teacher(images_for(teacher, 2))


def test_a_teacher_without_prefix_caches_no_tail_inputs() -> None:
    model = vit()
    assert freeze(model).to_cache(images(2)).tail_inputs != []
    assert FrozenTeacher(model, prefix="none").to_cache(images(2)).tail_inputs == []


class MixesImages(nn.Module):
    """Whose last stage is given something of which nobody can say whose it is."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 8, 8)
        self.last = Adds()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.first(x), x.mean((2, 3)).flatten())
        return y


class Adds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.own = nn.Conv2d(8, 8, 2, 2)

    def forward(self, x: Tensor, beside: Tensor) -> Tensor:
        y: Tensor = self.own(x) + beside.view(len(x), 3).sum(1).view(-1, 1, 1, 1)
        return y


def test_a_tail_input_that_mixes_images_cannot_be_cached() -> None:
    config = InputConfig(3, (32, 32), (0.0,) * 3, (1.0,) * 3)
    teacher = FrozenTeacher(HookedFeatures(MixesImages(), "first", "last", config, logits=None))
    with refused("cannot be cached: its tail's Adds is given a tensor of (6,) for 2 images"):
        teacher.to_cache(images(2, (32, 32)))
