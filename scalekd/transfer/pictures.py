"""What the pictures of all transfers have in common."""

import colorsys
from collections.abc import Sequence
from typing import Any

import numpy as np

from scalekd.drawing import short_name

MAX_NAME = 24
"""Letters of a class's name that are drawn."""

MAX_LEGEND = 24
"""Classes in a legend: the most frequent of those that are shown."""

OPACITY = 0.6
"""Of the classes' colours over an image."""


def colour_of(number: int) -> tuple[int, int, int]:
    """The colour of a class: neighbours in number are far apart in hue."""
    hue, light = number * 0.381966 % 1, 0.45 + 0.12 * (number % 3)
    red, green, blue = (round(255 * part) for part in colorsys.hls_to_rgb(hue, light, 0.85))
    return red, green, blue


def paint(pixels: np.ndarray, mask: np.ndarray, number: int) -> None:
    """Mix the colour of a class into the pixels (H, W, 3) of a mask (H, W)."""
    mixed = (1 - OPACITY) * pixels[mask] + OPACITY * np.array(colour_of(number))
    pixels[mask] = mixed.astype(np.uint8)


def name_class(name: str) -> str:
    """The name of a class as it is drawn."""
    return short_name(name, MAX_NAME, from_the_end=False)


def add_legend(figure: Any, counts: np.ndarray, names: Sequence[str]) -> None:
    """Add the colours of the classes with the largest counts below a figure of matplotlib."""
    from matplotlib.patches import Patch

    frequent = np.argsort(-counts, kind="stable")[:MAX_LEGEND]
    patches = [
        Patch(
            color="#{:02x}{:02x}{:02x}".format(*colour_of(number)), label=name_class(names[number])
        )
        for number in sorted(frequent.tolist())
        if counts[number]
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=6, fontsize=8)
