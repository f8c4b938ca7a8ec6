"""Knowledge distillation from pretrained vision transformers into any small network: ScaleKD."""

import sys
from pathlib import Path

if Path(sys.argv[0]).stem in ("scalekd", "-m"):  # the command line, before the slow imports
    from scalekd.processes import stop_with_launcher
    from scalekd.signals import end_at_once_on_ctrl_c

    end_at_once_on_ctrl_c()
    stop_with_launcher()

# Importing these two registers their models with timm.
import scalekd.digits.teacher
import scalekd.networks.paper_mixer  # noqa: F401
from scalekd.distiller import BaselineDistiller
from scalekd.errors import InputError
from scalekd.features import Features, FeatureShapes
from scalekd.method import LossWeights, ScaleKDLoss
from scalekd.networks import (
    FeatureExtractor,
    FeatureSelection,
    FrozenTeacher,
    HookedFeatures,
    InputConfig,
    OffersFeatures,
)
from scalekd.scale_kd import ScaleKD
from scalekd.step import StepOutput

__version__ = "0.1.0"

__all__ = [
    "BaselineDistiller",
    "FeatureExtractor",
    "FeatureSelection",
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
    "StepOutput",
]
