"""Features of a pair for the tests of the baselines, and how their terms and gradients compare."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from scalekd.features import Features, FeatureShapes

STUDENT = FeatureShapes((6, 4, 4), (8, 4, 2), 5, stages=((3, 8, 8), (5, 4, 4), (8, 2, 2)))
TEACHER = FeatureShapes((7, 4, 6), (10, 2, 3), 5)
TAIL = nn.Identity()


def features(
    shapes: FeatureShapes, *, seed: int, images: int = 6, dtype: torch.dtype = torch.float64
) -> Features:
    """Features with these shapes, each a leaf that takes gradients."""
    generator = torch.Generator().manual_seed(seed)

    def leaf(*shape: int) -> Tensor:
        values = torch.randn(images, *shape, generator=generator, dtype=torch.float64)
        return values.to(dtype).requires_grad_()

    penultimate = None if shapes.penultimate is None else leaf(*shapes.penultimate)
    final, stages = leaf(*shapes.final), tuple(leaf(*shape) for shape in shapes.stages)
    logits = None if shapes.classes is None else leaf(shapes.classes)
    return Features(penultimate, final, logits, stages)


def leaves(of: Features) -> dict[str, Tensor]:
    """The tensors of features by their names."""
    named = {"penultimate": of.penultimate, "final": of.final, "logits": of.logits}
    named |= {f"stage_{number + 1}": stage for number, stage in enumerate(of.stages)}
    return {name: tensor for name, tensor in named.items() if tensor is not None}


def copies_of_parameters(loss: nn.Module) -> dict[str, Tensor]:
    """The parameters by name, as leaves of their own for the oracle."""
    return {n: p.detach().clone().requires_grad_() for n, p in loss.named_parameters()}


def fill(loss: nn.Module, seed: int = 0) -> None:
    """Set every parameter far from its initial value, so that no gain is 1 and no shift 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in loss.parameters():
            values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(0.5 * values)


def assert_close(actual: Tensor, expected: Tensor, name: str) -> None:
    """Equal but for rounding in float64; `name` is put before the difference."""
    torch.testing.assert_close(
        actual, expected, rtol=1e-9, atol=1e-10, msg=lambda found: f"{name}: {found}"
    )


def assert_same_terms(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Equal names and values."""
    assert list(actual) == list(expected)
    for name, term in actual.items():
        assert term.shape == ()
        assert_close(term, expected[name], name)


def assert_same_gradients(
    actual: tuple[Mapping[str, Tensor], Mapping[str, Tensor]],
    expected: tuple[Mapping[str, Tensor], Mapping[str, Tensor]],
) -> None:
    """Equal gradients of the sums of terms by leaves, each side given as (terms, leaves)."""
    by_name = []
    for terms, by in (actual, expected):
        total = torch.stack(list(terms.values())).sum()
        gradients = torch.autograd.grad(total, list(by.values()), allow_unused=True)
        by_name.append(dict(zip(by, gradients, strict=True)))
    assert by_name[0].keys() == by_name[1].keys()
    assert any(gradient is not None and gradient.any() for gradient in by_name[1].values())
    for name, gradient in by_name[0].items():
        other = by_name[1][name]
        if gradient is None or other is None:
            assert gradient is other, name
            continue
        assert_close(gradient, other, name)


def assert_no_gradient_reaches(teacher: Features, terms: Mapping[str, Tensor]) -> None:
    """The sum of terms depends on none of the teacher's tensors."""
    total = torch.stack(list(terms.values())).sum()
    tensors = list(leaves(teacher).values())
    gradients = torch.autograd.grad(total, tensors, allow_unused=True, retain_graph=True)
    assert gradients == (None,) * len(tensors)


def half_precision_terms(
    loss: nn.Module, targets: Tensor | None = None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The terms of bfloat16 features under autocast, and those of the same values in float32.

    Both are in training mode; buffers that a step changes are restored between the two.
    """
    student = features(STUDENT, seed=1, images=8, dtype=torch.bfloat16)
    teacher = features(TEACHER, seed=2, images=8, dtype=torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in loss.state_dict().items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = loss(student, teacher, TAIL, targets)
    torch.stack(list(half.values())).sum().backward()
    for tensor in leaves(student).values():
        assert tensor.grad is None or tensor.grad.isfinite().all()
    loss.load_state_dict(before)
    full = loss(in_float32(student), in_float32(teacher), TAIL, targets)
    assert all(term.dtype == torch.float32 for term in half.values())
    return half, full


def in_float32(of: Features) -> Features:
    """The same values in float32."""
    penultimate = None if of.penultimate is None else of.penultimate.float()
    logits = None if of.logits is None else of.logits.float()
    stages = tuple(stage.float() for stage in of.stages)
    return Features(penultimate, of.final.float(), logits, stages)
