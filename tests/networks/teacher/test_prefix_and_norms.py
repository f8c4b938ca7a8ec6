"""A teacher with each norm, and with its own prefix tokens in its tail or none."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from helpers.refusals import refused
from helpers.small_models import (
    CLASSES,
    SIZE,
    beit,
    cait,
    convformer,
    convnext,
    deit,
    deit_distilled,
    eva02,
    images,
    lively,
    make,
    mixer,
    registers,
    resnet,
    swin,
    tokens,
    vit,
    vit_mean,
)
from helpers.teachers import count_hooks, other_tokens
from torch import Tensor, nn

from scalekd import FeatureSelection, FrozenTeacher, ScaleKD
from scalekd.errors import InputError
from scalekd.networks.feature_selection import Norm
from scalekd.networks.teacher.frozen import PrefixTokens


def dinov3(**arguments: Any) -> nn.Module:
    """Rotary, a class token and four registers."""
    sizes = {"img_size": 64, "embed_dim": 48, "depth": 4, "num_heads": 2}
    return make("vit_small_patch16_dinov3", **{**sizes, **arguments})


def frozen(
    model: nn.Module, prefix: PrefixTokens = "own", norm: Norm | None = None
) -> FrozenTeacher:
    bound = getattr(getattr(model, "patch_embed", None), "img_size", None)
    return FrozenTeacher(model, bound or SIZE, FeatureSelection(norm=norm), prefix)


WITH_PREFIX: dict[str, tuple[Callable[..., Any], int]] = {
    "ViT": (vit, 1),
    "DeiT": (deit, 1),
    "DeiT distilled": (deit_distilled, 2),
    "DINOv2 with registers": (registers, 5),
}
WITHOUT_PREFIX: dict[str, Callable[..., Any]] = {
    "Swin": swin,
    "ViT, mean pooling": vit_mean,
    "ResNet": resnet,
    "Mixer": mixer,
    "CaiT": cait,
}
BOUND_TO_PREFIX: dict[str, Callable[..., Any]] = {"BEiT": beit, "EVA-02": eva02}


@pytest.mark.parametrize("family", WITH_PREFIX)
@pytest.mark.parametrize("penultimate", [0, 2])
def test_a_tail_without_prefix_runs_the_last_blocks_on_patches_only(
    family: str, penultimate: int
) -> None:
    build, _ = WITH_PREFIX[family]
    model = build()
    teacher = FrozenTeacher(
        model, features=FeatureSelection(penultimate=penultimate), prefix="none"
    )
    given = other_tokens(teacher(images(3, teacher.input.size)).penultimate)
    results = []
    for run in (teacher.tail, lambda x: model.norm(model.blocks[penultimate + 1 :](x))):
        asked = given.clone().requires_grad_()
        out = run(asked)
        (out * torch.linspace(-1, 1, out.shape[-1])).sum().backward()
        assert asked.grad is not None
        results.append((out, asked.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert results[0][0].shape == given.shape


@pytest.mark.parametrize("family", WITH_PREFIX)
def test_the_teachers_own_prefix_reproduces_its_final_feature(family: str) -> None:
    build, count = WITH_PREFIX[family]
    own, none = frozen(build()), frozen(build(), "none")
    x = images(3, own.input.size)
    seen, again = own(x), none(x)
    assert torch.equal(again.final, seen.final)
    assert (own.prefix_tokens, none.prefix_tokens) == (count, 0)
    given, final = tokens(seen.penultimate), tokens(seen.final)
    torch.testing.assert_close(own.tail(given), final, atol=1e-5, rtol=1e-4)
    # The prefix is heard: without it the same tokens end elsewhere.
    assert not torch.allclose(none.tail(given), final, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("family", WITH_PREFIX)
def test_a_tail_without_prefix_does_not_depend_on_the_images(family: str) -> None:
    """Only the prefix is of the image; the tokens here are others' anyway."""
    build, _ = WITH_PREFIX[family]
    for prefix in ("own", "none"):
        teacher = frozen(build(), prefix)
        x, y = (images(2, teacher.input.size, seed=seed) for seed in (1, 2))
        given = other_tokens(teacher(x).penultimate)
        first = teacher.tail(given)
        teacher(y)
        assert torch.equal(teacher.tail(given), first) is (prefix == "none")


@pytest.mark.parametrize("family", WITHOUT_PREFIX)
def test_a_teacher_without_prefix_tokens_is_the_same_with_both_settings(family: str) -> None:
    own, none = (frozen(WITHOUT_PREFIX[family](), prefix) for prefix in ("own", "none"))
    x = images(3, own.input.size)
    given = other_tokens(own(x).penultimate)
    none(x)
    assert torch.equal(own.tail(given), none.tail(given))
    assert own.prefix_tokens == none.prefix_tokens == 0
    assert own.difference == none.difference < 1e-5


@pytest.mark.parametrize("family", BOUND_TO_PREFIX)
def test_a_teacher_whose_blocks_need_their_prefix_is_refused_without_it(family: str) -> None:
    model = BOUND_TO_PREFIX[family]()
    with refused(type(model).__name__, "cannot be replayed"):
        frozen(model, "none")


@pytest.mark.parametrize("family", BOUND_TO_PREFIX)
def test_a_teacher_refused_without_prefix_keeps_no_hooks(family: str) -> None:
    model = BOUND_TO_PREFIX[family]()
    with pytest.raises(InputError):
        frozen(model, "none")
    assert count_hooks(model) == 0


def test_a_rotary_model_without_class_token_needs_no_prefix() -> None:
    own, none = (
        frozen(eva02(class_token=False, global_pool="avg"), prefix) for prefix in ("own", "none")
    )
    x = images(2, own.input.size)
    given = other_tokens(own(x).penultimate)
    none(x)
    assert torch.equal(own.tail(given), none.tail(given))


def test_a_rotary_model_with_registers_is_replayed_or_refused_without_prefix() -> None:
    own = frozen(dinov3())
    assert own.prefix_tokens == 5
    seen = own(images())
    torch.testing.assert_close(
        own.tail(tokens(seen.penultimate)), tokens(seen.final), atol=1e-5, rtol=1e-4
    )
    with refused("cannot be replayed"):
        frozen(dinov3(), "none")


@pytest.mark.parametrize("prefix", ["own", "none"])
@pytest.mark.parametrize("family", ["ViT", "DINOv2 with registers"])
def test_a_student_learns_with_both_prefix_settings(family: str, prefix: PrefixTokens) -> None:
    torch.manual_seed(0)
    teacher = frozen(WITH_PREFIX[family][0](), prefix)
    distiller = ScaleKD(teacher, resnet(), size=SIZE).train()
    distiller(images(4), torch.tensor([0, 1, 2, 3])).loss.backward()
    for name, parameter in distiller.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_a_distiller_passes_its_prefix_setting_to_the_teacher() -> None:
    for prefix, count in (("own", 1), ("none", 0)):
        distiller = ScaleKD(vit(), resnet(), size=SIZE, teacher_prefix=prefix)
        assert distiller.teacher.prefix_tokens == count
    with refused("Beit", "cannot be replayed"):
        ScaleKD(beit(), resnet(), size=SIZE, teacher_prefix="none")


NORMED: dict[str, tuple[Callable[..., nn.Module], list[Norm], str]] = {
    "ViT": (vit, ["final", "none"], "norm"),
    "ViT, mean pooling": (vit_mean, ["pooled", "none"], "fc_norm"),
    "BEiT": (beit, ["pooled", "none"], "fc_norm"),
    "EVA-02": (eva02, ["pooled", "none"], "fc_norm"),
    "ConvNeXt": (convnext, ["pooled", "none"], "head.norm"),
    "ConvFormer": (convformer, ["pooled", "none"], "head.norm"),
    "Swin": (swin, ["final", "none"], "norm"),
    "Mixer": (mixer, ["final", "none"], "norm"),
}


@pytest.mark.parametrize("norm", ["final", "pooled", "none"])
@pytest.mark.parametrize("family", NORMED)
def test_the_tail_ends_at_the_final_feature_with_every_norm(family: str, norm: Norm) -> None:
    build, has, module = NORMED[family]
    if norm not in has:
        with refused("has no norm"):
            frozen(build(), norm=norm)
        return
    model = build()
    teacher = frozen(model, norm=norm)
    seen = teacher(images(3, teacher.input.size))
    replayed = teacher.tail(tokens(seen.penultimate))
    torch.testing.assert_close(replayed, tokens(seen.final), atol=1e-5, rtol=1e-4)
    assert teacher.extractor.selection.norm == norm
    assert teacher.extractor.selection.norm_module == (None if norm == "none" else module)
    assert (module in teacher.tail_modules) is (norm == "final")
    bare = frozen(build(), norm="none")
    unlike = (seen.final - bare(images(3, teacher.input.size)).final).abs().max().item()
    assert (unlike > 0.1) is (norm != "none")


@pytest.mark.parametrize("family", ["ViT, mean pooling", "BEiT", "ConvNeXt", "ConvFormer"])
def test_other_tokens_go_through_the_norm_after_pooling(family: str) -> None:
    build, _, module = NORMED[family]
    model = build()
    teacher, bare = frozen(model, norm="pooled"), frozen(build(), norm="none")
    x = images(3, teacher.input.size)
    given = other_tokens(teacher(x).penultimate)
    bare(x)
    before, normed = bare.tail(given), teacher.tail(given)
    norm = model.get_submodule(module)
    by_token = before.flatten(0, 1)
    is_map = "2d" in type(norm).__name__
    expected = norm(by_token[..., None, None])[..., 0, 0] if is_map else norm(by_token)
    expected = expected.reshape(before.shape)
    torch.testing.assert_close(normed, expected, atol=1e-5, rtol=1e-5)
    asked = given.requires_grad_()
    (teacher.tail(asked) * torch.randn_like(normed)).sum().backward()
    assert asked.grad is not None
    assert asked.grad.isfinite().all()
    assert asked.grad.abs().sum(1).all()
    assert norm.weight.grad is None


class Normed(nn.Module):
    """timm's methods: two stages and a final norm; what is done before it is up to the case."""

    num_classes = CLASSES

    def __init__(self, before_norm: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.norm = (
            nn.Conv2d(3, 8, 4, 4),
            nn.Conv2d(8, 12, 2, 2),
            nn.BatchNorm2d(12),
        )
        self.head = nn.Linear(12, CLASSES)
        self.before_norm = before_norm

    def forward_intermediates(
        self,
        x: Tensor,
        indices: Sequence[int] | None = None,
        norm: bool = False,
        output_fmt: str = "NCHW",
    ) -> tuple[Tensor, list[Tensor]]:
        maps = [self.first(x)]
        maps.append(self.last(maps[0]))
        return self.norm(self.before_norm(maps[1])), [maps[i] for i in indices or (0, 1)]

    def forward_head(self, y: Tensor) -> Tensor:
        logits: Tensor = self.head(y.mean((2, 3)))
        return logits


def test_a_final_norm_that_can_be_replayed_is_in_the_tail() -> None:
    teacher = frozen(lively(Normed(lambda x: x)))
    assert teacher.tail_modules == ["last", "norm"]
    assert teacher.extractor.selection.norm == "final"


def test_a_final_norm_that_cannot_be_replayed_is_dropped_from_the_final_feature() -> None:
    model = lively(Normed(lambda x: 2 * x))
    teacher = frozen(model)
    assert teacher.tail_modules == ["last"]
    assert teacher.extractor.selection.norm == "none"
    assert teacher.requested_features.norm == "none"
    seen = teacher(images())
    with torch.no_grad():
        assert torch.equal(seen.final, model.last(model.first(images())))
        assert torch.equal(
            seen.logits, model.forward_head(model.forward_intermediates(images())[0])
        )
    assert torch.equal(teacher.tail(tokens(seen.penultimate)), tokens(seen.final))
    assert count_hooks(model) == 1


def test_a_requested_final_norm_that_cannot_be_replayed_is_refused() -> None:
    model = lively(Normed(lambda x: 2 * x))
    with refused("Normed", "cannot be replayed"):
        frozen(model, norm="final")
    assert count_hooks(model) == 0


def test_a_student_learns_from_a_teacher_whose_final_norm_was_dropped() -> None:
    torch.manual_seed(0)
    distiller = ScaleKD(lively(Normed(lambda x: 2 * x)), resnet(), size=SIZE, teacher_size=SIZE)
    step = distiller.train()(images(4), torch.tensor([0, 1, 2, 3]))
    step.loss.backward()
    assert distiller.teacher.extractor.selection.norm == "none"
    assert all(p.grad is not None and p.grad.isfinite().all() for p in distiller.parameters())


def test_the_passed_feature_selection_is_not_changed() -> None:
    asked = FeatureSelection(penultimate=0)
    model = lively(Normed(lambda x: 2 * x))
    teacher = FrozenTeacher(model, SIZE, asked)
    assert asked == FeatureSelection(penultimate=0)
    assert teacher.requested_features == FeatureSelection(penultimate=0, norm="none")
