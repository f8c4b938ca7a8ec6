"""What ScaleKD is compared with, behind the same call: `(images, targets) -> StepOutput`."""

from scalekd.baselines.supervised import Supervised

__all__ = ["Supervised"]
