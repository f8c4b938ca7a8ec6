import pytest
import torch
from helpers.refusals import refused
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from scalekd.cache.encoding import CachePrecision, decode, encode, encoding_errors
from scalekd.networks import CachedOutputs

PRECISIONS: list[CachePrecision] = ["float32", "float16", "bfloat16", "int8"]
LARGEST_ERROR = {"float32": 0.0, "float16": 2**-11, "bfloat16": 2**-8}
"""Relative error of a value: half a step of the last bit that is stored."""


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def outputs(images: int = 3, classes: int = 7) -> CachedOutputs:
    return CachedOutputs(noise(images, 6, 4, 5), noise(images, classes), [noise(images, 1, 8)])


@pytest.mark.parametrize("precision", LARGEST_ERROR)
@given(seed=st.integers(0, 99), size=st.floats(0.1, 100))
def test_a_stored_value_is_off_by_half_a_bit_at_most(
    precision: CachePrecision, seed: int, size: float
) -> None:
    exact = CachedOutputs(size * noise(2, 3, 4, 5, seed=seed), noise(2, 7), [size * noise(2, 1, 8)])
    stored = decode(encode(exact, precision))
    assert torch.equal(stored.logits, exact.logits)
    for a, b in ((stored.final, exact.final), (stored.tail_inputs[0], exact.tail_inputs[0])):
        assert ((a.float() - b).abs() <= LARGEST_ERROR[precision] * b.abs() + 1e-6).all()


@given(seed=st.integers(0, 99), channel=st.integers(0, 5))
def test_int8_is_off_by_half_a_step_of_the_channels_own_largest_value(
    seed: int, channel: int
) -> None:
    final = noise(2, 6, 4, 5, seed=seed)
    final[:, channel] *= 1000  # which costs the others nothing
    stored = decode(encode(CachedOutputs(final, noise(2, 7), []), "int8")).final
    step = final.abs().amax((2, 3), keepdim=True) / 127
    assert ((stored - final).abs() <= 0.5001 * step).all()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_stored_features_take_as_many_bytes_as_their_precision_says(
    precision: CachePrecision,
) -> None:
    rows = encode(outputs(), precision)
    assert rows["final"].element_size() == {"float32": 4, "int8": 1}.get(precision, 2)
    assert {len(tensor) for tensor in rows.values()} == {3}


def test_zeros_stay_zeros_in_int8() -> None:
    stored = decode(encode(CachedOutputs(torch.zeros(2, 3, 4, 4), noise(2, 7), []), "int8"))
    assert not stored.final.any()


def test_logits_are_empty_for_a_teacher_without_classifier() -> None:
    stored = decode(encode(outputs(classes=0), "float16"))
    assert stored.logits.shape == (3, 0)


def test_encoding_errors_are_relative_and_separate_for_the_alternative_view() -> None:
    exact = torch.stack([torch.full((4, 4), 10.0), torch.full((4, 4), 10.0)])[None]
    exact[0, 0, 0, 0] = 11.0
    wrong = exact.clone()
    wrong[0, 0, 0, 0] = 12.0
    plain, varying = encoding_errors(exact, wrong)
    assert plain == pytest.approx(1 / exact.norm().item())
    # Of one that stands out by 1 and one that stands out by 2: twice the view, so 1 of it is lost.
    assert varying == pytest.approx(1.0)
    assert encoding_errors(exact, exact) == (0.0, 0.0)


def test_features_too_large_for_float16_are_refused_with_a_precision_that_holds_them() -> None:
    large = CachedOutputs(70_000 * torch.ones(2, 3, 4, 4), noise(2, 7), [])
    with refused("reach 7e+04, too much for float16", "bfloat16 or float32"):
        encode(large, "float16")
    assert decode(encode(large, "bfloat16")).final.isfinite().all()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_non_finite_features_are_refused(precision: CachePrecision) -> None:
    damaged = outputs()
    damaged.final[0, 0, 0, 0] = float("nan")
    with refused("non-finite (NaN or Inf) on these images"):
        encode(damaged, precision)
