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

from scalekd.baselines import Relations
from scalekd.features import Features, FeatureShapes


def expected_terms(
    settings: Relations,
    weights: dict[str, Tensor],
    student: Features,
    teacher: Features,
    queue: list[Tensor],
) -> dict[str, Tensor]:
    """The terms with a queue of these teacher's pooled features, the batch's own included."""
    t_map, terms = teacher.final.detach(), {}
    if settings.images:
        f_s = oracle.mean_over_space(student.final)
        u_s = f_s @ weights["projection.weight"].T + weights["projection.bias"]
        u_t, others = oracle.mean_over_space(t_map), torch.stack(queue)
        gap = oracle.relations(u_s, u_t, (others, others), settings.temperature)
        terms["images"] = settings.images * gap
    if settings.tokens:
        s_map = oracle.resize(student.final, (t_map.shape[2], t_map.shape[3]))
        pairs = zip(oracle.tokens_from_map(s_map), oracle.tokens_from_map(t_map), strict=True)
        gaps = [oracle.relations(s, t, (s, t), settings.temperature) for s, t in pairs]
        terms["tokens"] = settings.tokens * torch.stack(gaps).sum() / len(gaps)
    return terms


@pytest.mark.parametrize(
    "settings",
    [
        Relations(queue=10),
        Relations(images=0.5, tokens=2.0, temperature=0.2, queue=10),
        Relations(images=0.0),
        Relations(tokens=0.0, queue=10),
    ],
    ids=["default", "all", "tokens", "images"],
)
def test_relations_equal_their_formula_as_the_queue_fills_and_turns_over(
    settings: Relations,
) -> None:
    loss = settings.build(student=STUDENT, teacher=TEACHER).double()
    fill(loss)
    weights = copies_of_parameters(loss)
    seen: list[Tensor] = []
    for step in range(3):  # 4 images a step: 4, 8 and 12 features, of which 10 are kept
        student = features(STUDENT, seed=step, images=4)
        teacher = features(TEACHER, seed=10 + step, images=4)
        seen = [*seen, *oracle.mean_over_space(teacher.final.detach())][-10:]
        terms = loss(student, teacher, TAIL)
        expected = expected_terms(settings, weights, student, teacher, seen)
        assert_no_gradient_reaches(teacher, terms)
        assert_same_terms(terms, expected)
        assert_same_gradients(
            (terms, {**leaves(student), **dict(loss.named_parameters())}),
            (expected, {**leaves(student), **weights}),
        )
    assert loss.task_weight == 1


def test_a_student_equal_to_its_teacher_has_the_smallest_loss_zero() -> None:
    shapes = FeatureShapes(None, (6, 3, 3))
    loss = Relations(queue=16).build(student=shapes, teacher=shapes).double()
    with torch.no_grad():
        loss.projection.weight.copy_(torch.eye(6))
        loss.projection.bias.zero_()
    both = features(shapes, seed=1)
    terms = loss(both, both, TAIL)
    assert all(abs(term.item()) < 1e-12 for term in terms.values())
    sum(terms.values()).backward()
    assert both.final.grad.abs().max() < 1e-12


def test_relations_of_tokens_do_not_depend_on_a_rotation_or_the_length_of_features() -> None:
    loss = Relations(images=0.0).build(student=STUDENT, teacher=TEACHER).double()
    student, teacher = features(STUDENT, seed=1), features(TEACHER, seed=2)
    rotation = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64)).Q
    rotated = Features(None, 3 * torch.einsum("nchw,dc->ndhw", student.final, rotation))
    expected = loss(student, teacher, TAIL)["tokens"]
    torch.testing.assert_close(loss(rotated, teacher, TAIL)["tokens"], expected)


def test_the_queue_changes_in_training_only_and_an_empty_one_gives_zero() -> None:
    loss = Relations(tokens=0.0, queue=8).build(student=STUDENT, teacher=TEACHER).double().eval()
    student, teacher = features(STUDENT, seed=1), features(TEACHER, seed=2)
    term = loss(student, teacher, TAIL)["images"]
    term.backward()
    assert term == 0
    assert student.final.grad.abs().max() == 0
    assert not loss.queue.is_filled().any()
    loss.train()
    assert loss(student, teacher, TAIL)["images"] > 0
    assert loss.queue.is_filled().sum() == 6


@pytest.mark.parametrize("temperature", [1e-3, 0.07, 10.0])
def test_a_queue_that_is_not_full_gives_finite_gradients(temperature: float) -> None:
    settings = Relations(temperature=temperature, queue=64)
    loss = settings.build(student=STUDENT, teacher=TEACHER)
    student = features(STUDENT, seed=1, dtype=torch.float32)
    terms = loss(student, features(TEACHER, seed=2, dtype=torch.float32), TAIL)
    sum(terms.values()).backward()
    assert all(term.isfinite() for term in terms.values())
    assert student.final.grad.isfinite().all()
    assert student.final.grad.any()


def test_two_forward_passes_may_come_before_their_backward_passes() -> None:
    loss = Relations(queue=8).build(student=STUDENT, teacher=TEACHER).double()
    totals = []
    for seed in (1, 2):
        terms = loss(features(STUDENT, seed=seed), features(TEACHER, seed=10 + seed), TAIL)
        totals.append(sum(terms.values()))
    torch.stack(totals).sum().backward()
    assert loss.projection.weight.grad.isfinite().all()


def test_a_loss_that_resumes_from_its_state_goes_on_bit_identical() -> None:
    settings = Relations(queue=8)
    loss = settings.build(student=STUDENT, teacher=TEACHER).double()
    loss(features(STUDENT, seed=1), features(TEACHER, seed=2), TAIL)
    resumed = settings.build(student=STUDENT, teacher=TEACHER).double()
    resumed.load_state_dict(loss.state_dict())
    step = features(STUDENT, seed=3), features(TEACHER, seed=4), TAIL
    expected = loss(*step)
    for name, term in resumed(*step).items():
        assert torch.equal(term, expected[name])


def test_relations_lower_their_loss() -> None:
    torch.manual_seed(0)
    loss = Relations(queue=32).build(student=STUDENT, teacher=TEACHER).double()
    student, teacher = features(STUDENT, seed=1), features(TEACHER, seed=2)
    optimizer = torch.optim.Adam([student.final, *loss.parameters()], lr=0.05)
    losses = []
    for _ in range(100):
        total = sum(loss(student, teacher, TAIL).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(total.item())
    assert losses[-1] < 0.2 * losses[0]


def test_relations_in_half_precision_are_computed_in_float32() -> None:
    torch.manual_seed(0)
    half, full = half_precision_terms(Relations(queue=16).build(student=STUDENT, teacher=TEACHER))
    torch.testing.assert_close(half, full, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"images": -1}, ("relations.images is -1", "0 to 10000")),
        ({"tokens": float("inf")}, ("relations.tokens is inf",)),
        ({"temperature": 0}, ("relations.temperature is 0", "more than 0")),
        ({"queue": 1}, ("relations.queue is 1", "from 2 to")),
        ({"queue": 10**9}, ("relations.queue is 1000000000", "1048576")),
        ({"queue": 0.5}, ("relations.queue is 0.5", "a whole number")),
    ],
)
def test_relations_refuse_settings_out_of_range(
    settings: dict[str, Any], parts: tuple[str, ...]
) -> None:
    with refused(*parts):
        Relations(**settings)


@pytest.mark.parametrize("network", ["student", "teacher"])
def test_relations_of_tokens_refuse_a_grid_of_one_token(network: str) -> None:
    shapes = {"student": STUDENT, "teacher": TEACHER, network: FeatureShapes(None, (8, 1, 1))}
    with refused("relations.tokens", f"{network}'s final grid is 1x1", "set it to 0"):
        Relations().build(**shapes)
    Relations(tokens=0.0).build(**shapes)


def test_weights_of_zero_build_nothing() -> None:
    loss = Relations(images=0.0, tokens=0.0).build(student=STUDENT, teacher=TEACHER)
    assert list(loss.state_dict()) == []
    assert loss(features(STUDENT, seed=1), features(TEACHER, seed=2), TAIL) == {}
