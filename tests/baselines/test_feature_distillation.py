from typing import Any

import pytest
import torch
from helpers import baseline_oracle as oracle
from helpers.baseline_inputs import (
    STUDENT,
    TAIL,
    TEACHER,
    assert_no_gradient_reaches,
    assert_same_gradients,
    assert_same_terms,
    copies_of_parameters,
    features,
    fill,
    half_precision_terms,
    leaves,
)
from helpers.refusals import refused
from torch import Tensor

from scalekd.baselines import FeatureDistillation
from scalekd.features import Features, FeatureShapes

ALONE = {"penultimate": 0.0, "final": 0.0, "logits": 0.0}


def expected_terms(
    settings: FeatureDistillation, weights: dict[str, Tensor], student: Features, teacher: Features
) -> dict[str, Tensor]:
    terms = {}
    for stage in ("penultimate", "final"):
        if weight := getattr(settings, stage):
            s, t = getattr(student, stage), getattr(teacher, stage).detach()
            # In the other order than the package: first the convolution and then the new grid.
            projected = oracle.pointwise(s, weights, f"projections.{stage}")
            s = oracle.tokens_from_map(oracle.resize(projected, t.shape[2:]))
            terms[stage] = weight * oracle.distance(s, oracle.tokens_from_map(t))
    if settings.logits:
        s, t = student.logits, teacher.logits.detach()
        kd = oracle.logit_distillation(s, t, settings.temperature)
        terms["logits"] = settings.logits * kd
    return terms


@pytest.mark.parametrize(
    "settings",
    [
        FeatureDistillation(),
        FeatureDistillation(penultimate=0.5, final=0.2, logits=0.9, temperature=3.0),
        FeatureDistillation(**{**ALONE, "penultimate": 0.3}),
        FeatureDistillation(**{**ALONE, "final": 0.3}),
    ],
    ids=["default", "all", "penultimate", "final"],
)
def test_feature_distillation_equals_its_formula(settings: FeatureDistillation) -> None:
    loss = settings.build(student=STUDENT, teacher=TEACHER).double()
    fill(loss)
    student, teacher = features(STUDENT, seed=1), features(TEACHER, seed=2)
    weights = copies_of_parameters(loss)
    terms = loss(student, teacher, TAIL)
    expected = expected_terms(settings.with_defaults(), weights, student, teacher)
    assert_no_gradient_reaches(teacher, terms)
    assert_same_terms(terms, expected)
    assert_same_gradients(
        (terms, {**leaves(student), **dict(loss.named_parameters())}),
        (expected, {**leaves(student), **weights}),
    )


@pytest.mark.parametrize("grid", [(2, 2), (4, 2), (7, 5)])
def test_a_student_equal_to_its_teacher_on_any_grid_of_constants_has_no_distance(
    grid: tuple[int, int],
) -> None:
    settings = FeatureDistillation(**{**ALONE, "final": 1.0})
    student, teacher = FeatureShapes(None, (8, *grid)), FeatureShapes(None, (8, 4, 3))
    loss = settings.build(student=student, teacher=teacher).double()
    with torch.no_grad():
        loss.projections["final"].weight.copy_(torch.eye(8)[:, :, None, None])
        loss.projections["final"].bias.zero_()
    direction = torch.randn(2, 8, 1, 1, dtype=torch.float64)
    terms = loss(
        Features(None, direction.expand(2, 8, *grid)),
        Features(None, 3 * direction.expand(2, 8, 4, 3)),
        TAIL,
    )
    assert terms["final"] < 1e-20


def test_weights_of_zero_build_nothing_and_read_nothing() -> None:
    settings = FeatureDistillation(**ALONE)
    bare = FeatureShapes(None, (8, 2, 2))
    loss = settings.build(student=bare, teacher=bare)
    assert not settings.reads_penultimate
    assert FeatureDistillation().reads_penultimate
    assert list(loss.parameters()) == []
    assert loss(features(bare, seed=1), features(bare, seed=2), TAIL) == {}
    assert loss.task_weight == 1
    assert FeatureDistillation().build(student=STUDENT, teacher=TEACHER).task_weight == 0.5


def test_feature_distillation_in_half_precision_is_close_to_float32() -> None:
    torch.manual_seed(0)
    half, full = half_precision_terms(FeatureDistillation().build(student=STUDENT, teacher=TEACHER))
    torch.testing.assert_close(half, full, rtol=0.02, atol=0)


def test_feature_distillation_learns_a_feature_that_a_projection_can_reach() -> None:
    torch.manual_seed(0)
    shapes = FeatureShapes(None, (8, 4, 4))
    settings = FeatureDistillation(**{**ALONE, "final": 1.0})
    loss = settings.build(student=shapes, teacher=shapes)
    seen = torch.randn(8, 8, 4, 4)
    target = torch.einsum("nchw,dc->ndhw", seen, torch.randn(8, 8))
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.05)
    first = None
    for _ in range(100):
        term = loss(Features(None, seen), Features(None, target), TAIL)["final"]
        first = first or term.item()
        optimizer.zero_grad()
        term.backward()
        optimizer.step()
    assert term.item() < 0.05 * first


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"penultimate": -1}, ("fd.penultimate is -1", "0 to 10000")),
        ({"final": float("nan")}, ("fd.final is nan",)),
        ({"final": None}, ("fd.final is None", "a number")),
        ({"logits": 2}, ("fd.logits is 2", "0 to 1")),
        ({"temperature": -1}, ("fd.temperature is -1", "more than 0")),
    ],
)
def test_feature_distillation_refuses_settings_out_of_range(
    settings: dict[str, Any], parts: tuple[str, ...]
) -> None:
    with refused(*parts):
        FeatureDistillation(**settings)


def test_feature_distillation_refuses_what_a_weight_needs_and_is_not_there() -> None:
    bare = FeatureShapes(None, (8, 2, 2))
    with refused("fd.logits", "the teacher has no classifier", "set it to 0"):
        FeatureDistillation().build(student=STUDENT, teacher=bare)
    only = FeatureDistillation(logits=0.0)
    with refused("fd.penultimate", "teacher's penultimate", "set it to 0"):
        only.build(student=STUDENT, teacher=bare)
    cached = features(FeatureShapes(None, TEACHER.final, TEACHER.classes), seed=2)
    loss = only.build(student=STUDENT, teacher=TEACHER).double()
    with refused("fd.penultimate", "cache"):
        loss(features(STUDENT, seed=1), cached, TAIL)
