"""The report's pictures: SVG in the colour of the page's text, each with the same in words."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
from families import Comparison
from matplotlib.figure import Figure
from records import Values

INK = "#010203"
"""Stands for the colour of the page's text."""

WIDTH = 7.0


@dataclass(frozen=True)
class Picture:
    """A drawing.

    Attributes:
        title: what it shows.
        svg: the drawing.
        alternative: the same in words.
    """

    title: str
    svg: str
    alternative: str


def draw_differences(title: str, rows: Sequence[tuple[str, Comparison]]) -> list[Picture]:
    """Draw the differences that have all their seeds, with their intervals, one below the other;
    nothing of none."""
    known = [(name, one.difference) for name, one in rows if one.finished and one.difference]
    if not known:
        return []
    figure = Figure(figsize=(WIDTH, 0.9 + 0.28 * len(known)), layout="constrained")
    axes = figure.subplots()
    for height, (_, found) in enumerate(known):
        axes.plot([found.low, found.high], [height] * 2, color=INK, linewidth=1.5)
        axes.plot([found.mean], [height], "o", color=INK, markersize=5)
    axes.axvline(0, color=INK, linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(known)), [name for name, _ in known])
    axes.invert_yaxis()
    axes.set_xlabel("difference in points, with its 95 % interval")
    words = "; ".join(
        f"{name} {found.mean:+.2f} ({found.low:+.2f} to {found.high:+.2f})" for name, found in known
    )
    return [Picture(title, to_svg(figure), f"{title}. {words}.")]


def draw_curve(title: str, arms: Sequence[tuple[float, Values]]) -> list[Picture]:
    """Draw means over seeds at some positions, and the seeds; nothing of fewer than two."""
    if len(arms) < 2:
        return []
    figure = Figure(figsize=(WIDTH, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot([x for x, _ in arms], [arm.mean for _, arm in arms], "o-", color=INK)
    for x, arm in arms:
        axes.plot([x] * len(arm.by_seed), list(arm.by_seed.values()), ".", color=INK, alpha=0.4)
    axes.set_xlabel("beta")
    axes.set_ylabel("top-1 (%)")
    words = "; ".join(f"{x:g}: {arm.mean:.2f}" for x, arm in arms)
    return [Picture(title, to_svg(figure), f"{title}. Means: {words}.")]


def to_svg(figure: Figure) -> str:
    """The figure as an <svg> element without a size of its own, the same for the same values."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=INK)
        axes.xaxis.label.set_color(INK)
        axes.yaxis.label.set_color(INK)
        for spine in axes.spines.values():
            spine.set_color(INK)
    out = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "scalekd"}):
        figure.savefig(
            out, format="svg", transparent=True, metadata={"Date": None, "Creator": None}
        )
    svg = out.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    size = re.compile(r' (?:width|height)="[\d.]+pt"')  # the page decides; the viewBox stays
    return size.sub("", svg, count=2).replace(INK, "currentColor")
