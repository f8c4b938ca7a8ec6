"""What the pictures of an analysis have in common."""

import io
import warnings
from typing import Any

from scalekd.text import visible

VIEW_COLOURS = {"original": "#d98c21", "alternative": "#2166ac"}


def to_png(figure: Any) -> bytes:
    """A figure as PNG."""
    picture = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # letters that the font does not have
        figure.savefig(picture, format="png", dpi=130, bbox_inches="tight", pad_inches=0.15)
    return picture.getvalue()


def short_name(name: str, letters: int = 40) -> str:
    """The end of a name, as matplotlib prints it: no dollar sign begins a formula."""
    plain = visible(name)
    if len(plain) > letters:
        plain = f"…{plain[1 - letters :]}"
    return plain.replace("$", r"\$")
