"""Draw where a projector's queries look in the images."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from scalekd.analysis.results import ProjectorAttention, QueryMap
from scalekd.drawing import to_png

STAGES = {"tpp": "penultimate", "final": "final"}


def draw_attention(results: Sequence[ProjectorAttention], pictures: Sequence[np.ndarray]) -> bytes:
    """Draw attention maps over images: rows are projectors and images, columns queries.

    Args:
        results: of each projector.
        pictures: the images in the maps' order, (H, W, channels) with values from 0 to 1.

    Returns:
        The picture, in PNG.
    """
    from matplotlib.figure import Figure

    columns = 1 + len(results[0].maps[0])
    rows = len(results) * len(pictures)
    figure = Figure(figsize=(1.75 * columns + 0.8, 1.85 * rows + 0.8), layout="constrained")
    cells: Any = figure.subplots(rows, columns, squeeze=False)
    cells[0][0].set_title("image", size=8, pad=2)
    for number, result in enumerate(results):
        for place, picture in enumerate(pictures):
            row = cells[number * len(pictures) + place]
            _show_picture(row[0], picture)
            label = f"{STAGES[result.stage]} projector,\n{result.view} view"
            row[0].set_ylabel(label, size=9)
            for axes, shown in zip(row[1:], result.maps[place], strict=False):
                _show_map(axes, result, picture, shown)
            for axes in row[1 + len(result.maps[place]) :]:
                axes.set_visible(False)
    figure.suptitle(
        "Where a projector's queries look (mean over heads; + is the query's place;\n"
        "the number is the largest weight as a multiple of equal weights)",
        size=10,
    )
    return to_png(figure)


def _show_picture(axes: Any, picture: np.ndarray) -> None:
    axes.imshow(picture.squeeze(), cmap="gray", vmin=0, vmax=1, extent=(0, 1, 1, 0))
    axes.set_xticks([])
    axes.set_yticks([])


def _show_map(axes: Any, result: ProjectorAttention, picture: np.ndarray, shown: QueryMap) -> None:
    _show_picture(axes, picture.mean(2))
    weights = np.array(shown.weights)
    axes.imshow(
        weights, cmap="inferno", vmin=0, alpha=0.65, extent=(0, 1, 1, 0), interpolation="nearest"
    )
    row, column = shown.query
    x, y = (column + 0.5) / result.query_grid[1], (row + 0.5) / result.query_grid[0]
    axes.plot(x, y, "+", color="cyan", markersize=10, markeredgewidth=2)
    axes.set_title(f"{weights.max() * weights.size:.1f}x", size=8, pad=2)
