"""The methods that ScaleKD is compared with, behind the same call as `ScaleKD`."""

from scalekd.baselines.supervised import Supervised

__all__ = ["Supervised"]
