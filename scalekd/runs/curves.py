"""Learning curves: of one run folder by method, of several by folder."""

import io
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

from scalekd.runs.atomic_io import write_atomically
from scalekd.runs.result import METHOD_NAMES, Method

COLOURS: dict[Method, str] = {"supervised": "#8a8a8a", "logit_kd": "#d98c21", "scalekd": "#2166ac"}

Point = tuple[float, float, float]
"""StepOutput, seconds, and what is drawn over them."""


@dataclass(frozen=True)
class Curves:
    """What shares a colour and a name: a line for each seed.

    teacher: the name and the accuracy (a share) of whom they learn from, where that is to be drawn.
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
    """One method's lines, by seed, out of metrics.jsonl's: accuracies in %, or losses, thinned."""
    by_seed: dict[int, list[Point]] = {}
    for entry in entries:
        height = entry["top1"] if accuracies else entry["loss"]
        if entry["method"] == method and height is not None:
            point = entry["step"], entry["seconds"], height * (100 if accuracies else 1)
            by_seed.setdefault(entry["seed"], []).append(point)
    lines = [points for _, points in sorted(by_seed.items())]
    return lines if accuracies else [thinned(points) for points in lines]


def thinned(points: list[Point], most: int = 100) -> list[Point]:
    """At most so many points, each the mean of neighbours, for losses of single steps."""
    size = math.ceil(len(points) / most)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [
        (statistics.fmean(s), statistics.fmean(t), statistics.fmean(y))
        for s, t, y in (zip(*group, strict=True) for group in groups)
    ]


def draw_curves(entries: Sequence[dict[str, Any]], teacher_top1: float | None, file: Path) -> None:
    """Draw a run folder's metrics by method.

    Args:
        entries: the lines of its metrics.jsonl.
        teacher_top1: a share, where it is known.
        file: a picture to write.
    """
    accuracies = has_accuracy(entries)
    teacher = None if teacher_top1 is None else ("teacher", teacher_top1)
    curves = [
        Curves(label, COLOURS[method], lines, teacher)
        for method, label in METHOD_NAMES.items()
        if (lines := lines_by_run(entries, method, accuracies))
    ]
    draw(curves, accuracies, file)


def draw(curves: Sequence[Curves], accuracies: bool, file: Path) -> None:
    """Lines over steps and over time.

    Args:
        curves: what to draw.
        accuracies: whether their heights are accuracies in %, or losses.
        file: a picture to write, of a format that its name says.
    """
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (by_step, by_time) = plt.subplots(
        1, 2, figsize=(10, 4.2), sharey=True, layout="constrained"
    )
    for each in curves:
        for index, points in enumerate(each.lines):
            steps, seconds, heights = zip(*points, strict=True)
            name = each.name if index == 0 else None
            for axes, x in ((by_step, steps), (by_time, seconds)):
                axes.plot(x, heights, color=each.colour, label=name, marker=".", alpha=0.8)
    teachers = {each.teacher: each.colour for each in curves if each.teacher}
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
    figure.savefig(picture, format=file.suffix[1:], dpi=150)
    plt.close(figure)
    write_atomically(file, picture.getvalue())
