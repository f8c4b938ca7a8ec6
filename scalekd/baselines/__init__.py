"""The methods that ScaleKD is compared with, behind the same call as `ScaleKD`."""

from scalekd.baselines.dist import Dist
from scalekd.baselines.feature_distillation import FeatureDistillation
from scalekd.baselines.logit_kd import LogitKd
from scalekd.baselines.ofa import Ofa
from scalekd.baselines.relations import Relations
from scalekd.baselines.rsd import Rsd
from scalekd.baselines.supervised import Supervised
from scalekd.baselines.vkd import Vkd

__all__ = [
    "Dist",
    "FeatureDistillation",
    "LogitKd",
    "Ofa",
    "Relations",
    "Rsd",
    "Supervised",
    "Vkd",
]
