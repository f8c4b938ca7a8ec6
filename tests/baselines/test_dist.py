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
from torch import Tensor
from torch.nn import functional as F

from scalekd.baselines import Dist
from scalekd.baselines.dist import correlation
from scalekd.features import Features, FeatureShapes


def with_logits(logits: Tensor) -> Features:
    return Features(None, torch.zeros(len(logits), 8, 2, 2), logits)


@pytest.mark.parametrize(
    "settings",
    [Dist(), Dist(inter=0.5, intra=3.0, temperature=4.0), Dist(inter=0.0), Dist(intra=0.0)],
    ids=["default", "all", "intra", "inter"],
)
def test_dist_equals_its_formula(settings: Dist) -> None:
    loss = settings.build(student=STUDENT, teacher=TEACHER)
    student, teacher = features(STUDENT, seed=1), features(TEACHER, seed=2)
    terms = loss(student, teacher, TAIL)
    t = teacher.logits.detach()
    inter, intra = oracle.dist(student.logits, t, settings.temperature)
    expected = {"inter": settings.inter * inter, "intra": settings.intra * intra}
    expected = {name: term for name, term in expected.items() if getattr(settings, name)}
    assert_no_gradient_reaches(teacher, terms)
    assert_same_terms(terms, expected)
    assert_same_gradients((terms, {"s": student.logits}), (expected, {"s": student.logits}))
    assert loss.task_weight == 1


def test_equal_logits_give_zero_without_gradient() -> None:
    student = features(STUDENT, seed=1)
    terms = Dist().build(student=STUDENT, teacher=TEACHER)(student, student, TAIL)
    assert all(abs(term.item()) < 1e-12 for term in terms.values())
    sum(terms.values()).backward()
    assert student.logits.grad.abs().max() < 1e-12


def test_correlation_is_unchanged_by_affine_maps_of_rows_and_opposite_for_negative_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 6, 9, generator=generator, dtype=torch.float64)
    scale = torch.rand(6, 1, generator=generator, dtype=torch.float64) + 0.1
    shift = torch.randn(6, 1, generator=generator, dtype=torch.float64)
    expected = correlation(a, b)
    torch.testing.assert_close(correlation(scale * a + shift, b), expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(correlation(a, scale * b + shift), expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(correlation(-scale * a, b), -expected, rtol=1e-9, atol=1e-12)


def test_a_student_that_is_half_as_sure_of_the_same_has_no_inter_loss() -> None:
    """DIST asks for the teacher's relations between classes, not for its probabilities."""
    p_t = torch.softmax(torch.randn(4, 6, dtype=torch.float64), 1)
    p_s = 0.5 * p_t + 0.5 / 6
    loss = Dist(intra=0.0).build(student=STUDENT, teacher=TEACHER)
    terms = loss(with_logits(p_s.log()), with_logits(p_t.log()), TAIL)
    assert abs(terms["inter"].item()) < 1e-12


@pytest.mark.parametrize("classes", [10, 1000])
def test_a_classifier_that_starts_at_zero_gets_a_finite_and_descending_gradient(
    classes: int,
) -> None:
    torch.manual_seed(0)
    logits = torch.zeros(8, classes, requires_grad=True)
    teacher = with_logits(3 * torch.randn(8, classes))
    loss = Dist().build(
        student=FeatureShapes(None, (8, 2, 2), classes),
        teacher=FeatureShapes(None, (8, 2, 2), classes),
    )

    def total(at: Tensor) -> Tensor:
        return torch.stack(list(loss(with_logits(at), teacher, TAIL).values())).sum()

    (gradient,) = torch.autograd.grad(total(logits), logits)
    assert gradient.isfinite().all()
    assert 0 < gradient.norm(dim=1).max() < 100
    assert total(logits.detach() - gradient) < total(logits)


def test_very_large_logits_give_finite_gradients() -> None:
    logits = torch.tensor([[1e4, 0.0, -1e4], [0.0, 1e4, 0.0]], requires_grad=True)
    loss = Dist().build(student=STUDENT, teacher=TEACHER)
    terms = loss(with_logits(logits), with_logits(torch.randn(2, 3)), TAIL)
    sum(terms.values()).backward()
    assert all(term.isfinite() for term in terms.values())
    assert logits.grad.isfinite().all()


def test_dist_in_half_precision_is_close_to_float32() -> None:
    half, full = half_precision_terms(Dist().build(student=STUDENT, teacher=TEACHER))
    torch.testing.assert_close(half, full, rtol=1e-5, atol=1e-6)


def test_dist_lowers_its_loss() -> None:
    torch.manual_seed(0)
    loss = Dist().build(student=STUDENT, teacher=TEACHER)
    teacher = with_logits(3 * torch.randn(16, 5))
    logits = (0.1 * torch.randn(16, 5)).requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.1)
    losses = []
    for _ in range(60):
        total = torch.stack(list(loss(with_logits(logits), teacher, TAIL).values())).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(total.item())
    assert losses[-1] < 0.05 * losses[0]
    learned, taught = F.softmax(logits, 1).argmax(1), teacher.logits.argmax(1)
    assert torch.equal(learned, taught)


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"inter": -1}, ("dist.inter is -1", "0 to 10000")),
        ({"intra": float("inf")}, ("dist.intra is inf",)),
        ({"temperature": -1}, ("dist.temperature is -1", "more than 0")),
        ({"temperature": True}, ("dist.temperature is True", "a number")),
    ],
)
def test_dist_refuses_settings_out_of_range(
    settings: dict[str, Any], parts: tuple[str, ...]
) -> None:
    with refused(*parts):
        Dist(**settings)


def test_dist_refuses_pairs_and_batches_that_have_no_correlation() -> None:
    bare, two = FeatureShapes(None, (8, 2, 2)), FeatureShapes(None, (8, 2, 2), 2)
    with refused("DIST needs logits", "the teacher has no classifier"):
        Dist().build(student=STUDENT, teacher=bare)
    with refused("dist.inter", "2 classes", "set it to 0"):
        Dist().build(student=two, teacher=two)
    Dist(inter=0.0).build(student=two, teacher=two)
    loss = Dist().build(student=STUDENT, teacher=TEACHER)
    one = features(STUDENT, seed=1, images=1), features(TEACHER, seed=2, images=1)
    with refused("dist.intra", "this batch has 1"):
        loss(*one, TAIL)
    assert set(Dist(intra=0.0).build(student=STUDENT, teacher=TEACHER)(*one, TAIL)) == {"inter"}
