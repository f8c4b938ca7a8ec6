"""What the package's pictures have in common."""

import io
import warnings
from typing import Any, Literal

from scalekd.text import visible


def to_png(
    figure: Any, *, dpi: int = 130, box: Literal["tight"] | None = "tight", pad: float = 0.15
) -> bytes:
    """A figure of matplotlib as PNG.

    Args:
        figure: the figure.
        dpi: pixels an inch.
        box: "tight" to cut off empty margins; None for the whole figure.
        pad: inches that are left around a tight box.
    """
    picture = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # letters that the font does not have
        figure.savefig(picture, format="png", dpi=dpi, bbox_inches=box, pad_inches=pad)
    return picture.getvalue()


def short_name(name: str, letters: int = 40, from_the_end: bool = True) -> str:
    """A name as matplotlib prints it: not too long, and no dollar sign that begins a formula."""
    plain = visible(name)
    if len(plain) > letters:
        plain = f"…{plain[1 - letters :]}" if from_the_end else f"{plain[: letters - 1]}…"
    return plain.replace("$", r"\$")


def draw_shares(figure: Any, axes: Any, shares: Any, names: tuple[list[str], list[str]]) -> Any:
    """Draw a confusion matrix of shares in %, each with its number; gives its colour bar.

    Args:
        figure: of matplotlib, which gets the colour bar.
        axes: where the matrix is drawn.
        shares: (rows, columns).
        names: of the rows and of the columns.
    """
    import numpy as np

    rows, columns = names
    drawn = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    for (row, column), share in np.ndenumerate(shares):
        if (text := f"{share:.0f}") != "0":
            colour = "white" if share > 50 else "black"
            axes.text(column, row, text, ha="center", va="center", color=colour, size=7)
    axes.set_xticks(range(len(columns)), columns, rotation=90, size=8)
    axes.set_yticks(range(len(rows)), rows, size=8)
    return figure.colorbar(drawn, ax=axes, shrink=0.8)
