"""What we ask of a network: its features in one pass, and of a teacher its last stage alone."""

from scalekd.networks.build import build
from scalekd.networks.feature_extractor import Taps
from scalekd.networks.feature_selection import TapSettings
from scalekd.networks.hooked_features import HookedFeatures
from scalekd.networks.input_config import InputConfig, input_config
from scalekd.networks.protocol import OffersFeatures
from scalekd.networks.teacher.frozen import FrozenTeacher
from scalekd.networks.teacher.tail_inputs import Kept

__all__ = [
    "FrozenTeacher",
    "HookedFeatures",
    "InputConfig",
    "Kept",
    "OffersFeatures",
    "TapSettings",
    "Taps",
    "build",
    "input_config",
]
