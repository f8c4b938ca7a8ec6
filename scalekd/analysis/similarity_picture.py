"""Draw how alike the layers of student and teacher are."""

import numpy as np

from scalekd.analysis.results import Similarity
from scalekd.drawing import short_name, to_png

MOST_NUMBERED = 16
"""Layers in a row or column up to which the values are written into the cells."""


def draw_similarity(result: Similarity) -> bytes:
    """Draw the matrix of CKA: rows are the student's layers, columns the teacher's.

    Returns:
        The picture, in PNG.
    """
    from matplotlib.figure import Figure

    cka = np.array([[np.nan if v is None else v for v in row] for row in result.cka], dtype=float)
    rows, columns = cka.shape
    size = max(4.5, 0.5 * columns + 3), max(3.5, 0.42 * rows + 2.2)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    drawn = axes.imshow(cka, cmap="viridis", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(columns), result.teacher_layers, rotation=90, size=8)
    axes.set_yticks(range(rows), result.student_layers, size=8)
    if max(rows, columns) <= MOST_NUMBERED:
        for (row, column), value in np.ndenumerate(cka):
            text = "-" if np.isnan(value) else f"{value:.2f}"
            colour = "black" if value > 0.6 else "white"
            axes.text(column, row, text, ha="center", va="center", size=7, color=colour)
    axes.set(
        xlabel=f"layers of the teacher {short_name(result.teacher)}",
        ylabel=f"layers of the student\n{short_name(result.student, 30)}",
    )
    axes.set_title(f"Similarity of features (linear CKA), {result.images} images", size=10)
    figure.colorbar(drawn, ax=axes, label="linear CKA")
    return to_png(figure)
