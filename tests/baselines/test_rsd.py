from typing import Any

import pytest
import torch
from helpers import baseline_oracle as oracle
from helpers.baseline_inputs import (
    STUDENT,
    TAIL,
    TEACHER,
    assert_close,
    assert_no_gradient_reaches,
    assert_same_gradients,
    copies_of_parameters,
    features,
    fill,
    half_precision_terms,
    leaves,
)
from helpers.refusals import refused
from torch import Tensor, nn

from scalekd.baselines import Rsd
from scalekd.baselines.rsd import standardized
from scalekd.features import Features, FeatureShapes

IMAGES = 9
ROUNDING = 1e-4
"""What the 1e-6 that is added to variances of about 1e-2 and more may change, relatively."""


def expected_terms(
    settings: Rsd, weights: dict[str, Tensor], student: Features, teacher: Features
) -> dict[str, Tensor]:
    f_t = oracle.mean_over_space(teacher.final.detach())
    h = oracle.rsd_head(oracle.mean_over_space(student.final), weights)
    weight = 0.1 * 768 / f_t.shape[1] if settings.weight is None else settings.weight
    diagonal = off_diagonal = torch.zeros((), dtype=torch.float64)
    for (i, j), p in oracle.channel_correlations(h, f_t).items():
        if i == j:
            diagonal = diagonal + weight * (p - 1) ** 2
        else:
            off_diagonal = off_diagonal + weight * settings.off_diagonal * p**2
    terms = {"diagonal": diagonal, "off_diagonal": off_diagonal}
    return {name: t for name, t in terms.items() if name == "diagonal" or settings.off_diagonal}


@pytest.mark.parametrize(
    "settings",
    [Rsd(), Rsd(weight=0.3, off_diagonal=0.5), Rsd(off_diagonal=0.0)],
    ids=["default", "all", "diagonal"],
)
def test_rsd_equals_its_formula(settings: Rsd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scalekd.baselines.rsd.EPSILON", 0.0)
    loss = settings.build(student=STUDENT, teacher=TEACHER).double()
    fill(loss)
    student = features(STUDENT, seed=1, images=IMAGES)
    teacher = features(TEACHER, seed=2, images=IMAGES)
    weights = copies_of_parameters(loss)
    terms = loss(student, teacher, TAIL)
    expected = expected_terms(settings, weights, student, teacher)
    assert_no_gradient_reaches(teacher, terms)
    assert list(terms) == list(expected)
    for name, term in terms.items():
        assert_close(term, expected[name], name)
    assert_same_gradients(
        (terms, {**leaves(student), **dict(loss.named_parameters())}),
        (expected, {**leaves(student), **weights}),
    )
    assert loss.task_weight == 1


def test_the_guard_against_constant_channels_changes_nothing_else() -> None:
    loss = Rsd().build(student=STUDENT, teacher=TEACHER).double()
    fill(loss)
    student = features(STUDENT, seed=1, images=IMAGES)
    teacher = features(TEACHER, seed=2, images=IMAGES)
    expected = expected_terms(Rsd(), copies_of_parameters(loss), student, teacher)
    for name, term in loss(student, teacher, TAIL).items():
        torch.testing.assert_close(term, expected[name], rtol=ROUNDING, atol=0)


def test_standardized_features_have_mean_zero_and_deviation_one_and_constants_give_zero() -> None:
    x = 5 + 3 * torch.randn(20, 4, dtype=torch.float64)
    x[:, 2] = 7.0
    z = standardized(x)
    torch.testing.assert_close(z.mean(0), torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-12)
    deviation = z.std(0, correction=0)
    expected = torch.tensor([1.0, 1.0, 0.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(deviation, expected, rtol=0, atol=1e-5)


def test_rsd_is_zero_for_a_student_with_the_teachers_uncorrelated_channels() -> None:
    shapes = FeatureShapes(None, (3, 1, 1))
    loss = Rsd(weight=1.0, off_diagonal=1.0).build(student=shapes, teacher=shapes).double()
    loss.head = nn.Identity()
    # Three columns of a Hadamard matrix: mean 0, deviation 1, no correlation.
    columns = [[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]
    target = torch.tensor(columns, dtype=torch.float64)[:, :, None, None]
    terms = loss(Features(None, 2 * target + 3), Features(None, 5 * target - 1), TAIL)
    assert all(term < 1e-10 for term in terms.values())
    opposite = loss(Features(None, -target), Features(None, target), TAIL)
    assert opposite["diagonal"].item() == pytest.approx(12, rel=1e-5)  # 3 (-1 - 1)^2


@pytest.mark.parametrize(("channels", "weight"), [(768, 0.1), (1536, 0.05), (96, 0.8)])
def test_the_default_weight_follows_the_teachers_channels(channels: int, weight: float) -> None:
    teacher = FeatureShapes(None, (channels, 2, 2))
    assert Rsd().build(student=STUDENT, teacher=teacher).weight == pytest.approx(weight)
    assert Rsd(weight=0.3).build(student=STUDENT, teacher=teacher).weight == 0.3


def test_a_weight_of_zero_gives_no_term() -> None:
    loss = Rsd(weight=0.0).build(student=STUDENT, teacher=TEACHER)
    assert loss(features(STUDENT, seed=1), features(TEACHER, seed=2), TAIL) == {}


def test_a_constant_channel_of_the_teacher_gives_finite_gradients() -> None:
    loss = Rsd().build(student=STUDENT, teacher=TEACHER).double()
    student, teacher = features(STUDENT, seed=1), features(TEACHER, seed=2)
    teacher.final.data[:, 3] = 7.0
    terms = loss(student, teacher, TAIL)
    sum(terms.values()).backward()
    assert student.final.grad.isfinite().all()
    assert terms["diagonal"] >= loss.weight  # that channel's (0 - 1)^2


def test_rsd_lowers_its_loss() -> None:
    torch.manual_seed(0)
    loss = Rsd().build(student=STUDENT, teacher=TEACHER).double()
    student = features(STUDENT, seed=1, images=32)
    teacher = features(TEACHER, seed=2, images=32)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.01)
    losses = []
    for _ in range(80):
        total = sum(loss(student, teacher, TAIL).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(total.item())
    assert losses[-1] < 0.5 * losses[0]


def test_rsd_in_half_precision_is_computed_in_float32() -> None:
    torch.manual_seed(0)
    half, full = half_precision_terms(Rsd().build(student=STUDENT, teacher=TEACHER))
    torch.testing.assert_close(half, full, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"weight": -1}, ("rsd.weight is -1", "0 to 10000")),
        ({"weight": "auto"}, ("rsd.weight is 'auto'", "a number")),
        ({"off_diagonal": float("nan")}, ("rsd.off_diagonal is nan",)),
    ],
)
def test_rsd_refuses_settings_out_of_range(
    settings: dict[str, Any], parts: tuple[str, ...]
) -> None:
    with refused(*parts):
        Rsd(**settings)


def test_rsd_refuses_a_batch_of_one_image() -> None:
    loss = Rsd().build(student=STUDENT, teacher=TEACHER).double()
    with refused("RSD's correlation", "this batch has 1", "at least 2"):
        loss(features(STUDENT, seed=1, images=1), features(TEACHER, seed=2, images=1), TAIL)
