"""Write an analysis into a folder: its pictures, and their numbers as JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from scalekd.analysis.attention_picture import draw_attention
from scalekd.analysis.distance_picture import draw_distances
from scalekd.analysis.frequency_picture import draw_frequencies
from scalekd.analysis.results import Analysis
from scalekd.analysis.similarity_picture import draw_similarity
from scalekd.atomic_io import check_new, new_folder
from scalekd.errors import InputError

DIGITS = 6
"""Significant digits of the numbers in JSON: more would be noise."""


def write_analysis(analysis: Analysis, pixels: Sequence[np.ndarray], folder: Path) -> None:
    """Write an analysis into a new folder, which is complete or does not exist.

    - analysis.json: all numbers.
    - frequencies.png, alternative_views.png, attention.png, similarity.png: those pictures that are
      not left out.

    Args:
        analysis: what was measured.
        pixels: the images that attention.png shows.
        folder: to write.

    Raises:
        InputError: the folder exists or cannot be written.
    """
    check_new(folder)
    try:
        with new_folder(folder) as partial:
            (partial / "analysis.json").write_text(to_json(analysis) + "\n")
            for name, picture in _draw(analysis, pixels).items():
                (partial / f"{name}.png").write_bytes(picture)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{str(folder)!r} could not be written: {reason}") from error


def to_json(analysis: Analysis) -> str:
    """An analysis as JSON."""
    return json.dumps(_rounded(asdict(analysis)), allow_nan=False)


def _draw(analysis: Analysis, pixels: Sequence[np.ndarray]) -> dict[str, bytes]:
    pictures = {}
    if analysis.frequencies is not None:
        pictures["frequencies"] = draw_frequencies(analysis.frequencies)
    if analysis.alternative_views is not None:
        pictures["alternative_views"] = draw_distances(analysis.alternative_views)
    if analysis.attention is not None:
        pictures["attention"] = draw_attention(analysis.attention, pixels)
    if analysis.similarity is not None:
        pictures["similarity"] = draw_similarity(analysis.similarity)
    return pictures


def _rounded(value: Any) -> Any:
    """Plain data whose numbers have `DIGITS` significant digits."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {name: _rounded(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(inner) for inner in value]
    return value
