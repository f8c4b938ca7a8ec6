import copy
from typing import Any

import pytest
import torch
from helpers import baseline_oracle as oracle
from helpers.baseline_inputs import (
    STUDENT,
    TAIL,
    TEACHER,
    assert_no_gradient_reaches,
    assert_same_terms,
    features,
    half_precision_terms,
)
from helpers.oracle import layer_norm
from helpers.refusals import refused
from torch import Tensor

from scalekd.baselines import Vkd
from scalekd.features import Features, FeatureShapes

WIDE, NARROW = FeatureShapes(None, (12, 2, 2)), FeatureShapes(None, (4, 3, 3))


def deviation_from_orthonormal(matrix: Tensor) -> float:
    """Of the columns, or of the rows where these are fewer."""
    gram = matrix.T @ matrix if matrix.shape[0] >= matrix.shape[1] else matrix @ matrix.T
    return (gram - torch.eye(len(gram), dtype=gram.dtype)).abs().max().item()


@pytest.mark.parametrize(("student", "teacher"), [(STUDENT, TEACHER), (WIDE, NARROW), (WIDE, WIDE)])
def test_vkd_equals_its_formula(student: FeatureShapes, teacher: FeatureShapes) -> None:
    torch.manual_seed(0)
    loss = Vkd(weight=0.7).build(student=student, teacher=teacher).double()
    s, t = features(student, seed=1), features(teacher, seed=2)
    terms = loss(s, t, TAIL)
    f_t = oracle.mean_over_space(3 * t.final.detach()) / 3
    channels = f_t.shape[1]
    gain = torch.ones(channels, dtype=torch.float64)
    target = layer_norm(f_t, gain, torch.zeros_like(gain))
    projected = oracle.mean_over_space(s.final) @ loss.projection.weight.detach().T
    expected = {"features": 0.7 * oracle.smooth_l1(projected, target)}
    assert_no_gradient_reaches(t, terms)
    assert_same_terms(terms, expected)
    ours, theirs = (torch.autograd.grad(x["features"], s.final)[0] for x in (terms, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    assert loss.task_weight == 1


def test_the_gradient_of_the_projection_is_that_of_finite_differences() -> None:
    torch.manual_seed(0)
    loss = Vkd().build(student=STUDENT, teacher=TEACHER).double()
    s, t = features(STUDENT, seed=1), features(TEACHER, seed=2)
    (parameter,) = loss.parameters()

    def term(values: Tensor) -> Tensor:
        (name,) = dict(loss.named_parameters())
        terms: dict[str, Tensor] = torch.func.functional_call(loss, {name: values}, (s, t, TAIL))
        return terms["features"]

    assert torch.autograd.gradcheck(term, parameter.detach().clone().requires_grad_())


@pytest.mark.parametrize(("student", "teacher"), [(STUDENT, TEACHER), (WIDE, NARROW), (WIDE, WIDE)])
def test_the_projection_stays_orthonormal_while_it_learns(
    student: FeatureShapes, teacher: FeatureShapes
) -> None:
    torch.manual_seed(0)
    loss = Vkd().build(student=student, teacher=teacher)
    s = Features(None, torch.randn(16, *student.final))
    t = Features(None, torch.randn(16, *teacher.final))
    before = loss.projection.weight.detach().clone()
    optimizer = torch.optim.AdamW(loss.parameters(), lr=0.05, weight_decay=0.05)
    losses = []
    for _ in range(40):
        term = loss(s, t, TAIL)["features"]
        optimizer.zero_grad()
        term.backward()
        optimizer.step()
        losses.append(term.item())
    assert deviation_from_orthonormal(loss.projection.weight.detach()) < 1e-5
    assert (loss.projection.weight - before).abs().max() > 0.1
    assert losses[-1] < losses[0]


def test_the_distance_is_kept_by_a_projection_to_more_channels() -> None:
    loss = Vkd().build(student=NARROW, teacher=WIDE).double()
    a, b = torch.randn(2, 5, 4, dtype=torch.float64)
    projected = loss.projection(a) - loss.projection(b)
    torch.testing.assert_close(projected.norm(dim=1), (a - b).norm(dim=1), rtol=1e-9, atol=0)


def test_the_loss_survives_copies_and_state_dicts() -> None:
    torch.manual_seed(0)
    loss = Vkd().build(student=STUDENT, teacher=TEACHER).double()
    s, t = features(STUDENT, seed=1), features(TEACHER, seed=2)
    other = Vkd().build(student=STUDENT, teacher=TEACHER).double()
    expected = loss(s, t, TAIL)["features"]
    assert not torch.equal(other(s, t, TAIL)["features"], expected)
    other.load_state_dict(loss.state_dict())
    assert torch.equal(other(s, t, TAIL)["features"], expected)
    assert torch.equal(copy.deepcopy(loss)(s, t, TAIL)["features"], expected)


def test_vkd_in_half_precision_is_computed_in_float32() -> None:
    torch.manual_seed(0)
    half, full = half_precision_terms(Vkd().build(student=STUDENT, teacher=TEACHER))
    torch.testing.assert_close(half, full, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"weight": -1}, ("vkd.weight is -1", "0 to 10000")),
        ({"weight": None}, ("vkd.weight is None", "a number")),
    ],
)
def test_vkd_refuses_settings_out_of_range(
    settings: dict[str, Any], parts: tuple[str, ...]
) -> None:
    with refused(*parts):
        Vkd(**settings)


def test_vkd_with_weight_zero_gives_no_term() -> None:
    loss = Vkd(weight=0.0).build(student=STUDENT, teacher=TEACHER)
    assert loss(features(STUDENT, seed=1), features(TEACHER, seed=2), TAIL) == {}
