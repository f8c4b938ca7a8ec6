import math
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
    features,
    half_precision_terms,
)
from helpers.refusals import refused

from scalekd.baselines import LogitKd
from scalekd.features import FeatureShapes
from scalekd.method import LossWeights, ScaleKDLoss

WITHOUT = FeatureShapes(None, (8, 2, 2))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_logit_kd_equals_its_formula(temperature: float) -> None:
    loss = LogitKd(logits=0.7, temperature=temperature).build(student=STUDENT, teacher=TEACHER)
    student, teacher = features(STUDENT, seed=1), features(TEACHER, seed=2)
    terms = loss(student, teacher, TAIL)
    kd = oracle.logit_distillation(student.logits, teacher.logits.detach(), temperature)
    expected = {"logits": 0.7 * kd}
    assert_no_gradient_reaches(teacher, terms)
    assert_same_terms(terms, expected)
    assert_same_gradients((terms, {"s": student.logits}), (expected, {"s": student.logits}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logit_kd_is_bit_identical_to_scalekd_with_feature_weights_of_zero(
    dtype: torch.dtype,
) -> None:
    weights = LossWeights(0.0, 0.0, 0.0, 0.0, 0.3)
    shapes = {"student": STUDENT, "teacher": TEACHER}
    scalekd = ScaleKDLoss(**shapes, heads=(1, 1), weights=weights, temperature=3.0)
    student = features(STUDENT, seed=1, dtype=dtype)
    teacher = features(TEACHER, seed=2, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        expected = scalekd(student, teacher, TAIL)
        actual = LogitKd(logits=0.3, temperature=3.0).build(**shapes)(student, teacher, TAIL)
    assert actual.keys() == expected.keys()
    assert torch.equal(actual["logits"], expected["logits"])
    gradients = [torch.autograd.grad(t["logits"], student.logits)[0] for t in (actual, expected)]
    assert torch.equal(*gradients)


def test_the_task_has_the_rest_of_the_weight_and_a_weight_of_zero_gives_no_term() -> None:
    assert LogitKd(logits=0.25).build(student=STUDENT, teacher=TEACHER).task_weight == 0.75
    none = LogitKd(logits=0.0).build(student=WITHOUT, teacher=WITHOUT)
    assert none.task_weight == 1
    assert none(features(WITHOUT, seed=1), features(WITHOUT, seed=2), TAIL) == {}


def test_logit_kd_in_half_precision_is_close_to_float32() -> None:
    half, full = half_precision_terms(LogitKd().build(student=STUDENT, teacher=TEACHER))
    torch.testing.assert_close(half, full, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"logits": -0.1}, ("logit_kd.logits is -0.1", "from 0 to 1")),
        ({"logits": 1.5}, ("logit_kd.logits is 1.5", "from 0 to 1")),
        ({"logits": math.nan}, ("logit_kd.logits is nan",)),
        ({"logits": "half"}, ("logit_kd.logits is 'half'", "a number")),
        ({"temperature": 0}, ("logit_kd.temperature is 0", "more than 0")),
        ({"temperature": math.inf}, ("logit_kd.temperature is inf", "at most 1000")),
    ],
)
def test_logit_kd_refuses_settings_out_of_range(
    settings: dict[str, Any], parts: tuple[str, ...]
) -> None:
    with refused(*parts):
        LogitKd(**settings)


def test_logit_kd_refuses_a_pair_without_common_logits() -> None:
    with refused("the teacher has no classifier"):
        LogitKd().build(student=STUDENT, teacher=WITHOUT)
    with refused("the student has no classifier"):
        LogitKd().build(student=WITHOUT, teacher=TEACHER)
    with refused("7 classes", "the student 5"):
        LogitKd().build(student=STUDENT, teacher=FeatureShapes(None, (8, 2, 2), 7))
    loss = LogitKd().build(student=STUDENT, teacher=TEACHER)
    with refused("the teacher gives none"):
        loss(features(STUDENT, seed=1), features(WITHOUT, seed=2), TAIL)
    with refused("(6, 5)", "(4, 5)"):
        loss(features(STUDENT, seed=1), features(TEACHER, seed=2, images=4), TAIL)
