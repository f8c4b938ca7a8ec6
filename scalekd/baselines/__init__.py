"""What ScaleKD is compared with, behind the same call: `(images, targets) -> Step`."""

from scalekd.baselines.supervised import Alone

__all__ = ["Alone"]
