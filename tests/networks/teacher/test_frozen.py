"""The frozen teacher: its features, its tail, and that nothing trains or changes it."""

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import timm
import torch
from helpers.refusals import refused
from helpers.small_models import (
    CLASSES,
    SIZE,
    images,
    resnet,
    swin,
    tokens,
    unless_refused,
    vit,
)
from helpers.teachers import TEACHERS, freeze, images_for
from torch import Tensor, nn
from torch.nn import functional as F

from scalekd import ScaleKD
from scalekd.errors import InputError
from scalekd.networks import FeatureExtractor, FeatureSelection, FrozenTeacher

UNUSUAL: dict[str, dict[str, Any]] = {
    "cait_xxs24_224": {"img_size": 64, "depth": 4},
    "coat_lite_tiny": {"img_size": 64},
    "crossvit_tiny_240": {},
    "hiera_tiny_224": {},
    "pit_ti_224": {},
    "samvit_base_patch16_224": {"img_size": 64, "depth": 4, "global_attn_indexes": (1, 3)},
    "test_efficientnet": {},
    "twins_svt_small": {},
    "xcit_nano_12_p16_224": {"img_size": 64, "depth": 4},
}


class Pyramid(nn.Module):
    """Two stages and a head behind timm's methods; what goes on between them is up to the case."""

    num_classes = CLASSES

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 4, 4)
        self.last = nn.Conv2d(8, 12, 2, 2)
        self.head = nn.Linear(12, CLASSES)

    def stages(self, x: Tensor) -> tuple[Tensor, Tensor]:
        penultimate = self.first(x)
        return penultimate, self.last(penultimate)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: Sequence[int] | None = None,
        norm: bool = False,
        output_fmt: str = "NCHW",
    ) -> tuple[Tensor, list[Tensor]]:
        maps = self.stages(x)
        return maps[-1], [maps[i] for i in indices or (0, 1)]

    def forward_head(self, y: Tensor) -> Tensor:
        logits: Tensor = self.head(y.mean((2, 3)))
        return logits


class DoublesAfterwards(Pyramid):
    def stages(self, x: Tensor) -> tuple[Tensor, Tensor]:
        penultimate = self.first(x)
        return penultimate, 2 * self.last(penultimate)


class AddsAnEarlierFeature(Pyramid):
    def stages(self, x: Tensor) -> tuple[Tensor, Tensor]:
        penultimate = self.first(x)
        return penultimate, self.last(penultimate) + penultimate.mean()


class _WithASkip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 12, 2, 2)

    def forward(self, x: Tensor, earlier: Tensor) -> Tensor:
        y: Tensor = self.conv(x) + earlier.mean((1, 2, 3), keepdim=True)
        return y


class HandsTheFeatureOnTwice(Pyramid):
    def __init__(self) -> None:
        super().__init__()
        self.last = _WithASkip()

    def stages(self, x: Tensor) -> tuple[Tensor, Tensor]:
        penultimate = self.first(x)
        return penultimate, self.last(penultimate, 2 * penultimate)


class ActsOutsideOfModules(Pyramid):
    def stages(self, x: Tensor) -> tuple[Tensor, Tensor]:
        penultimate = F.relu(self.first(x))
        return penultimate, self.last(penultimate)


class EndsOutsideOfModules(Pyramid):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, CLASSES)

    def stages(self, x: Tensor) -> tuple[Tensor, Tensor]:
        penultimate = self.first(x)
        return penultimate, F.avg_pool2d(penultimate, 2)


class CallsByKeyword(Pyramid):
    def stages(self, x: Tensor) -> tuple[Tensor, Tensor]:
        penultimate = self.first(x)
        return penultimate, self.last(input=penultimate)


class Shuffled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 12, 2, 2)

    def forward(self, factor: float, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return factor * y


class FeatureComesSecond(Pyramid):
    def __init__(self) -> None:
        super().__init__()
        self.last = Shuffled()

    def stages(self, x: Tensor) -> tuple[Tensor, Tensor]:
        penultimate = self.first(x)
        return penultimate, self.last(0.5, penultimate)


class NotANumber(Pyramid):
    def __init__(self) -> None:
        super().__init__()
        nn.init.constant_(self.last.weight, float("nan"))


class Drawn(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


class DrawsAtRandom(Pyramid):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Sequential(nn.Conv2d(8, 12, 2, 2), Drawn())


@pytest.mark.parametrize("family", TEACHERS)
def test_the_tail_returns_the_teachers_own_final_feature(family: str) -> None:
    teacher = freeze(TEACHERS[family]().eval())
    x = images_for(teacher, 3)
    seen = teacher(x)
    replayed = teacher.tail(tokens(seen.penultimate))
    torch.testing.assert_close(replayed, tokens(seen.final), atol=1e-5, rtol=1e-5)
    assert teacher.difference < 1e-5
    assert seen.final.std() > 0


@pytest.mark.parametrize("family", TEACHERS)
def test_a_frozen_teacher_returns_its_models_logits(family: str) -> None:
    model = TEACHERS[family]().eval()
    twin = copy.deepcopy(model)
    teacher = freeze(model)
    x = images_for(teacher)
    with torch.no_grad():
        own = twin(x)
    seen = teacher(x)
    if seen.logits is not None:
        assert torch.equal(seen.logits, own)
    assert not any(f.requires_grad for f in (seen.penultimate, seen.final))


@pytest.mark.parametrize("family", TEACHERS)
def test_gradients_of_the_tail_reach_only_its_tokens(family: str) -> None:
    teacher = freeze(TEACHERS[family]())
    seen = teacher(images_for(teacher))
    given = tokens(seen.penultimate)
    asked = (given + torch.randn_like(given)).requires_grad_()
    out = teacher.tail(asked)
    assert out.shape == tokens(seen.final).shape
    assert not torch.allclose(out, tokens(seen.final), atol=1e-2)
    (out * torch.randn_like(out)).sum().backward()
    assert asked.grad is not None
    # Convolutions may skip positions, but no image and no channel is left out.
    assert asked.grad.isfinite().all()
    assert asked.grad.abs().sum(1).all()
    assert all(p.grad is None and not p.requires_grad for p in teacher.model.parameters())


def test_the_tail_reuses_the_inputs_of_the_latest_pass() -> None:
    teacher = FrozenTeacher(vit())
    first, second = images(2, seed=1), images(3, seed=2)
    teacher(first)
    seen = teacher(second)
    replayed = teacher.tail(tokens(seen.penultimate))
    torch.testing.assert_close(replayed, tokens(seen.final))


def test_the_tail_may_be_called_twice_after_one_pass() -> None:
    teacher = FrozenTeacher(swin())
    given = tokens(teacher(images()).penultimate)
    assert torch.equal(teacher.tail(given), teacher.tail(given))


def test_two_teachers_on_one_model_do_not_affect_each_other() -> None:
    model = vit()
    early, late = (FrozenTeacher(model, features=FeatureSelection(penultimate=i)) for i in (1, 3))
    a, b = early(images(2, seed=1)), late(images(3, seed=2))
    torch.testing.assert_close(early.tail(tokens(a.penultimate)), tokens(a.final))
    torch.testing.assert_close(late.tail(tokens(b.penultimate)), tokens(b.final))


@pytest.mark.parametrize(("depth", "first"), [(2, 1), (6, 5), (12, 10), (24, 20)])
def test_the_tail_of_a_plain_vit_is_the_last_sixth_of_its_blocks(depth: int, first: int) -> None:
    model = vit(depth=depth)
    teacher, x = FrozenTeacher(model), images()
    assert teacher.tail_modules == [*(f"blocks.{i}" for i in range(first, depth)), "norm"]
    seen: list[Tensor] = []
    model.blocks[first].register_forward_pre_hook(lambda m, i: seen.append(i[0]))
    penultimate = teacher(x).penultimate
    assert torch.equal(tokens(penultimate), seen[0][:, 1:])


def test_swin_starts_its_tail_before_the_last_stage() -> None:
    model = swin()
    teacher = FrozenTeacher(model)
    seen: list[Tensor] = []
    model.layers[1].register_forward_pre_hook(lambda m, i: seen.append(i[0]))
    penultimate = teacher(images()).penultimate
    assert torch.equal(penultimate.permute(0, 2, 3, 1), seen[0])


class Holder(nn.Module):
    def __init__(self, held: Any) -> None:
        super().__init__()
        self.held = held


def test_teacher_stays_in_eval_mode_whatever_holds_it() -> None:
    teacher = FrozenTeacher(swin())
    for holder in (Holder(teacher), Holder(ScaleKD(teacher, resnet(), size=SIZE))):
        holder.train()
        assert not any(m.training for m in teacher.model.modules())


@pytest.mark.parametrize("name", ["", "layers.1", "layers.1.blocks.0"])
def test_a_call_returns_a_model_in_training_mode_to_eval(name: str) -> None:
    teacher = FrozenTeacher(swin(drop_path_rate=0.9, drop_rate=0.5))
    x = images(8)
    before = teacher(x)
    teacher.model.get_submodule(name).train()
    after = teacher(x)
    assert not any(m.training for m in teacher.model.modules())
    assert torch.equal(after.logits, before.logits)
    assert torch.equal(after.final, before.final)


@pytest.mark.parametrize("rates", [{"drop_path_rate": 0.9}, {"drop_rate": 0.9}])
def test_dropout_and_stochastic_depth_are_off(rates: dict[str, float]) -> None:
    teacher, plain = FrozenTeacher(swin(**rates).train()), FrozenTeacher(swin())
    x = images(8)
    assert torch.equal(teacher(x).final, teacher(x).final)
    assert torch.equal(teacher(x).logits, plain(x).logits)


def test_batch_statistics_do_not_move() -> None:
    teacher = FrozenTeacher(resnet().train(), SIZE)
    before = copy.deepcopy(teacher.model.state_dict())
    teacher.model.train()
    teacher(images(4))
    assert all(torch.equal(t, before[n]) for n, t in teacher.model.state_dict().items())


def test_teacher_is_invisible_to_the_module_that_holds_it() -> None:
    holder = Holder(FrozenTeacher(swin()))
    assert not isinstance(holder.held, nn.Module)
    assert not list(holder.parameters())
    assert not list(holder.buffers())
    assert list(holder.modules()) == [holder]
    assert not holder.state_dict()


def test_a_deep_copy_of_a_teacher_is_the_same_object() -> None:
    teacher = FrozenTeacher(swin())
    assert copy.deepcopy(teacher) is teacher
    assert copy.deepcopy(Holder(teacher)).held is teacher


def test_a_teacher_follows_images_to_double_precision() -> None:
    teacher = FrozenTeacher(swin())
    x = images()
    single, double = teacher(x), teacher(x.double())
    assert double.final.dtype == double.logits.dtype == torch.float64
    assert teacher.tail(tokens(double.penultimate)).dtype == torch.float64
    torch.testing.assert_close(double.final.float(), single.final, atol=1e-4, rtol=1e-4)


def test_a_pass_in_bfloat16_leaves_later_passes_exact() -> None:
    teacher = FrozenTeacher(swin())
    x = images()
    before = teacher(x).final
    assert teacher(x.bfloat16()).final.dtype == torch.float32
    assert torch.equal(teacher(x).final, before)


@pytest.mark.parametrize("size", [(32, 32), (96, 80)])
def test_images_of_another_size_are_resized_to_the_teachers_own(size: tuple[int, int]) -> None:
    teacher, x = FrozenTeacher(swin()), images(size=size)
    resized = F.interpolate(x, SIZE, mode="bicubic", antialias=True)
    assert torch.equal(teacher(x).logits, teacher(resized).logits)
    assert teacher.input.size == SIZE


def test_teacher_works_at_the_size_asked_for() -> None:
    teacher = FrozenTeacher(resnet(), (64, 96))
    assert teacher.input.size == (64, 96)
    assert teacher.shapes.penultimate[1:] == (4, 6)
    assert tuple(teacher(images()).final.shape[2:]) == (2, 3)


def test_a_model_that_can_be_replayed_is_accepted() -> None:
    teacher = FrozenTeacher(Pyramid(), SIZE)
    assert teacher.difference == 0.0
    assert teacher.shapes == FeatureExtractor(Pyramid(), SIZE).shapes


@pytest.mark.parametrize("case", [DoublesAfterwards, AddsAnEarlierFeature, DrawsAtRandom])
def test_operations_outside_of_modules_are_refused(case: type[Pyramid]) -> None:
    with refused(case.__name__, "final feature is not the output of a module"):
        FrozenTeacher(case(), SIZE)


def test_a_replay_that_differs_is_refused_with_the_size_of_the_difference() -> None:
    with pytest.raises(InputError, match=r"differs from its output by \d\.\de[-+]\d\d ") as caught:
        FrozenTeacher(HandsTheFeatureOnTwice(), SIZE)
    assert "HandsTheFeatureOnTwice" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_teacher_of_nans_is_refused() -> None:
    with refused("NotANumber", "NaN", "weights"):
        FrozenTeacher(NotANumber(), SIZE)


def test_a_penultimate_feature_that_no_module_returns_is_refused() -> None:
    with refused("ActsOutsideOfModules", "penultimate feature (8, 16, 16)", "not the output"):
        FrozenTeacher(ActsOutsideOfModules(), SIZE)


def test_a_final_feature_that_no_module_returns_is_refused() -> None:
    with refused("EndsOutsideOfModules", "final feature is not the output"):
        FrozenTeacher(EndsOutsideOfModules(), SIZE)


@pytest.mark.parametrize("case", [CallsByKeyword, FeatureComesSecond])
def test_a_tail_called_with_other_arguments_is_replayed_or_refused(case: type[Pyramid]) -> None:
    teacher = unless_refused(lambda: FrozenTeacher(case(), SIZE))
    if teacher is not None:
        seen = teacher(images())
        torch.testing.assert_close(teacher.tail(tokens(seen.penultimate)), tokens(seen.final))


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_teachers_are_replayed_or_refused(name: str) -> None:
    arguments = UNUSUAL[name]
    model = timm.create_model(name, num_classes=CLASSES, **arguments).eval()
    side = arguments.get("img_size")
    teacher = unless_refused(lambda: FrozenTeacher(model, (side, side) if side else None))
    if teacher is not None:
        seen = teacher(images_for(teacher))
        replayed = teacher.tail(tokens(seen.penultimate))
        torch.testing.assert_close(replayed, tokens(seen.final), atol=1e-4, rtol=1e-4)


def test_a_failed_pass_does_not_affect_the_next() -> None:
    teacher, x = FrozenTeacher(swin()), images()
    expected = teacher(x)
    with pytest.raises(RuntimeError):
        teacher(images(channels=2))
    seen = teacher(x)
    assert torch.equal(seen.logits, expected.logits)
    torch.testing.assert_close(teacher.tail(tokens(seen.penultimate)), tokens(seen.final))


def test_a_teacher_without_classifier_gives_only_features() -> None:
    teacher = FrozenTeacher(swin(num_classes=0))
    assert teacher.shapes.classes is None
    assert teacher(images()).logits is None
