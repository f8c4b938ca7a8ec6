"""The package against the word-for-word implementation of oracle.py, over random shapes."""

import math
from dataclasses import dataclass

import torch
from helpers import oracle
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from scalekd.features import Features, FeatureShapes
from scalekd.method import (
    ChannelNorm,
    CrossAttentionProjector,
    LossWeights,
    ScaleKDLoss,
    alternative_view,
    distance,
    logit_distillation,
)

EXACT = settings(
    max_examples=25,
    derandomize=True,
)
TOLERANCE = 1e-9
NORMS = {"batch": nn.BatchNorm2d, "running": nn.BatchNorm2d, "channel": ChannelNorm}

seeds = st.integers(0, 2**31)
grids = st.tuples(st.integers(1, 4), st.integers(1, 4)).filter(lambda g: g[0] * g[1] > 1)
channels = st.integers(1, 8)
weights = st.one_of(st.just(0.0), st.floats(0.01, 2.0))
temperatures = st.floats(0.5, 8.0)


class Random:
    """Tensors of one seed."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def fill(self, module: nn.Module) -> None:
        """Every parameter and running statistic, far from its initial value."""
        with torch.no_grad():
            for name, tensor in module.state_dict().items():
                if name.endswith("num_batches_tracked"):
                    continue
                values = self(*tensor.shape)
                tensor.copy_(values.abs() + 0.5 if name.endswith("running_var") else 0.5 * values)


def weights_for_oracle(module: nn.Module) -> dict[str, Tensor]:
    copies = {name: t.detach().clone() for name, t in module.state_dict().items()}
    for name, _ in module.named_parameters():
        copies[name].requires_grad_()
    return copies


def close(actual: Tensor | None, expected: Tensor | None, scale: float, name: str) -> None:
    if actual is None or expected is None:
        assert actual is expected, f"{name}: {actual} and {expected}"
        return
    torch.testing.assert_close(
        actual, expected, rtol=TOLERANCE, atol=TOLERANCE * scale, msg=lambda m: f"{name}: {m}"
    )


def same_gradients(
    actual: tuple[Tensor, dict[str, Tensor]], expected: tuple[Tensor, dict[str, Tensor]]
) -> None:
    """Gradients of two scalars by leaves of the same names; absent ones must be absent in both."""
    gradients = []
    for value, leaves in (actual, expected):
        of_leaves = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
        gradients.append(dict(zip(leaves, of_leaves, strict=True)))
    actual, expected = gradients
    scale = max([1.0, *(g.abs().max().item() for g in expected.values() if g is not None)])
    for name in leaves:
        close(actual[name], expected[name], scale, f"gradient by {name}")


@dataclass(frozen=True)
class ProjectorCase:
    seed: int
    batch: int
    student: tuple[int, int, int]
    queries: tuple[int, int]
    heads: int
    per_head: int
    norm: oracle.StemNorm
    own_query: bool
    sharpness: float


projector_cases = st.builds(
    ProjectorCase,
    seed=seeds,
    batch=st.integers(1, 3),
    student=st.tuples(channels, grids).map(lambda s: (s[0], *s[1])),
    queries=grids,
    heads=st.integers(1, 3),
    per_head=st.integers(1, 3),
    norm=st.sampled_from(["batch", "running", "channel"]),
    own_query=st.booleans(),
    sharpness=st.floats(0.5, 5.0),
)


@EXACT
@given(projector_cases)
def test_the_projector_equals_its_formula(case: ProjectorCase) -> None:
    random = Random(case.seed)
    width = case.heads * case.per_head
    # One channel normalised over itself is zero whatever the input.
    assume(width > 1)
    module = CrossAttentionProjector(
        in_channels=case.student[0],
        out_channels=width,
        key_grid=case.student[1:],
        query_grid=case.queries if case.own_query else None,
        heads=case.heads,
        norm=NORMS[case.norm],
        scale=case.sharpness,
    ).double()
    random.fill(module)
    module.train(case.norm != "running")
    copies = weights_for_oracle(module)
    features = random(case.batch, *case.student)
    query = None if case.own_query else random(case.batch, math.prod(case.queries), width)
    inputs = {"features": features} if query is None else {"features": features, "query": query}
    actual_inputs = {name: t.clone().requires_grad_() for name, t in inputs.items()}
    oracle_inputs = {name: t.clone().requires_grad_() for name, t in inputs.items()}

    actual = module(actual_inputs["features"], actual_inputs.get("query"))
    expected = oracle.projector(
        copies,
        oracle_inputs["features"],
        oracle_inputs.get("query"),
        case.heads,
        case.norm,
        case.sharpness,
    )

    close(actual, expected, max(1.0, expected.abs().max().item()), "tokens")
    direction = random(*expected.shape)
    parameters = dict(module.named_parameters())
    same_gradients(
        ((actual * direction).sum(), {**actual_inputs, **parameters}),
        (
            (expected * direction).sum(),
            {**oracle_inputs, **{name: copies[name] for name in parameters}},
        ),
    )


@dataclass(frozen=True)
class StepCase:
    seed: int
    batch: int
    s3: tuple[int, int, int]
    s4: tuple[int, int, int]
    t3_grid: tuple[int, int]
    t4_grid: tuple[int, int]
    heads: tuple[int, int]
    per_head: tuple[int, int]
    classes: int
    temperature: float
    norm: oracle.StemNorm
    term_weights: LossWeights


maps = st.tuples(channels, grids).map(lambda s: (s[0], *s[1]))
step_cases = st.builds(
    StepCase,
    seed=seeds,
    batch=st.integers(1, 3),
    s3=maps,
    s4=maps,
    t3_grid=grids,
    t4_grid=grids,
    heads=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    per_head=st.tuples(st.integers(3, 4), st.integers(3, 4)),
    classes=st.integers(2, 5),
    temperature=temperatures,
    norm=st.sampled_from(["batch", "running", "channel"]),
    term_weights=st.builds(
        LossWeights, weights, weights, weights, weights, weights.map(lambda a: a / 2)
    ),
)


@EXACT
@given(step_cases)
def test_one_step_of_the_loss_equals_its_formula(case: StepCase) -> None:
    random = Random(case.seed)
    c3, c4 = (h * d for h, d in zip(case.heads, case.per_head, strict=True))
    loss = ScaleKDLoss(
        student=FeatureShapes(case.s3, case.s4, case.classes),
        teacher=FeatureShapes((c3, *case.t3_grid), (c4, *case.t4_grid), case.classes),
        heads=case.heads,
        weights=case.term_weights,
        temperature=case.temperature,
        norm=NORMS[case.norm],
    ).double()
    random.fill(loss)
    loss.train(case.norm != "running")
    copies = weights_for_oracle(loss)
    mix_tokens = random(math.prod(case.t4_grid), math.prod(case.t3_grid))
    mix_channels = random(c3, c4)

    def tail(tokens: Tensor) -> Tensor:
        return torch.tanh(mix_tokens @ tokens @ mix_channels)

    projected: list[Tensor] = []
    for projector in loss.final.values():
        projector.register_forward_hook(lambda _module, _inputs, out: projected.append(out))

    student = {
        "s3": random(case.batch, *case.s3),
        "s4": random(case.batch, *case.s4),
        "logits": random(case.batch, case.classes),
    }
    actual_inputs = {name: t.clone().requires_grad_() for name, t in student.items()}
    oracle_inputs = {name: t.clone().requires_grad_() for name, t in student.items()}
    t3 = random(case.batch, c3, *case.t3_grid).requires_grad_()
    t4 = random(case.batch, c4, *case.t4_grid).requires_grad_()
    teacher_logits = random(case.batch, case.classes).requires_grad_()

    actual = loss(
        Features(actual_inputs["s3"], actual_inputs["s4"], actual_inputs["logits"]),
        Features(t3, t4, teacher_logits),
        tail,
    )
    expected = oracle.scalekd(
        copies,
        oracle.StepInputs(
            oracle_inputs["s3"],
            oracle_inputs["s4"],
            t4.detach(),
            oracle_inputs["logits"],
            teacher_logits.detach(),
            tail,
        ),
        case.heads,
        vars(case.term_weights),
        case.temperature,
        case.norm,
    )

    # Where ReLU leaves nothing of the queries all tokens are equal, and have no direction.
    assume(all(alternative_view(w).norm(dim=-1).min() > 1e-2 for w in projected))
    assert actual.keys() == expected.keys()
    for name, term in actual.items():
        close(term, expected[name], 1.0, name)
    if not actual:
        return
    parameters = dict(loss.named_parameters())
    total = sum(actual.values())
    by_teacher = torch.autograd.grad(
        total, [t3, t4, teacher_logits], retain_graph=True, allow_unused=True
    )
    assert by_teacher == (None, None, None)
    same_gradients(
        (total, {**actual_inputs, **parameters}),
        (
            sum(expected.values()),
            {**oracle_inputs, **{name: copies[name] for name in parameters}},
        ),
    )


@EXACT
@given(seeds, st.integers(1, 3), grids, channels)
def test_alternative_view_is_the_dct_without_coefficient_zero(
    seed: int, batch: int, grid: tuple[int, int], width: int
) -> None:
    tokens = Random(seed)(batch, math.prod(grid), width)
    expected = oracle.without_direct_component(tokens, grid)
    torch.testing.assert_close(alternative_view(tokens), expected, rtol=1e-12, atol=1e-12)


@EXACT
@given(seeds, st.integers(1, 3), grids, channels)
def test_the_alternative_view_is_idempotent_and_removes_constants(
    seed: int, batch: int, grid: tuple[int, int], width: int
) -> None:
    random = Random(seed)
    tokens, constant = random(batch, math.prod(grid), width), random(batch, 1, width)
    once = alternative_view(tokens)
    torch.testing.assert_close(alternative_view(once), once, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(alternative_view(tokens + constant), once, rtol=1e-12, atol=1e-12)


@EXACT
@given(seeds, st.integers(1, 3), st.integers(1, 16), channels)
def test_the_distance_equals_its_formula(seed: int, batch: int, length: int, width: int) -> None:
    random = Random(seed)
    s, t = random(batch, length, width), random(batch, length, width)
    actual_inputs, oracle_inputs = s.clone().requires_grad_(), s.clone().requires_grad_()
    actual, expected = distance(actual_inputs, t), oracle.distance(oracle_inputs, t)
    close(actual, expected, 1.0, "distance")
    same_gradients((actual, {"s": actual_inputs}), (expected, {"s": oracle_inputs}))


@EXACT
@given(seeds, st.integers(1, 3), st.integers(1, 16), channels)
def test_distance_lies_between_zero_for_identical_and_4l_for_opposite(
    seed: int, batch: int, length: int, width: int
) -> None:
    random = Random(seed)
    s, t = random(batch, length, width), random(batch, length, width)
    assert distance(s, s).item() == 0
    assert 0 <= distance(s, t).item() <= 4 * length + 1e-9
    torch.testing.assert_close(distance(s, -s).item(), 4.0 * length)


@EXACT
@given(seeds, st.integers(1, 3), st.integers(1, 16), channels)
def test_the_distance_does_not_depend_on_the_length_of_a_token(
    seed: int, batch: int, length: int, width: int
) -> None:
    random = Random(seed)
    s, t = random(batch, length, width) + 3, random(batch, length, width) + 3
    longer = random(batch, length, 1).abs() + 0.5
    torch.testing.assert_close(distance(s * longer, t), distance(s, t), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(distance(s, t * longer), distance(s, t), rtol=1e-12, atol=1e-12)


@EXACT
@given(seeds, st.integers(1, 5), st.integers(2, 7), temperatures)
def test_logit_distillation_equals_its_formula(
    seed: int, batch: int, classes: int, temperature: float
) -> None:
    random = Random(seed)
    s, t = 3 * random(batch, classes), 3 * random(batch, classes)
    actual_inputs, oracle_inputs = s.clone().requires_grad_(), s.clone().requires_grad_()
    actual = logit_distillation(actual_inputs, t, temperature)
    expected = oracle.logit_distillation(oracle_inputs, t, temperature)
    close(actual, expected, 1.0, "kd")
    same_gradients((actual, {"s": actual_inputs}), (expected, {"s": oracle_inputs}))


@EXACT
@given(seeds, st.integers(1, 5), st.integers(2, 7), temperatures, st.floats(0.01, 1.0))
def test_gradient_of_weighted_kd_is_a_t_over_n_times_the_difference_of_softmaxes(
    seed: int, batch: int, classes: int, temperature: float, a: float
) -> None:
    random = Random(seed)
    s, t = (3 * random(batch, classes)).requires_grad_(), 3 * random(batch, classes)
    (a * logit_distillation(s, t, temperature)).backward()
    difference = torch.softmax(s.detach() / temperature, 1) - torch.softmax(t / temperature, 1)
    expected = a / batch * temperature * difference
    torch.testing.assert_close(s.grad, expected, rtol=1e-12, atol=1e-14)
