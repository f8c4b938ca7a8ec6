"""The paper: tensors in, losses out. Knows no model, no trainer and no file."""

from scalekd.method.logits import logit_distillation
from scalekd.method.mimicking import alternative_view, distance, original_view
from scalekd.method.perception import ScaleKDLoss
from scalekd.method.projector import ChannelNorm, CrossAttentionProjector
from scalekd.method.weights import LossWeights

__all__ = [
    "ChannelNorm",
    "CrossAttentionProjector",
    "LossWeights",
    "ScaleKDLoss",
    "alternative_view",
    "distance",
    "logit_distillation",
    "original_view",
]
