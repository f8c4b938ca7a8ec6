"""Linear CKA against what is known of it, and against HSIC written out literally."""

import pytest
import torch
from helpers.refusals import refused
from torch import Tensor

from scalekd.analysis.similarity import LinearCKA, to_plain, u_centred_gram


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cka(*batches: tuple[Tensor, Tensor]) -> float:
    measured = LinearCKA()
    for first, second in batches:
        measured.update([first], [second])
    return float(measured.compute())


def literal_hsic(x: Tensor, y: Tensor) -> float:
    """The unbiased estimate of Song et al., by its formula."""
    n = len(x)
    k, l = (f.flatten(1).double() @ f.flatten(1).double().T for f in (x, y))  # noqa: E741
    k, l = k - torch.diag(k.diag()), l - torch.diag(l.diag())  # noqa: E741
    ones = torch.ones(n, dtype=torch.float64)
    total = (k @ l).trace()
    total = total + (ones @ k @ ones) * (ones @ l @ ones) / ((n - 1) * (n - 2))
    return float((total - 2 * (ones @ k @ l @ ones) / (n - 2)) / (n * (n - 3)))


def test_equal_features_have_a_similarity_of_one() -> None:
    x = noise(0, 12, 4, 3, 3)
    assert cka((x, x)) == pytest.approx(1)


def test_rotation_scale_and_shift_change_nothing() -> None:
    x, y = noise(0, 16, 10), noise(1, 16, 10) + noise(0, 16, 10)
    rotation, _ = torch.linalg.qr(noise(2, 10, 10))
    assert cka((x, y)) == pytest.approx(cka((x, -3 * y @ rotation + noise(3, 10))), rel=1e-5)
    assert cka((x, x @ rotation)) == pytest.approx(1, rel=1e-5)
    stretched = torch.diag(torch.arange(1.0, 11))
    assert cka((x, x @ stretched)) < 0.99


def test_the_ratio_is_that_of_the_literal_estimates() -> None:
    batches = [(noise(s, n, 6), noise(s, n, 6) + noise(s + 9, n, 6)) for s, n in ((0, 8), (1, 5))]
    xy, xx, yy = (
        sum(literal_hsic(pair[i], pair[j]) for pair in batches) for i, j in ((0, 1), (0, 0), (1, 1))
    )
    assert cka(*batches) == pytest.approx(xy / (xx * yy) ** 0.5)


def test_every_layer_is_compared_with_every_other() -> None:
    layers = [noise(seed, 9, 5) for seed in range(5)]
    measured = LinearCKA()
    measured.update(layers[:2], layers[2:])
    matrix = measured.compute()
    assert matrix.shape == (2, 3)
    assert float(matrix[1, 2]) == pytest.approx(cka((layers[1], layers[4])))
    assert (measured.images, measured.largest_batch) == (9, 9)


def test_unrelated_features_are_near_zero_on_average() -> None:
    batches = [(noise(2 * s, 16, 40), noise(2 * s + 1, 16, 40)) for s in range(40)]
    assert abs(cka(*batches)) < 0.05


def test_rows_of_the_centred_matrix_sum_to_zero() -> None:
    centred = u_centred_gram(noise(0, 7, 3) + 100)
    torch.testing.assert_close(centred.sum(1), torch.zeros(7).double(), rtol=0, atol=1e-9)
    assert (centred.diag() == 0).all()


def test_a_constant_layer_has_no_similarity() -> None:
    measured = LinearCKA()
    measured.update([torch.ones(6, 3) * 0.1, noise(0, 6, 3)], [noise(1, 6, 3)])
    (constant,), (other,) = to_plain(measured.compute())
    assert constant is None
    assert isinstance(other, float)


def test_batches_that_are_too_small_are_left_out() -> None:
    x, y = noise(0, 8, 6), noise(1, 8, 6)
    assert cka((x, y), (x[:3], y[:3])) == cka((x, y))
    with refused("4 images"):
        cka((x[:3], y[:3]))
