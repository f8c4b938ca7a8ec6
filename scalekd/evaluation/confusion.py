"""Draw which classes a model takes for which."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from scalekd.drawing import draw_shares, short_name, to_png
from scalekd.evaluation.results import ModelResult

MAX_CLASSES = 30
"""Classes that are drawn by name; of more only those that are confused most."""

MAX_CELLS = 500
"""Rows and columns at most of the matrix of all classes, whose neighbours are added up."""

MAX_NAME = 24
"""Letters of a class's name that are drawn."""


def draw_confusion(result: ModelResult) -> bytes:
    """Draw a model's confusion matrix: rows are the images' classes, columns the predicted ones.

    Each row has the shares of that class's images in %. Of more than `MAX_CLASSES` classes, those
    that are confused most are drawn by name, beside a small matrix of all of them.

    Returns:
        The picture, in PNG.
    """
    from matplotlib.figure import Figure

    every_class = [c.name for c in result.per_class]
    shown = most_confused(result)
    title = f"{short_name(result.model)}, top-1 {result.top1:.2%}"
    side = max(5.0, 0.36 * len(shown) + 3)  # three inches for names and titles
    if len(shown) == len(every_class):
        figure = Figure(figsize=(side + 1, side), layout="constrained")
        _draw_named(figure, figure.subplots(), result, shown, title)
    else:
        figure = Figure(figsize=(1.8 * side, side), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(2, 3))
        _draw_all(left, result, every_class, f"{title}, all {len(every_class):,} classes")
        _draw_named(figure, right, result, shown, f"{len(shown)} classes that are confused most")
    return to_png(figure, pad=0.1)


def most_confused(result: ModelResult) -> list[str]:
    """The names of at most `MAX_CLASSES` classes, in the order of their numbers.

    They are those of the most frequent pairs, so that the pairs are in the picture.
    """
    names = [c.name for c in result.per_class]
    if len(names) <= MAX_CLASSES:
        return names
    own, chosen = set(names), dict[str, None]()
    for confusion in result.confusions:
        pair = {confusion.name: None, confusion.predicted: None}
        if own >= pair.keys() and len(chosen | pair) <= MAX_CLASSES:
            chosen |= pair
    chosen |= dict.fromkeys(names[: MAX_CLASSES - len(chosen)])
    return [name for name in names if name in chosen]


def count_matrix(result: ModelResult, names: Sequence[str]) -> np.ndarray:
    """Images by class and predicted class (classes, classes + 1), of the classes `names`; the last
    column has what is predicted to be another class."""
    number = {name: place for place, name in enumerate(names)}
    matrix = np.zeros((len(names), len(names) + 1))
    for c in result.per_class:
        if c.name in number:
            matrix[number[c.name], number[c.name]] = c.correct
    for confusion in result.confusions:
        if confusion.name in number:
            column = number.get(confusion.predicted, len(names))
            matrix[number[confusion.name], column] += confusion.images
    return matrix


def _draw_named(figure: Any, axes: Any, result: ModelResult, names: list[str], title: str) -> None:
    matrix = count_matrix(result, names)
    rows = [short_name(name, MAX_NAME, from_the_end=False) for name in names]
    columns = rows.copy()
    if matrix[:, -1].any():
        columns.append("another class")
    images = {c.name: c.images for c in result.per_class}
    totals = np.array([max(1, images[name]) for name in names])[:, None]
    shares = 100 * matrix[:, : len(columns)] / totals
    axes.set(xlabel="predicted class", ylabel="class of the images", title=title)
    draw_shares(figure, axes, shares, (rows, columns)).set_label("share of the class's images (%)")


def _draw_all(axes: Any, result: ModelResult, names: list[str], title: str) -> None:
    """Draw the matrix of all classes without names; rare errors must be seen beside the rest."""
    cell = -(-len(names) // MAX_CELLS)
    cells = -(-len(names) // cell)
    matrix = np.zeros((cells, cells))
    number = {name: place // cell for place, name in enumerate(names)}
    for place, c in enumerate(result.per_class):
        matrix[place // cell, place // cell] += c.correct
    for confusion in result.confusions:
        if confusion.predicted in number:
            matrix[number[confusion.name], number[confusion.predicted]] += confusion.images
    totals = np.zeros(cells)
    for place, c in enumerate(result.per_class):
        totals[place // cell] += c.images
    shares = matrix / np.maximum(1, totals)[:, None]
    extent = (0, len(names), len(names), 0)
    axes.imshow(np.sqrt(shares), cmap="Blues", vmin=0, vmax=1, extent=extent)
    axes.set(xlabel="number of the predicted class", ylabel="number of the images' class")
    axes.set_title(title)
