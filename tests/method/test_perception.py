import copy
from collections.abc import Callable
from dataclasses import asdict
from itertools import product
from typing import Any

import pytest
import torch
from helpers.refusals import refused
from helpers.warned import warned
from torch import Tensor, nn
from torch.nn import functional as F

from scalekd.features import Features, FeatureShapes
from scalekd.method import (
    ChannelNorm,
    LossWeights,
    ScaleKDLoss,
    alternative_view,
    distance,
    logit_distillation,
)

STUDENT = FeatureShapes((8, 4, 6), (16, 3, 2), 5)
TEACHER = FeatureShapes((12, 4, 4), (24, 2, 2), 5)
HEADS = (3, 6)
NOTHING = dict.fromkeys(asdict(LossWeights()), 0.0)
COMPONENTS = {
    "CAP, original view": {"final_original": 0.08},
    "CAP, alternative view": {"final_alternative": 0.06},
    "CAP and DFM": {"final_original": 0.08, "final_alternative": 0.06},
    "CAP and DFM, logits": {"final_original": 0.08, "final_alternative": 0.06, "logits": 0.5},
    "TPP, original view": {"tpp_original": 0.08, "final_original": 0.08},
    "TPP, alternative view": {"tpp_alternative": 0.06, "final_alternative": 0.06},
    "TPP without final terms": {"tpp_original": 0.08, "tpp_alternative": 0.06},
    "TPP in one view": {"tpp_original": 0.08, "final_original": 0.08, "final_alternative": 0.06},
    "TPP crossed": {"tpp_original": 0.08, "final_alternative": 0.06},
    "all features": {**asdict(LossWeights()), "logits": 0.0},
    "all": asdict(LossWeights()),
    "logits": {"logits": 1.0},
}


class Tail(nn.Module):
    """Mixes tokens and channels, ends in a norm; counts its calls."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.tokens = nn.Linear(16, 4, dtype=dtype)
        self.channels = nn.Linear(12, 24, dtype=dtype)
        self.requires_grad_(False)
        self.calls = 0

    def forward(self, tokens: Tensor) -> Tensor:
        self.calls += 1
        out: Tensor = F.layer_norm(torch.tanh(self.channels(self.tokens(tokens.mT).mT)), (24,))
        return out


def weighing(**weights: float) -> LossWeights:
    return LossWeights(**{**NOTHING, **weights})


def build(weights: LossWeights | None = None, **changed: Any) -> ScaleKDLoss:
    arguments: dict[str, Any] = {"student": STUDENT, "teacher": TEACHER, "heads": HEADS}
    return ScaleKDLoss(**{**arguments, "weights": weights, **changed})


def features(shapes: FeatureShapes, batch: int = 3, dtype: torch.dtype = torch.float32) -> Features:
    def leaf(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, dtype=dtype, requires_grad=True)

    return Features(leaf(*shapes.penultimate), leaf(*shapes.final), leaf(shapes.classes))


def nonzero(gradient: Tensor | None) -> bool:
    return gradient is not None and bool(gradient.isfinite().all()) and bool(gradient.any())


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("component", COMPONENTS)
def test_each_combination_of_components_gives_its_terms_and_trains_all_its_parameters(
    component: str,
) -> None:
    weights = COMPONENTS[component]
    loss = build(weighing(**weights)).double()
    student, teacher = (features(s, dtype=torch.float64) for s in (STUDENT, TEACHER))
    terms = loss(student, teacher, Tail(torch.float64))
    assert set(terms) == {name for name, weight in weights.items() if weight}
    sum(terms.values()).backward()
    shift = ("to_key.bias", "stem.0.bias", "feed_forward.2.bias")
    for name, parameter in loss.named_parameters():
        assert parameter.grad is not None, name
        # The softmax, the batch norm and the alternative view remove a common shift.
        assert nonzero(parameter.grad) or name.endswith(shift), name
    reads_final = any(name.startswith("final") for name in terms)
    reads_penultimate = any(name.startswith("tpp") for name in terms)
    assert nonzero(student.final.grad) is reads_final
    assert nonzero(student.penultimate.grad) is reads_penultimate
    assert nonzero(student.logits.grad) is ("logits" in terms)


def test_default_weights_give_all_five_terms() -> None:
    terms = build()(features(STUDENT), features(TEACHER), Tail())
    assert set(terms) == set(asdict(LossWeights()))
    assert all(term.shape == () and term > 0 for term in terms.values())


def test_terms_are_proportional_to_their_weights() -> None:
    student, teacher, tail = features(STUDENT), features(TEACHER), Tail()
    single = build().eval()
    double = build(LossWeights(0.16, 0.12, 0.16, 0.12, 1.0)).eval()
    double.load_state_dict(single.state_dict())
    twice = double(student, teacher, tail)
    for name, term in single(student, teacher, tail).items():
        torch.testing.assert_close(twice[name], 2 * term)


def test_weights_of_zero_give_no_terms_and_no_parameters() -> None:
    loss, tail = build(weighing()), Tail()
    assert loss(features(STUDENT), features(TEACHER), tail) == {}
    assert not list(loss.parameters())
    assert tail.calls == 0


@pytest.mark.parametrize(("original", "alternative"), list(product([0.0, 0.1], repeat=2)))
def test_the_tail_runs_once_for_each_view_with_a_tpp_weight(
    original: float, alternative: float
) -> None:
    tail = Tail()
    loss = build(LossWeights(tpp_original=original, tpp_alternative=alternative))
    loss(features(STUDENT), features(TEACHER), tail)
    assert tail.calls == bool(original) + bool(alternative)


def test_each_projector_runs_once_and_is_not_built_for_a_weight_of_zero() -> None:
    loss = build(weighing(tpp_alternative=0.06, final_original=0.08, final_alternative=0.06))
    calls: list[str] = []
    for name, module in loss.named_modules():
        if name.count(".") == 1:
            module.register_forward_hook(lambda _m, _i, _o, name=name: calls.append(name))
    loss(features(STUDENT), features(TEACHER), Tail())
    assert sorted(calls) == ["final.alternative", "final.original", "penultimate.alternative"]
    assert list(loss.penultimate) == ["alternative"]


def test_final_projectors_train_their_own_queries_only_without_tpp() -> None:
    loss = build(LossWeights(tpp_original=0.0))
    assert loss.final["original"].own_query.shape == (4, 24)
    assert loss.final["alternative"].own_query is None
    assert loss.penultimate["alternative"].own_query.shape == (16, 12)


@pytest.mark.parametrize("view", ["original", "alternative"])
def test_final_terms_reach_the_penultimate_feature_through_the_queries(view: str) -> None:
    loss, student = build().double(), features(STUDENT, dtype=torch.float64)
    terms = loss(student, features(TEACHER, dtype=torch.float64), Tail(torch.float64))
    other = {"original": "alternative", "alternative": "original"}[view]
    terms[f"final_{view}"].backward()
    assert nonzero(student.penultimate.grad)
    assert nonzero(loss.penultimate[view].to_value.weight.grad)
    # The two views share nothing.
    untouched = [*loss.penultimate[other].parameters(), *loss.final[other].parameters()]
    assert all(parameter.grad is None for parameter in untouched)


def test_the_teacher_gets_no_gradient() -> None:
    teacher, tail = features(TEACHER), Tail()
    sum(build()(features(STUDENT), teacher, tail).values()).backward()
    assert teacher.penultimate.grad is teacher.final.grad is teacher.logits.grad is None
    assert all(parameter.grad is None for parameter in tail.parameters())


def test_the_teachers_penultimate_feature_is_never_read() -> None:
    teacher = features(TEACHER)
    blind = Features(torch.full_like(teacher.penultimate, torch.nan), teacher.final, teacher.logits)
    loss, student, tail = build().eval(), features(STUDENT), Tail()
    terms, blind_terms = loss(student, teacher, tail), loss(student, blind, tail)
    assert all(torch.equal(terms[name], blind_terms[name]) for name in terms)


def test_penultimate_shapes_are_not_needed_without_tpp() -> None:
    weights = weighing(final_original=0.08)
    student = FeatureShapes(None, STUDENT.final)
    build(weights, student=student, teacher=FeatureShapes(None, TEACHER.final))
    with refused("tpp_alternative"):
        build(weighing(tpp_alternative=0.06), student=student)


def test_the_logits_term_is_the_weighted_distillation() -> None:
    student, teacher = features(STUDENT), features(TEACHER)
    loss = build(weighing(logits=0.25), temperature=3.0)
    actual = loss(student, teacher, Tail())["logits"]
    torch.testing.assert_close(
        actual, 0.25 * logit_distillation(student.logits, teacher.logits, 3.0)
    )


def test_a_loaded_state_dict_gives_the_same_terms() -> None:
    student, teacher, tail = features(STUDENT), features(TEACHER), Tail()
    trained, fresh = build(), build()
    trained(student, teacher, tail)  # moves the running statistics
    fresh.load_state_dict(trained.state_dict())
    expected = trained.eval()(student, teacher, tail)
    actual = fresh.eval()(student, teacher, tail)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_copies_of_the_loss_are_independent() -> None:
    loss = build()
    twin = copy.deepcopy(loss)
    with torch.no_grad():
        twin.final["original"].position.add_(1)
    assert not torch.equal(loss.final["original"].position, twin.final["original"].position)


def test_the_state_dict_of_the_loss_holds_only_projectors() -> None:
    loss = build()
    loss(features(STUDENT), features(TEACHER), Tail())
    assert {name.split(".")[0] for name in loss.state_dict()} == {"penultimate", "final"}


# What the user can put right.


@pytest.mark.parametrize("temperature", [0.0, -2.0, float("nan"), float("inf")])
def test_temperatures_that_are_not_positive_are_refused(temperature: float) -> None:
    with refused(str(temperature)):
        build(temperature=temperature)


@pytest.mark.parametrize(("heads", "pieces"), [((5, 6), ("5", "12")), ((3, 7), ("7", "24"))])
def test_heads_that_do_not_divide_the_channels_are_refused(
    heads: tuple[int, int], pieces: tuple[str, str]
) -> None:
    with refused(*pieces):
        build(heads=heads)


@pytest.mark.parametrize("network", ["student", "teacher"])
def test_missing_logits_are_refused(network: str) -> None:
    outputs = {"student": features(STUDENT), "teacher": features(TEACHER)}
    outputs[network] = Features(outputs[network].penultimate, outputs[network].final)
    with refused(f"the {network} gives no logits", "0.5"):
        build()(outputs["student"], outputs["teacher"], Tail())


def test_missing_logits_are_accepted_without_a_logits_weight() -> None:
    student, teacher = (Features(f.penultimate, f.final) for f in map(features, (STUDENT, TEACHER)))
    assert "logits" not in build(LossWeights(logits=0.0))(student, teacher, Tail())


def test_logits_of_different_numbers_of_classes_are_refused_by_the_loss() -> None:
    teacher = features(FeatureShapes(TEACHER.penultimate, TEACHER.final, 7))
    with refused("(3, 5)", "(3, 7)"):
        build()(features(STUDENT), teacher, Tail())


@pytest.mark.parametrize(
    ("tail", "shape"),
    [
        (lambda tokens: tokens, "(3, 16, 12)"),
        (lambda tokens: tokens.new_ones(3, 4, 23), "(3, 4, 23)"),
        (lambda tokens: tokens.new_ones(3, 5, 24), "(3, 5, 24)"),
        (lambda tokens: tokens.new_ones(3, 24, 2, 2), "(3, 24, 2, 2)"),
    ],
)
def test_a_tail_with_an_output_of_another_shape_is_refused(
    tail: Callable[[Tensor], Tensor], shape: str
) -> None:
    with refused(shape, "(3, 4, 24)"):
        build()(features(STUDENT), features(TEACHER), tail)


@pytest.mark.parametrize(
    ("penultimate", "final", "pieces"),
    [
        ((8, 5, 6), STUDENT.final, ("(8, 5, 6)", "(8, 4, 6)")),
        (STUDENT.penultimate, (16, 2, 3), ("(16, 2, 3)", "(16, 3, 2)")),
        (STUDENT.penultimate, (15, 3, 2), ("(15, 3, 2)", "(16, 3, 2)")),
    ],
)
def test_student_maps_of_another_size_are_refused(
    penultimate: tuple[int, int, int], final: tuple[int, int, int], pieces: tuple[str, str]
) -> None:
    with refused(*pieces):
        build()(features(FeatureShapes(penultimate, final, 5)), features(TEACHER), Tail())


def test_a_teacher_map_of_another_size_is_refused() -> None:
    teacher = features(FeatureShapes(TEACHER.penultimate, (24, 3, 3), 5))
    with refused("(3, 9, 24)", "(3, 4, 24)"):
        build(weighing(final_original=0.08))(features(STUDENT), teacher, Tail())


# Three numerical traps. One: a grid of one token has no alternative view.

ONE_TOKEN = {
    "the student's final grid": (
        {"student": FeatureShapes(STUDENT.penultimate, (16, 1, 1), 5)},
        {"final_alternative"},
    ),
    "the student's penultimate grid": (
        {"student": FeatureShapes((8, 1, 1), STUDENT.final, 5)},
        {"tpp_alternative"},
    ),
    "the teacher's final grid": (
        {"teacher": FeatureShapes(TEACHER.penultimate, (24, 1, 1), 5)},
        {"tpp_alternative", "final_alternative"},
    ),
}


@pytest.mark.parametrize("grid", ONE_TOKEN)
def test_alternative_views_of_one_token_grids_are_refused(grid: str) -> None:
    shapes, dropped = ONE_TOKEN[grid]
    for term in dropped:
        with refused(grid, "1x1", term):
            build(weighing(**{term: 0.06}), **shapes)


@pytest.mark.parametrize("grid", ONE_TOKEN)
def test_one_token_grids_are_accepted_without_the_alternative_view(grid: str) -> None:
    shapes, dropped = ONE_TOKEN[grid]
    build(LossWeights(**dict.fromkeys(dropped, 0.0)), **shapes)


@pytest.mark.parametrize("grid", ONE_TOKEN)
def test_alternative_views_of_one_token_grids_are_dropped_with_a_warning(grid: str) -> None:
    shapes, dropped = ONE_TOKEN[grid]
    with warned("1x1") as messages:
        loss = build(one_token="drop", **shapes)
    assert len(messages) == len(dropped)
    student = features(shapes.get("student", STUDENT))
    teacher = features(shapes.get("teacher", TEACHER))
    tail = Tail()
    if "teacher" in shapes:
        tail.tokens = nn.Linear(16, 1)
    terms = loss(student, teacher, tail)
    assert set(terms) == set(asdict(LossWeights())) - dropped
    sum(terms.values()).backward()
    assert all(p.grad.isfinite().all() for p in loss.parameters())


# Two: bfloat16 is too coarse for what varies over space in the final projector.


def nearly_constant(shapes: FeatureShapes) -> Features:
    """Features that vary little over space."""
    leaves = features(shapes, batch=4)
    maps = (leaves.penultimate, leaves.final)
    s3, s4 = (1 + 0.1 * feature.detach() for feature in maps)
    return Features(s3.requires_grad_(), s4.requires_grad_())


def inner_types(projector: nn.Module) -> dict[str, torch.dtype]:
    """Filled by a forward pass with the output type of each part."""
    types: dict[str, torch.dtype] = {}
    for name, module in projector.named_modules():
        if not list(module.children()):
            module.register_forward_hook(
                lambda _m, _i, out, name=name: types.update({name: out.dtype})
            )
    return types


@pytest.mark.parametrize("tpp", [0.0, 0.06])
def test_under_autocast_only_the_final_alternative_projector_stays_in_float32(tpp: float) -> None:
    loss = build(LossWeights(tpp_original=tpp, tpp_alternative=tpp, logits=0.0))
    in_float32 = inner_types(loss.final["alternative"])
    cast = {
        f"{stage}.{view}": inner_types(projector)
        for stage in ("penultimate", "final")
        for view, projector in getattr(loss, stage).items()
        if (stage, view) != ("final", "alternative")
    }
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = loss(features(STUDENT), features(TEACHER), Tail())
    assert set(in_float32.values()) == {torch.float32}
    assert {"stem.0", "to_query", "feed_forward.2"} <= set(in_float32)
    matmuls = {"stem.0", "query_stem.0", "to_query", "to_key", "to_value", "to_output"}
    for name, types in cast.items():
        assert {types[part] for part in matmuls} == {torch.bfloat16}, name
    assert {term.dtype for term in terms.values()} == {torch.float32}


def alternative_gradients(
    loss: ScaleKDLoss, student: Features, teacher: Features, tail: Tail, autocast: bool, cast: bool
) -> Tensor:
    """Of the final alternative term by S4; `cast`: the projector in bfloat16 as well."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        if cast:
            query = None
            if "alternative" in loss.penultimate:
                query = tail(loss.penultimate["alternative"](student.penultimate))
            w = loss.final["alternative"](student.final, query)
            target = alternative_view(teacher.final.detach().flatten(2).mT)
            term = loss.weights.final_alternative * distance(alternative_view(w), target)
        else:
            term = loss(student, teacher, tail)["final_alternative"]
    gradient: Tensor = torch.autograd.grad(term, student.final)[0]
    return gradient.double().flatten()


@pytest.mark.parametrize(("tpp", "gain"), [(0.0, 1000), (0.06, 3)])
def test_final_alternative_gradient_under_autocast_is_nearer_to_float32(
    tpp: float, gain: float
) -> None:
    loss = build(LossWeights(tpp_alternative=tpp, logits=0.0))
    arguments = loss, nearly_constant(STUDENT), features(TEACHER, batch=4), Tail()
    exact = alternative_gradients(*arguments, autocast=False, cast=False)
    in_float32 = alternative_gradients(*arguments, autocast=True, cast=False)
    cast = alternative_gradients(*arguments, autocast=True, cast=True)
    off_in_float32, off_cast = (
        1 - F.cosine_similarity(g, exact, dim=0).item() for g in (in_float32, cast)
    )
    assert off_cast > 1e-4
    assert off_in_float32 < off_cast / gain


# Three: tokens of length zero.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm", [nn.BatchNorm2d, ChannelNorm])
@pytest.mark.parametrize("flat", [False, True], ids=["positions", "no positions"])
@pytest.mark.parametrize(("of_student", "of_teacher"), list(product([0.0, 3.0], repeat=2)))
@pytest.mark.parametrize("tpp", [0.0, 0.08])
def test_constant_maps_give_finite_terms_and_gradients(
    of_student: float, of_teacher: float, tpp: float, flat: bool, norm: type, dtype: torch.dtype
) -> None:
    loss = build(LossWeights(tpp_original=tpp, tpp_alternative=tpp), norm=norm).to(dtype)
    if flat:
        with torch.no_grad():
            for name, parameter in loss.named_parameters():
                if name.endswith("position"):
                    parameter.zero_()

    def constant(shapes: FeatureShapes, value: float) -> Features:
        leaves = features(shapes, dtype=dtype)
        maps = (leaves.penultimate, leaves.final, leaves.logits)
        return Features(*(torch.full_like(x, value).requires_grad_() for x in maps))

    student = constant(STUDENT, of_student)
    terms = loss(student, constant(TEACHER, of_teacher), Tail(dtype))
    sum(terms.values()).backward()
    assert all(term.isfinite() for term in terms.values())
    leaves = (student.final, student.logits, *loss.parameters())
    assert all(leaf.grad.isfinite().all() for leaf in leaves)


def test_separable_stems_are_in_every_projector_or_in_none() -> None:
    for separable, groups in ((False, {1}), (True, {1, 8, 16})):
        loss = build(separable_stem=separable)
        projectors = loss.projectors
        stems = [[m for m in p.stem.modules() if isinstance(m, nn.Conv2d)] for p in projectors]
        assert [len(stem) for stem in stems] == [2 if separable else 1] * 4
        assert {conv.groups for stem in stems for conv in stem} == groups
