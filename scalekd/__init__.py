"""ScaleKD: what a large vision transformer knows, in any small network."""

import scalekd.digits.teacher  # noqa: F401 -- makes its name one that timm knows
from scalekd.distiller import ScaleKD, Step
from scalekd.errors import InputError
from scalekd.features import Features, FeatureShapes
from scalekd.method import LossWeights, ScaleKDLoss
from scalekd.networks import FrozenTeacher, Taps

__version__ = "0.1.0"

__all__ = [
    "FeatureShapes",
    "Features",
    "FrozenTeacher",
    "InputError",
    "LossWeights",
    "ScaleKD",
    "ScaleKDLoss",
    "Step",
    "Taps",
]
