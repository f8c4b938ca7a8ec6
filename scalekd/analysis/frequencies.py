"""The frequency distribution of a feature, as Figures 2 and 5 of the paper show it.

Each channel's map is transformed by an orthonormal two-dimensional DCT-II. The coefficient (0, 0)
is the direct component, sqrt(H W) times the map's mean; the alternative view has all others.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from torch import Tensor

from scalekd.analysis.results import Frequencies
from scalekd.errors import InputError


def dct_maps(maps: Tensor) -> np.ndarray:
    """The orthonormal two-dimensional DCT-II of maps (N, C, H, W), in float64 on the CPU.

    Returns:
        Coefficients (N, C, H, W) by vertical and horizontal frequency; their squares have the same
        sum as the maps' values.
    """
    from scipy.fft import dctn  # type: ignore[import-untyped]

    coefficients: np.ndarray = dctn(maps.double().cpu().numpy(), axes=(2, 3), norm="ortho")
    return coefficients


def measure_frequencies(model: str, features: Iterable[Tensor]) -> Frequencies:
    """Measure how a feature's channels spread over frequencies.

    Args:
        model: whose feature it is.
        features: maps (N, C, H, W) of each batch.

    Raises:
        InputError: there is no image, or the feature is zero everywhere.
    """
    images, energy, direct = 0, 0.0, 0.0
    absolute: Any = 0.0
    for maps in features:
        coefficients = dct_maps(maps)
        images += len(maps)
        absolute += np.abs(coefficients).sum(0)
        energy += float(np.square(coefficients).sum())
        direct += float(np.square(coefficients[:, :, 0, 0]).sum())
    if not images:
        raise InputError("not one of the images can be read")
    if not energy:
        raise InputError(f"the final feature of {model} is zero for all {images} images")
    absolute /= images
    channels, height, width = absolute.shape
    return Frequencies(
        model=model,
        images=images,
        channels=channels,
        grid=(height, width),
        direct_energy=direct / energy,
        direct_amplitude=float(absolute[:, 0, 0].sum() / absolute.sum()),
        mean_absolute=absolute.tolist(),
    )


def order_by_frequency(mean_absolute: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flatten coefficients (C, H, W) from the lowest to the highest frequency.

    A coefficient (u, v) has u half-waves over the height H and v over the width W; its frequency is
    sqrt((u / H)^2 + (v / W)^2) / 2 cycles a position.

    Returns:
        The coefficients (C, H W), and their frequencies (H W,).
    """
    channels, height, width = mean_absolute.shape
    vertical, horizontal = np.arange(height) / height, np.arange(width) / width
    frequencies = np.hypot(vertical[:, None], horizontal[None]).ravel() / 2
    order = np.argsort(frequencies, kind="stable")
    return mean_absolute.reshape(channels, -1)[:, order], frequencies[order]
