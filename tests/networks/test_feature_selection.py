"""Which features are used: the user's selection, defaults from shapes, and refusals."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from helpers.refusals import refused
from helpers.small_models import (
    SIZE,
    beit,
    convformer,
    convnext,
    eva02,
    images,
    mixer,
    registers,
    resnet,
    swin,
    tokens,
    vit,
    vit_mean,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from scalekd.networks import FeatureExtractor, FeatureSelection
from scalekd.networks.feature_selection import (
    Norm,
    ResolvedSelection,
    ShapeProbe,
    resolve_selection,
)

selections = st.builds(
    FeatureSelection,
    st.none() | st.integers(-3, 3),
    st.none() | st.integers(-3, 3),
    st.none() | st.sampled_from(["final", "pooled", "none"]),
)


def make_probe(sides: Sequence[int], **changed: Any) -> ShapeProbe:
    """Maps of these sides, and a final norm."""
    maps = [torch.empty(2, 8, side, side) for side in sides]
    plain = ShapeProbe("a model", maps, True, "norm", None, 5)
    return replace(plain, **changed)


def chosen(sides: Sequence[int], is_teacher: bool = False, **features: Any) -> tuple[int, int]:
    selection = resolve_selection(FeatureSelection(**features), make_probe(sides), is_teacher)
    return selection.penultimate, selection.final


@given(selections, selections)
def test_a_selection_overrides_defaults(
    requested: FeatureSelection, defaults: FeatureSelection
) -> None:
    both = requested.with_defaults(defaults)
    for name in ("penultimate", "final", "norm"):
        value = getattr(requested, name)
        assert getattr(both, name) == (getattr(defaults, name) if value is None else value)


@given(selections, selections, selections)
def test_defaults_of_defaults_combine_in_any_order_of_evaluation(
    a: FeatureSelection, b: FeatureSelection, c: FeatureSelection
) -> None:
    assert a.with_defaults(b).with_defaults(c) == a.with_defaults(b.with_defaults(c))
    assert (
        a.with_defaults(FeatureSelection())
        == FeatureSelection().with_defaults(a)
        == a.with_defaults(a)
        == a
    )


def test_a_penultimate_index_of_zero_overrides_the_default() -> None:
    assert (
        FeatureSelection(penultimate=0).with_defaults(FeatureSelection(penultimate=3)).penultimate
        == 0
    )


@pytest.mark.parametrize("is_teacher", [False, True])
@pytest.mark.parametrize(
    ("sides", "expected"),
    [
        ((32, 16, 8, 4), (2, 3)),
        ((16, 8, 4, 4), (1, 3)),
        ((8, 8, 4, 4), (1, 3)),
        ((8, 4), (0, 1)),
        ((8, 4, 4, 4, 4), (0, 4)),
        # A grid that grows again is another grid.
        ((8, 4, 8), (1, 2)),
    ],
)
def test_the_default_penultimate_of_a_pyramid_is_the_last_map_on_another_grid(
    sides: tuple[int, ...], expected: tuple[int, int], is_teacher: bool
) -> None:
    assert chosen(sides, is_teacher) == expected


@given(st.integers(2, 60))
def test_the_default_penultimate_of_a_student_on_one_grid_is_at_two_thirds(depth: int) -> None:
    penultimate, final = chosen([4] * depth)
    assert final == depth - 1
    assert penultimate == min(depth * 2 // 3, depth - 2)


@given(st.integers(2, 60))
def test_the_default_penultimate_of_a_teacher_on_one_grid_is_before_its_last_sixth(
    depth: int,
) -> None:
    penultimate, final = chosen([4] * depth, is_teacher=True)
    blocks = final - penultimate
    assert final == depth - 1
    assert blocks == max(1, depth // 6)


@pytest.mark.parametrize(
    ("depth", "student", "teacher"),
    [
        (2, 0, 0),
        (3, 1, 1),
        (4, 2, 2),
        (6, 4, 4),
        (8, 5, 6),
        (12, 8, 9),
        (24, 16, 19),
        (40, 26, 33),
    ],
)
def test_the_default_penultimate_on_one_grid_for_common_depths(
    depth: int, student: int, teacher: int
) -> None:
    assert chosen([4] * depth)[0] == student
    assert chosen([4] * depth, is_teacher=True)[0] == teacher


@given(st.integers(2, 8), st.data())
def test_a_negative_index_counts_from_the_end(depth: int, data: Any) -> None:
    final = data.draw(st.integers(1, depth - 1))
    penultimate = data.draw(st.integers(0, final - 1))
    expected = (penultimate, final)
    for p in (penultimate, penultimate - depth):
        for f in (final, final - depth):
            assert chosen([4] * depth, penultimate=p, final=f) == expected


@given(st.integers(1, 8), st.integers(-12, 12), st.integers(-12, 12))
def test_indices_out_of_range_or_order_are_refused(
    depth: int, penultimate: int, final: int
) -> None:
    p, f = (i + depth if i < 0 else i for i in (penultimate, final))
    if 0 <= p < f < depth:
        assert chosen([4] * depth, penultimate=penultimate, final=final) == (p, f)
        return
    with refused("a model", f"0 to {depth - 1}" if depth > 1 else "two are needed"):
        chosen([4] * depth, penultimate=penultimate, final=final)


@pytest.mark.parametrize("final", [0, 6, -6, 99, -7])
def test_a_final_feature_out_of_range_is_refused_by_number(final: int) -> None:
    with refused("vit_tiny_patch16_224", "0 to 5", f"number {final}", "must be 1 to 5"):
        FeatureExtractor(vit(), features=FeatureSelection(final=final))


@pytest.mark.parametrize(("penultimate", "final"), [(3, 3), (4, 3), (-3, 3), (-7, 3), (3, -3)])
def test_a_penultimate_feature_that_is_not_before_the_final_is_refused_by_number(
    penultimate: int, final: int
) -> None:
    with refused("vit_tiny_patch16_224", f"number {penultimate}", "before the final one, number 3"):
        FeatureExtractor(vit(), features=FeatureSelection(penultimate=penultimate, final=final))


def test_a_model_of_one_feature_is_refused_for_that_reason() -> None:
    with refused("one feature"):
        chosen([4])


@pytest.mark.parametrize("final", [1, 3, 5])
def test_a_final_feature_before_the_last_is_the_output_of_its_block(final: int) -> None:
    model: Any = vit()
    extractor = FeatureExtractor(model, features=FeatureSelection(final=final))
    outputs: list[Tensor] = []
    model.blocks[final].register_forward_hook(lambda m, given, output: outputs.append(output))
    features = extractor(images())
    expected = model.norm(outputs[0]) if final == 5 else outputs[0]
    assert torch.equal(tokens(features.final), expected[:, 1:])
    assert torch.equal(features.logits, model(images()))
    assert extractor.selection.norm == ("final" if final == 5 else "none")


def test_the_default_penultimate_depends_on_the_selected_final_feature() -> None:
    assert chosen([16, 8, 8, 4], final=2) == (0, 2)
    assert chosen([4] * 12, final=5) == (4, 5)
    assert chosen([4] * 12, is_teacher=True, final=5) == (4, 5)


def extractor_for(model: nn.Module, features: FeatureSelection) -> FeatureExtractor:
    """At the model's small size."""
    bound = getattr(getattr(model, "patch_embed", None), "img_size", None)
    return FeatureExtractor(model, bound or SIZE, features)


NORMS: list[tuple[Callable[[], nn.Module], dict[Norm, str]]] = [
    (vit, {"final": "norm"}),
    (registers, {"final": "norm"}),
    (swin, {"final": "norm"}),
    (mixer, {"final": "norm"}),
    (lambda: vit_mean(fc_norm=False), {"final": "norm"}),
    (vit_mean, {"pooled": "fc_norm"}),
    (beit, {"pooled": "fc_norm"}),
    (eva02, {"pooled": "fc_norm"}),
    (convnext, {"pooled": "head.norm"}),
    (convformer, {"pooled": "head.norm"}),
    (resnet, {}),
]
NAMES = [
    "ViT",
    "registers",
    "Swin",
    "Mixer",
    "mean-normed",
    "mean",
    "BEiT",
    "EVA-02",
    "ConvNeXt",
    "ConvFormer",
    "ResNet",
]


@pytest.mark.parametrize("norm", ["final", "pooled", "none", None])
@pytest.mark.parametrize(("make", "has"), NORMS, ids=NAMES)
def test_the_norm_is_the_requested_one_or_refused_with_the_available_ones(
    make: Callable[[], nn.Module], has: dict[Norm, str], norm: Norm | None
) -> None:
    features = FeatureSelection(norm=norm)
    if norm in ("final", "pooled") and norm not in has:
        where = "between feature" if norm == "final" else "after its pooling"
        with refused("has no norm", where, f"take the norm {' or '.join([*has, 'none'])}"):
            extractor_for(make(), features)
        return
    selection = extractor_for(make(), features).selection
    expected = norm or ("final" if "final" in has else "none")
    assert selection.norm == expected
    assert selection.norm_module == has.get(expected)
    assert selection.from_forward_features is (norm in (None, "final"))


def test_the_final_norm_is_refused_for_a_feature_before_the_last() -> None:
    with refused("no norm between feature 3 and its pooling", "take the norm none"):
        FeatureExtractor(vit(), features=FeatureSelection(final=3, norm="final"))


def test_the_pooled_norm_is_refused_for_a_stage_before_the_last() -> None:
    with refused("norm"):
        FeatureExtractor(convnext(), SIZE, FeatureSelection(final=2, norm="pooled"))


@pytest.mark.parametrize("make", [vit_mean, beit, eva02, convnext])
def test_the_pooled_norm_is_found_in_a_model_without_classifier(
    make: Callable[..., nn.Module],
) -> None:
    model = make(num_classes=0)
    pooled = FeatureSelection(norm="pooled")
    assert (
        extractor_for(model, pooled).selection.norm_module
        == extractor_for(make(), pooled).selection.norm_module
    )


def hand_normed(model: nn.Module, norm: str, bare: Tensor) -> Tensor:
    """`bare` through the norm, one token at a time, as the head runs it on its one."""
    module = model.get_submodule(norm)
    out = torch.empty_like(bare)
    for i in range(bare.shape[2]):
        for j in range(bare.shape[3]):
            cell = bare[:, :, i, j]
            is_map = "2d" in type(module).__name__
            out[:, :, i, j] = module(cell[..., None, None])[..., 0, 0] if is_map else module(cell)
    return out


@pytest.mark.parametrize("make", [vit_mean, beit, eva02, convnext, convformer])
def test_the_norm_after_pooling_is_run_on_each_token(make: Callable[[], nn.Module]) -> None:
    model = make()
    extractor = extractor_for(model, FeatureSelection(norm="pooled"))
    size = extractor.input.size
    x = images(size=size)
    with torch.no_grad():
        features, bare = (
            extractor(x),
            FeatureExtractor(model, size, FeatureSelection(norm="none"))(x),
        )
        expected = hand_normed(model, extractor.selection.norm_module or "", bare.final)
        assert torch.equal(features.logits, model(x))
    assert torch.equal(features.penultimate, bare.penultimate)
    torch.testing.assert_close(features.final, expected, atol=1e-5, rtol=1e-5)
    assert (features.final - bare.final).abs().max() > 0.1
    assert features.final.shape[1:] == extractor.shapes.final


@pytest.mark.parametrize("make", [vit_mean, convnext, convformer])
def test_the_norm_after_pooling_trains_with_its_own_gradient(make: Callable[[], nn.Module]) -> None:
    model = make()
    extractor = FeatureExtractor(model, SIZE, FeatureSelection(norm="pooled"))
    final = extractor(images()).final
    (final * torch.randn_like(final)).sum().backward()
    assert extractor.selection.norm_module is not None
    norm = model.get_submodule(extractor.selection.norm_module)
    assert norm.weight.grad is not None
    assert norm.weight.grad.abs().sum() > 0


EVA: dict[str, Any] = {"img_size": 224}


@pytest.mark.parametrize(
    ("name", "arguments", "selection"),
    [
        ("eva_large_patch14_196", EVA, ResolvedSelection(21, 23, True, "none", None)),
        ("vit_base_patch16_224", {}, ResolvedSelection(7, 11, True, "final", "norm")),
        # As a rule the last sixth of 12 and of 24 blocks.
        ("deit_base_patch16_224", {}, ResolvedSelection(9, 11, True, "final", "norm")),
        ("vit_large_patch16_224", {}, ResolvedSelection(19, 23, True, "final", "norm")),
        ("swin_large_patch4_window7_224", {}, ResolvedSelection(2, 3, True, "final", "norm")),
    ],
)
def test_the_papers_teachers_get_the_papers_selection(
    name: str, arguments: dict[str, Any], selection: ResolvedSelection
) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, **arguments)
    assert FeatureExtractor(model, is_teacher=True).selection == selection


def test_the_users_selection_overrides_the_papers_field_by_field() -> None:
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_224", img_size=32)
    requested = FeatureSelection(norm="none")
    assert FeatureExtractor(model, features=requested, is_teacher=True).selection.penultimate == 7
    requested = FeatureSelection(penultimate=-2)
    selection = FeatureExtractor(model, features=requested, is_teacher=True).selection
    assert selection == ResolvedSelection(10, 11, True, "final", "norm")
    assert FeatureExtractor(model).selection.penultimate == 8
