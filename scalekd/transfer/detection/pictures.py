"""Pictures of a detection: objects drawn over images, and which classes are taken for which."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from scalekd.drawing import draw_shares, to_png
from scalekd.transfer.detection.masks import RunLengths, decode_mask
from scalekd.transfer.pictures import add_legend, colour_of, name_class, paint

MAX_CONFUSED = 40
"""Classes of a confusion matrix that are drawn: those with the most objects."""


@dataclass(frozen=True)
class DrawnObject:
    """An object over an image.

    Attributes:
        label: number of its class, from 0.
        box: left, top, right, bottom in pixels.
        mask: its mask; None without.
        text: at its box.
    """

    label: int
    box: Sequence[float]
    mask: RunLengths | None
    text: str = ""


@dataclass(frozen=True)
class Example:
    """A validation image with its annotated objects and those that were found.

    Attributes:
        image: bytes (3, H, W), or (1, H, W) of a grey image.
        annotated: its objects.
        found: the objects that were found.
    """

    image: Tensor
    annotated: Sequence[DrawnObject]
    found: Sequence[DrawnObject]


def draw_predictions(examples: Sequence[Example], names: Sequence[str]) -> bytes:
    """Draw a page with two examples a row: annotated objects and found ones of each.

    Returns:
        The picture, in PNG.
    """
    from matplotlib.figure import Figure

    rows = -(-len(examples) // 2)
    figure = Figure(figsize=(16, 4 * rows + 1), layout="constrained")
    grid = figure.subplots(rows, 4, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    counts = np.zeros(len(names), dtype=int)
    for row, example in zip(grid.reshape(-1, 2), examples, strict=False):
        kinds = ("annotation", example.annotated), ("prediction", example.found)
        for axes, (title, objects) in zip(row, kinds, strict=True):
            _draw(axes, example.image, objects)
            count = f"{len(objects)} object" + "s" * (len(objects) != 1)
            axes.set_title(f"{title}: {count}", size=9)
            for each in objects:
                counts[each.label] += 1
    add_legend(figure, counts, names)
    return to_png(figure, dpi=110, box=None)


def _draw(axes: Any, image: Tensor, objects: Sequence[DrawnObject]) -> None:
    from matplotlib.patches import Rectangle

    pixels: np.ndarray = image.expand(3, -1, -1).permute(1, 2, 0).numpy().copy()
    for each in objects:
        if each.mask is not None:
            paint(pixels, decode_mask(each.mask).astype(bool), each.label)
    axes.imshow(pixels)
    for each in objects:
        left, top, right, bottom = each.box
        colour = np.array(colour_of(each.label)) / 255
        axes.add_patch(
            Rectangle((left, top), right - left, bottom - top, fill=False, color=colour, lw=1.5)
        )
        label = {"facecolor": colour, "edgecolor": "none", "pad": 1, "alpha": 0.8}
        if each.text:
            axes.text(left, top, each.text, size=7, color="white", va="bottom", bbox=label)


def draw_confusion_matrix(
    confusion: Tensor, names: Sequence[str], min_score: float, title: str
) -> bytes:
    """Draw the confusion matrix; each row has the shares of that class's objects in %.

    Of more than `MAX_CONFUSED` classes those with the most objects are drawn.

    Args:
        confusion: see `count_confusion`.
        names: of the classes.
        min_score: of the predictions that are counted.
        title: of the picture.

    Returns:
        The picture, in PNG.
    """
    from matplotlib.figure import Figure

    counts = confusion.double().numpy()
    classes = len(names)
    order = np.argsort(-counts[:classes].sum(axis=1), kind="stable")[:MAX_CONFUSED]
    shown = [*sorted(order.tolist()), classes]
    shares = 100 * counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    drawn = [name_class(names[number]) for number in shown[:-1]]
    side = max(5.0, 0.36 * len(shown) + 3)  # three inches for names and titles
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    if len(shown) <= classes:
        title += f"; {len(shown) - 1} of {classes} classes"
    axes.set(
        xlabel=f"predicted class, with a score of at least {min_score:g}",
        ylabel="class of the object",
        title=title,
    )
    names_drawn = [*drawn, "no object"], [*drawn, "missed"]
    bar = draw_shares(figure, axes, shares[shown][:, shown], names_drawn)
    bar.set_label("share of the row (%)")
    return to_png(figure, dpi=110, box=None)
