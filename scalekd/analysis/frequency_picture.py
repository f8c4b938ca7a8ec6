"""Draw the frequency distribution of a feature: Figures 2 and 5 of the paper, of any teacher."""

from typing import Any

import numpy as np

from scalekd.analysis.frequencies import order_by_frequency
from scalekd.analysis.results import Frequencies
from scalekd.drawing import short_name, to_png

MOST = 64
"""Of more channels or frequencies, the means of neighbours are drawn."""


def draw_frequencies(result: Frequencies) -> bytes:
    """Draw the mean absolute coefficients by channel and frequency, in both views.

    Returns:
        The picture, in PNG.
    """
    from matplotlib.figure import Figure

    everything = np.array(result.mean_absolute)
    without_direct = everything.copy()
    without_direct[:, 0, 0] = 0
    figure = Figure(figsize=(12, 5.6))
    height, width = result.grid
    name = short_name(result.model)
    figure.suptitle(
        f"Final feature of {name}: {result.channels} channels of {height}x{width}, "
        f"{result.images} images"
    )
    titles = (
        f"original view: the direct component has\n{result.direct_energy:.1%} of the energy, "
        f"{result.direct_amplitude:.1%} of the sum of amplitudes",
        "alternative view: without the direct component\n(another scale)",
    )
    for number, (values, title) in enumerate(
        zip((everything, without_direct), titles, strict=True), 1
    ):
        axes = figure.add_subplot(1, 2, number, projection="3d")
        _draw(axes, values, title)
    figure.subplots_adjust(left=0.02, right=0.94, wspace=0.12, top=0.86, bottom=0.04)
    return to_png(figure)


def _draw(axes: Any, values: np.ndarray, title: str) -> None:
    ordered, frequencies = order_by_frequency(values)
    channels = _group(np.arange(len(ordered))[:, None].astype(float))[:, 0]
    heights = _group(_group(ordered).T).T
    frequencies = _group(frequencies[:, None])[:, 0]
    places = np.arange(len(frequencies))
    across, along = np.meshgrid(places, channels)
    axes.plot_surface(
        across, along, heights, cmap="viridis", rstride=1, cstride=1, linewidth=0, antialiased=True
    )
    ticks = np.unique(np.linspace(0, len(places) - 1, min(6, len(places))).round().astype(int))
    axes.set_xticks(ticks, [f"{frequencies[tick]:.2f}" for tick in ticks])
    axes.set_xlabel("frequency (cycles per position)", labelpad=8)
    axes.set_ylabel("channel", labelpad=8)
    axes.set_zlabel("mean absolute coefficient", labelpad=8)
    axes.set_title(title, size=10)
    axes.view_init(elev=28, azim=-52)


def _group(values: np.ndarray) -> np.ndarray:
    """Means of neighbouring rows, so that at most `MOST` are left."""
    if len(values) <= MOST:
        return values
    return np.stack([part.mean(0) for part in np.array_split(values, MOST)])
