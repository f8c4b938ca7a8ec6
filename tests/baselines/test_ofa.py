import math
from dataclasses import replace
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

from scalekd.baselines import Ofa
from scalekd.baselines.stage_heads import build_stage_head
from scalekd.features import Features, FeatureShapes

LABELS = [0, 3, 4, 1, 1, 2]
TARGETS = torch.tensor(LABELS)
STRIDES = [[2, 2], [2], [1]]
"""What the heads of the stages 8x8, 4x4 and 2x2 do."""


@pytest.mark.parametrize(
    "settings",
    [
        Ofa(),
        Ofa(logits=0.5, stages=0.3, exponent=1.4, temperature=2.0),
        Ofa(stages=0.0),
        Ofa(logits=0.0),
    ],
    ids=["default", "all", "logits", "stages"],
)
def test_ofa_equals_its_formula(settings: Ofa) -> None:
    loss = settings.build(student=STUDENT, teacher=TEACHER).double()
    fill(loss)
    student, teacher = features(STUDENT, seed=1), features(TEACHER, seed=2)
    terms = loss(student, teacher, TAIL, TARGETS)

    weights = copies_of_parameters(loss)
    t, expected = teacher.logits.detach(), {}
    shared = LABELS, settings.exponent, settings.temperature
    if settings.logits:
        expected["logits"] = settings.logits * oracle.ofa(student.logits, t, *shared)
    for i, strides in enumerate(STRIDES if settings.stages else []):
        prefix = f"heads.{i}."
        own = {n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)}
        z = oracle.stage_head(student.stages[i], own, strides)
        expected[f"stage_{i + 1}"] = settings.stages * oracle.ofa(z, t, *shared)

    assert_no_gradient_reaches(teacher, terms)
    assert_same_terms(terms, expected)
    assert_same_gradients(
        (terms, {**leaves(student), **dict(loss.named_parameters())}),
        (expected, {**leaves(student), **weights}),
    )
    assert loss.task_weight == 1


def test_ofa_of_one_image_and_two_classes_by_hand() -> None:
    """p_t = (3/4, 1/4), p = (1/2, 1/2), class 0, e = 2: ((7/4)^2 - 1) log 2 + (1/4)^2 log 2."""
    shapes = FeatureShapes(None, (8, 2, 2), 2)
    loss = Ofa(stages=0.0, exponent=2.0).build(student=shapes, teacher=shapes)
    final = torch.zeros(1, 8, 2, 2)
    student = Features(None, final, torch.zeros(1, 2))
    teacher = Features(None, final, torch.tensor([[math.log(3.0), 0.0]]))
    terms = loss(student, teacher, TAIL, torch.tensor([0]))
    assert terms["logits"].item() == pytest.approx((33 / 16 + 1 / 16) * math.log(2), rel=1e-6)


def test_with_exponent_one_ofa_is_the_cross_entropy_under_the_teacher() -> None:
    loss = Ofa(stages=0.0).build(student=STUDENT, teacher=TEACHER)
    student, teacher = features(STUDENT, seed=1), features(TEACHER, seed=2)
    expected = oracle.logit_distillation(student.logits, teacher.logits, 1.0)
    for targets in (TARGETS, 4 - TARGETS):
        actual = loss(student, teacher, TAIL, targets)["logits"]
        torch.testing.assert_close(actual, expected)


def test_a_larger_exponent_raises_the_share_of_the_images_class() -> None:
    student, teacher = features(STUDENT, seed=1), features(TEACHER, seed=2)
    shares = []
    for exponent in (1.0, 1.2, 1.5):
        loss = Ofa(stages=0.0, exponent=exponent).build(student=STUDENT, teacher=TEACHER)
        term = loss(student, teacher, TAIL, TARGETS)["logits"]
        (gradient,) = torch.autograd.grad(term, student.logits)
        shares.append(-gradient.gather(1, TARGETS[:, None]).sum().item())
    assert shares[0] < shares[1] < shares[2]


def test_of_class_probabilities_the_most_probable_class_counts() -> None:
    loss = Ofa(exponent=1.3).build(student=STUDENT, teacher=TEACHER).double()
    student, teacher = features(STUDENT, seed=1), features(TEACHER, seed=2)
    mixed = 0.6 * torch.eye(5)[TARGETS] + 0.4 * torch.eye(5)[(TARGETS + 2) % 5]
    assert_same_terms(loss(student, teacher, TAIL, mixed), loss(student, teacher, TAIL, TARGETS))


@pytest.mark.parametrize(
    ("shape", "last", "strides", "channels"),
    [
        ((256, 56, 56), (2048, 7, 7), [2, 2, 2], [256, 512, 1024, 2048]),
        ((2048, 7, 7), (2048, 7, 7), [1], [2048, 2048]),
        ((192, 14, 14), (192, 14, 14), [1], [192, 192]),
        ((96, 5, 7), (64, 3, 4), [2], [96, 96]),
        ((4, 9, 2), (64, 3, 2), [2, 2], [4, 8, 16]),
    ],
    ids=["ResNet-50, first", "ResNet-50, last", "ViT", "narrower last", "oblong"],
)
def test_heads_halve_to_the_last_grid_and_double_the_channels(
    shape: tuple[int, int, int],
    last: tuple[int, int, int],
    strides: list[int],
    channels: list[int],
) -> None:
    *convolutions, _, _, linear = build_stage_head(shape, last=last, classes=7)
    assert [layers[0].stride[0] for layers in convolutions] == strides
    widths = [layers[0].in_channels for layers in convolutions] + [linear.in_features]
    assert widths == channels
    assert linear.out_features == 7


def test_stage_heads_train_the_stages_and_lower_their_loss() -> None:
    torch.manual_seed(0)
    loss = Ofa(exponent=1.2).build(student=STUDENT, teacher=TEACHER).double()
    student, teacher = features(STUDENT, seed=1), features(TEACHER, seed=2)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.05)
    totals = []
    for _ in range(100):
        terms = loss(student, teacher, TAIL, TARGETS)
        total = sum(term for name, term in terms.items() if name != "logits")
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    p_t = torch.softmax(teacher.logits.detach(), 1)
    image_class = torch.eye(5)[TARGETS]
    goal = (p_t + image_class) ** 1.2 - image_class
    lowest = -(goal * (goal / goal.sum(1, keepdim=True)).log()).sum(1).mean() * len(STRIDES)
    assert lowest < totals[-1] < lowest + 0.1 * (totals[0] - lowest)
    assert all(stage.grad.abs().max() > 0 for stage in student.stages)


def test_very_large_logits_give_a_finite_loss_and_gradient() -> None:
    loss = Ofa(stages=0.0, exponent=1.5).build(student=STUDENT, teacher=TEACHER)
    logits = torch.tensor([[1e4, 0.0, -1e4]], requires_grad=True)
    final = torch.zeros(1, 8, 2, 2)
    teacher = Features(None, final, logits.detach().flip(1))
    term = loss(Features(None, final, logits), teacher, TAIL, torch.tensor([1]))["logits"]
    term.backward()
    assert term.isfinite()
    assert logits.grad.isfinite().all()


def test_ofa_in_half_precision_is_close_to_float32() -> None:
    torch.manual_seed(0)
    loss = Ofa(exponent=1.2).build(student=STUDENT, teacher=TEACHER)
    half, full = half_precision_terms(loss, torch.tensor([0, 3, 4, 1, 1, 2, 0, 0]))
    torch.testing.assert_close(half["logits"], full["logits"], rtol=1e-6, atol=0)
    torch.testing.assert_close(half, full, rtol=0.02, atol=0)


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"logits": -1}, ("ofa.logits is -1", "0 to 10000")),
        ({"stages": float("nan")}, ("ofa.stages is nan",)),
        ({"exponent": 0}, ("ofa.exponent is 0", "more than 0 and at most 10")),
        ({"exponent": 100}, ("ofa.exponent is 100", "at most 10")),
        ({"temperature": -1}, ("ofa.temperature is -1", "more than 0")),
        ({"exponent": [1.0, 1.5]}, ("ofa.exponent is [1.0, 1.5]", "a number")),
    ],
)
def test_ofa_refuses_settings_out_of_range(
    settings: dict[str, Any], parts: tuple[str, ...]
) -> None:
    with refused(*parts):
        Ofa(**settings)


def test_ofa_refuses_what_it_needs_and_is_not_there() -> None:
    bare = FeatureShapes(None, (8, 2, 2))
    with refused("OFA-KD needs logits", "the teacher has no classifier"):
        Ofa().build(student=STUDENT, teacher=bare)
    with refused("ofa.stages is 1.0", "no maps of its stages", "set it to 0"):
        Ofa().build(student=replace(STUDENT, stages=()), teacher=TEACHER)
    Ofa(stages=0.0).build(student=replace(STUDENT, stages=()), teacher=TEACHER)

    loss = Ofa().build(student=STUDENT, teacher=TEACHER).double()
    student, teacher = features(STUDENT, seed=1), features(TEACHER, seed=2)
    with refused("OFA-KD needs labels", "no targets"):
        loss(student, teacher, TAIL)
    with refused("maps of 2 stages", "built for 3"):
        loss(replace(student, stages=student.stages[1:]), teacher, TAIL, TARGETS)
    one = features(STUDENT, seed=1, images=1), features(TEACHER, seed=2, images=1)
    with refused("BatchNorm in the stages' heads", "this batch has 1"):
        loss(*one, TAIL, TARGETS[:1])
    loss.eval()
    assert loss(*one, TAIL, TARGETS[:1])["stage_1"].isfinite()
