"""What a network shows of itself: the one type that networks give and the method takes."""

from dataclasses import dataclass

from torch import Tensor

MapShape = tuple[int, int, int]
"""Channels, height and width of a feature map."""


@dataclass(frozen=True)
class FeatureShapes:
    """Shapes of `Features` without the batch.

    `penultimate` may be None for a loss without teacher parameter perception, which alone reads it.
    """

    penultimate: MapShape | None
    final: MapShape
    classes: int | None = None


@dataclass(frozen=True)
class Features:
    """One forward pass of a network.

    penultimate: the penultimate stage's feature map (N, C3, H3, W3), S3 in the paper; None of a
        teacher's features out of a cache, where nobody reads it.
    final: the final stage's feature map (N, C4, H4, W4); S4 of a student, and for a teacher T4,
        after its final norm.
    logits: (N, classes), or None where the network has no classifier.
    """

    penultimate: Tensor | None
    final: Tensor
    logits: Tensor | None = None
