"""ScaleKD: what a large vision transformer knows, in any small network."""

# These two make the names of their models known to timm.
import scalekd.digits.teacher
import scalekd.networks.paper_mixer  # noqa: F401
from scalekd.distiller import ScaleKD, Step
from scalekd.errors import InputError
from scalekd.features import Features, FeatureShapes
from scalekd.method import LossWeights, ScaleKDLoss
from scalekd.networks import (
    FrozenTeacher,
    HookedFeatures,
    InputConfig,
    OffersFeatures,
    Taps,
    TapSettings,
)

__version__ = "0.1.0"

__all__ = [
    "FeatureShapes",
    "Features",
    "FrozenTeacher",
    "HookedFeatures",
    "InputConfig",
    "InputError",
    "LossWeights",
    "OffersFeatures",
    "ScaleKD",
    "ScaleKDLoss",
    "Step",
    "TapSettings",
    "Taps",
]
