"""Learning curves: of one run folder by method, or of several run folders."""

import io
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib

from scalekd.recipe import Method
from scalekd.runs.result import METHOD_NAMES

COLOURS: dict[Method, str] = {
    "supervised": "#8a8a8a",
    "logit_kd": "#d98c21",
    "fd": "#4d9221",
    "dist": "#c51b7d",
    "ofa": "#762a83",
    "rsd": "#35978f",
    "relations": "#8c510a",
    "vkd": "#b2182b",
    "scalekd": "#2166ac",
}

Point = tuple[float, float, float]
"""Step, seconds of training, and the value that is drawn over both: an accuracy in % or a loss."""


@dataclass(frozen=True)
class Curves:
    """Curves of one colour and name.

    Attributes:
        name: in the legend.
        colour: as matplotlib takes it.
        lines: the points of each seed.
        teacher: name and accuracy (a share) of the teacher, where these are drawn.
    """

    name: str
    colour: Any
    lines: list[list[Point]]
    teacher: tuple[str, float] | None = None


def has_accuracy(entries: Sequence[dict[str, Any]]) -> bool:
    """Whether these lines of metrics.jsonl have accuracies."""
    return any(entry["top1"] is not None for entry in entries)


def lines_by_run(
    entries: Sequence[dict[str, Any]], method: Method, accuracies: bool
) -> list[list[Point]]:
    """The points of one method from lines of metrics.jsonl, for each seed in ascending order.

    Args:
        entries: lines of metrics.jsonl.
        method: whose.
        accuracies: give accuracies in %; else losses, averaged over neighbouring steps.
    """
    by_seed: dict[int, list[Point]] = {}
    for entry in entries:
        value = entry["top1"] if accuracies else entry["loss"]
        if entry["method"] == method and value is not None:
            point = entry["step"], entry["seconds"], value * (100 if accuracies else 1)
            by_seed.setdefault(entry["seed"], []).append(point)
    lines = [points for _, points in sorted(by_seed.items())]
    return lines if accuracies else [average_neighbours(points) for points in lines]


def average_neighbours(points: list[Point], limit: int = 100) -> list[Point]:
    """At most `limit` points, each the mean of neighbours: the loss of a single step is noise."""
    size = math.ceil(len(points) / limit)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [
        (statistics.fmean(s), statistics.fmean(t), statistics.fmean(y))
        for s, t, y in (zip(*group, strict=True) for group in groups)
    ]


def draw_curves(entries: Sequence[dict[str, Any]], teacher_top1: float | None) -> bytes:
    """Draw the metrics of one run folder by method: accuracies, or losses without labels.

    Args:
        entries: the lines of its metrics.jsonl.
        teacher_top1: the teacher's accuracy (a share); None where it was not measured.

    Returns:
        The picture, in PNG.
    """
    accuracies = has_accuracy(entries)
    teacher = None if teacher_top1 is None else ("teacher", teacher_top1)
    curves = [
        Curves(name, COLOURS[method], lines, teacher)
        for method, name in METHOD_NAMES.items()
        if (lines := lines_by_run(entries, method, accuracies))
    ]
    return draw(curves, accuracies, "png")


def draw(curves: Sequence[Curves], accuracies: bool, picture_format: str) -> bytes:
    """Draw curves over steps and over training time, side by side.

    Args:
        curves: what to draw.
        accuracies: whether the values are accuracies in %; else they are losses.
        picture_format: png, or another format of matplotlib's.

    Returns:
        The picture.
    """
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (by_step, by_time) = plt.subplots(
        1, 2, figsize=(10, 4.2), sharey=True, layout="constrained"
    )
    for group in curves:
        for index, points in enumerate(group.lines):
            steps, seconds, values = zip(*points, strict=True)
            name = group.name if index == 0 else None
            for axes, x in ((by_step, steps), (by_time, seconds)):
                axes.plot(x, values, color=group.colour, label=name, marker=".", alpha=0.8)
    teachers = {group.teacher: group.colour for group in curves if group.teacher}
    for axes in (by_step, by_time):
        for (teacher, top1), colour in teachers.items():
            colour = "black" if len(teachers) == 1 else colour
            axes.axhline(100 * top1, color=colour, linestyle=":", label=teacher)
        axes.grid(alpha=0.3)
    what = "top-1 on the validation images (%)" if accuracies else "loss on the training images"
    by_step.set(xlabel="step", ylabel=what)
    by_time.set(xlabel="seconds of training")
    by_step.legend(loc="best")
    picture = io.BytesIO()
    figure.savefig(picture, format=picture_format, dpi=150)
    plt.close(figure)
    return picture.getvalue()
