"""Draw the distances of alternative components, as Figure 6 of the paper does."""

from typing import Any

import numpy as np

from scalekd.analysis.results import AlternativeViews, Distances
from scalekd.drawing import short_name, to_png

MARKERS = "o^sDvP"

VIEW_COLOURS = {"original": "#d98c21", "alternative": "#2166ac"}


def draw_distances(result: AlternativeViews) -> bytes:
    """Draw the differences in two dimensions, and the distances as they are.

    Returns:
        The picture, in PNG.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5.6), layout="constrained")
    plane, spread = figure.subplots(1, 2)
    runs = list(dict.fromkeys(entry.run for entry in result.distances))
    colours = _colours(result.distances, len(runs))
    for entry, colour in zip(result.distances, colours, strict=True):
        label = _describe(entry, with_run=len(runs) > 1)
        x, y = np.array(entry.projected).T
        marker = MARKERS[runs.index(entry.run) % len(MARKERS)]
        plane.scatter(x, y, s=16, marker=marker, color=colour, alpha=0.6, label=label, linewidth=0)
    plane.plot(0, 0, "+", color="black", markersize=14, markeredgewidth=2, label="the teacher")
    plane.axis("equal")
    plane.set(
        xlabel="first main direction",
        ylabel="second main direction",
        title="Difference of student and teacher, an image a point\n(two dimensions keep "
        f"{result.projected_share:.1%} of the squared lengths)",
    )
    _draw_spread(spread, result.distances, colours, len(runs) > 1)
    plane.grid(alpha=0.3)
    figure.legend(
        *plane.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=9
    )
    figure.suptitle("Alternative components (without the spatial mean) of projected features")
    return to_png(figure)


def _draw_spread(
    axes: Any, distances: list[Distances], colours: list[Any], several_runs: bool
) -> None:
    highest = max(max(entry.per_image) for entry in distances)
    bins = np.linspace(0, max(highest, 1e-6), 41)
    for entry, colour in zip(distances, colours, strict=True):
        axes.hist(entry.per_image, bins=bins, color=colour, alpha=0.45)
        axes.axvline(entry.median, color=colour, linewidth=2)
        axes.annotate(
            f"{entry.median:.3f}",
            (entry.median, 1),
            xycoords=("data", "axes fraction"),
            xytext=(2, -2),
            textcoords="offset points",
            rotation=90,
            va="top",
            color=colour,
            size=9,
        )
    axes.set(
        xlabel="squared distance of unit-length tokens, mean over tokens (0 to 4)",
        ylabel="images",
        title="Distances in all dimensions\n(lines: medians)",
    )
    axes.grid(alpha=0.3)


def _colours(distances: list[Distances], runs: int) -> list[Any]:
    if runs == 1:
        return [VIEW_COLOURS[entry.view] for entry in distances]
    return [f"C{number}" for number in range(len(distances))]


def _describe(entry: Distances, with_run: bool) -> str:
    stage = "" if entry.stage == "final" else "after the tail, "
    projector = f"{stage}projector of the {entry.view} view"
    run = f"{short_name(entry.run, 30)}, " if with_run else ""
    return f"{run}{projector} (median {entry.median:.3f})"
