"""What we ask of a network: its features in one pass, and of a teacher its last stage alone."""

from scalekd.networks.build import build
from scalekd.networks.hooked import HookedFeatures
from scalekd.networks.inputs import InputConfig, input_config
from scalekd.networks.kept import Kept
from scalekd.networks.own import OffersFeatures
from scalekd.networks.plan import TapSettings
from scalekd.networks.taps import Taps
from scalekd.networks.teacher import FrozenTeacher

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
