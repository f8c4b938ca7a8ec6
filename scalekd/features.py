"""Features: the output of a feature extractor and the input of the distillation losses."""

from dataclasses import dataclass

from torch import Tensor

MapShape = tuple[int, int, int]
"""Channels, height and width of a feature map."""


@dataclass(frozen=True)
class FeatureShapes:
    """Shapes of `Features` without the batch dimension.

    Attributes:
        penultimate: of the penultimate stage; None where no loss reads it, that is without teacher
            parameter perception.
        final: of the final stage.
        classes: size of the logits; None where the network has no classifier.
        stages: of the features of all stages, the first one first; empty where no loss reads them.
    """

    penultimate: MapShape | None
    final: MapShape
    classes: int | None = None
    stages: tuple[MapShape, ...] = ()


@dataclass(frozen=True)
class Features:
    """Feature maps and logits of one forward pass.

    Attributes:
        penultimate: feature map of the penultimate stage (N, C3, H3, W3), the paper's S3 of a
            student; None for a teacher whose features come from a cache, where no loss reads it.
        final: feature map of the final stage (N, C4, H4, W4), the paper's S4 of a student, and T4
            of a teacher, after its final norm.
        logits: (N, classes); None where the network has no classifier.
        stages: feature maps of all stages, the first one first; empty where no loss reads them.
    """

    penultimate: Tensor | None
    final: Tensor
    logits: Tensor | None = None
    stages: tuple[Tensor, ...] = ()
