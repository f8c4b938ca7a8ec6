"""What we ask of a network: its features in one pass, and of a teacher its last stage alone."""

from scalekd.networks.build import build
from scalekd.networks.inputs import InputConfig, input_config
from scalekd.networks.taps import Taps
from scalekd.networks.teacher import FrozenTeacher

__all__ = ["FrozenTeacher", "InputConfig", "Taps", "build", "input_config"]
