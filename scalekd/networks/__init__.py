"""What we ask of a network: its features in one pass, and of a teacher its last stage alone."""

from scalekd.networks.build import build_model
from scalekd.networks.feature_extractor import FeatureExtractor
from scalekd.networks.feature_selection import FeatureSelection
from scalekd.networks.hooked_features import HookedFeatures
from scalekd.networks.input_config import InputConfig, input_config
from scalekd.networks.protocol import OffersFeatures
from scalekd.networks.teacher.frozen import FrozenTeacher
from scalekd.networks.teacher.tail_inputs import CachedOutputs

__all__ = [
    "CachedOutputs",
    "FeatureExtractor",
    "FeatureSelection",
    "FrozenTeacher",
    "HookedFeatures",
    "InputConfig",
    "OffersFeatures",
    "build_model",
    "input_config",
]
