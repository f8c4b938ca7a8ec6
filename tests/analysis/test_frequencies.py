"""The frequency distribution of features whose coefficients are known."""

import numpy as np
import pytest
import torch
from helpers.refusals import refused

from scalekd.analysis.frequencies import dct_maps, measure_frequencies, order_by_frequency
from scalekd.method import alternative_view
from scalekd.networks.layout import map_from_tokens, tokens_from_map


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_a_constant_map_has_only_its_direct_component() -> None:
    result = measure_frequencies("a teacher", [torch.full((2, 3, 4, 6), -2.5)])
    assert (result.images, result.channels, result.grid) == (2, 3, (4, 6))
    assert result.direct_energy == pytest.approx(1)
    assert result.direct_amplitude == pytest.approx(1)
    absolute = np.array(result.mean_absolute)
    np.testing.assert_allclose(absolute[:, 0, 0], 2.5 * np.sqrt(24))
    absolute[:, 0, 0] = 0
    np.testing.assert_allclose(absolute, 0, atol=1e-12)


def test_a_wave_has_the_coefficient_of_its_frequencies() -> None:
    rows, columns = (torch.arange(n).double() + 0.5 for n in (4, 6))
    wave = torch.cos(np.pi * 2 * rows / 4)[:, None] * torch.cos(np.pi * 3 * columns / 6)
    coefficients = dct_maps(wave[None, None])[0, 0]
    assert coefficients[2, 3] == pytest.approx(np.sqrt(4 * 6) / 2)
    coefficients[2, 3] = 0
    np.testing.assert_allclose(coefficients, 0, atol=1e-12)


def test_the_squares_keep_their_sum() -> None:
    maps = noise(3, 2, 5, 4)
    assert np.square(dct_maps(maps)).sum() == pytest.approx(float(maps.square().sum()), rel=1e-6)


def test_the_alternative_view_of_the_loss_only_lacks_the_direct_component() -> None:
    maps = noise(3, 2, 5, 4)
    view = map_from_tokens(alternative_view(tokens_from_map(maps)), (2, 5, 4))
    expected = dct_maps(maps)
    expected[:, :, 0, 0] = 0
    np.testing.assert_allclose(dct_maps(view), expected, atol=1e-6)


def test_batches_are_added_up_and_shares_are_those_of_the_sums() -> None:
    maps = noise(7, 3, 4, 4) + 0.5
    result = measure_frequencies("a teacher", maps.split([4, 3]))
    coefficients = dct_maps(maps)
    np.testing.assert_allclose(result.mean_absolute, np.abs(coefficients).mean(0))
    direct, everything = np.square(coefficients[:, :, 0, 0]).sum(), np.square(coefficients).sum()
    assert result.direct_energy == pytest.approx(direct / everything)
    absolute = np.abs(coefficients)
    assert result.direct_amplitude == pytest.approx(absolute[:, :, 0, 0].sum() / absolute.sum())


def test_coefficients_are_ordered_by_frequency() -> None:
    values = np.arange(8.0).reshape(1, 2, 4)
    ordered, frequencies = order_by_frequency(values)
    np.testing.assert_allclose(frequencies[:3], [0, 0.125, 0.25])
    assert ordered[0, :2].tolist() == [0, 1]
    assert set(ordered[0, 2:4]) == {2, 4}  # both have a frequency of a quarter
    assert (np.diff(frequencies) >= 0).all()


def test_a_feature_of_zeros_is_refused() -> None:
    with refused("a teacher", "zero"):
        measure_frequencies("a teacher", [torch.zeros(2, 3, 4, 4)])
    with refused("not one of the images can be read"):
        measure_frequencies("a teacher", [])
