from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from scalekd.method import alternative_view, distance, original_view

DTYPES = [torch.float32, torch.float64]


def test_the_original_view_is_the_tokens_unchanged() -> None:
    tokens = torch.randn(2, 3, 4)
    assert original_view(tokens) is tokens


def test_distance_sums_over_tokens_and_averages_over_images() -> None:
    # Orthogonal unit tokens are 2 apart, squared.
    s = torch.tensor([1.0, 0.0]).expand(3, 5, 2)
    t = torch.tensor([0.0, 1.0]).expand(3, 5, 2)
    assert distance(s, t).item() == 10
    assert distance(s[:1], t[:1]).item() == 10
    assert distance(s[:, :2], t[:, :2]).item() == 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_distance_of_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    s, t = torch.randn(2, 3, 49, 16).to(dtype)
    actual = distance(s, t)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, distance(s.float(), t.float()), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("view", [original_view, alternative_view])
@pytest.mark.parametrize("value", [0.0, 3.0, 0.1])
def test_constant_tokens_give_finite_distances_and_gradients(
    value: float, view: Callable[[Tensor], Tensor], dtype: torch.dtype
) -> None:
    s = torch.full((2, 9, 4), value, dtype=dtype, requires_grad=True)
    t = torch.full((2, 9, 4), value, dtype=dtype)
    term = distance(view(s), view(t))
    term.backward()
    assert term.item() == pytest.approx(0, abs=1e-5)
    assert s.grad.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_tokens_of_rounding_noise_do_not_dominate_the_distance(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    noise = (1e-9 * torch.randn(2, 9, 4, dtype=dtype)).requires_grad_()
    teacher = torch.randn(2, 9, 4, dtype=dtype)
    term = distance(noise, teacher)
    term.backward()
    # The teacher's unit length remains, and a gradient of 2 / (N * bound), not 2 / (N * 1e-9).
    assert term.item() == pytest.approx(9, rel=1e-3)
    assert noise.grad.norm(dim=-1).max() <= 1.001 / 1e-4


def test_distance_is_symmetric_in_teacher_and_student() -> None:
    torch.manual_seed(0)
    s, t = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    assert distance(s, t).item() == pytest.approx(distance(t, s).item(), rel=1e-14)
