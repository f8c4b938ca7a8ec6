"""The ScaleKD method: tensors in, losses out. It imports no model, no trainer and no files."""

from scalekd.method.logits import logit_distillation
from scalekd.method.mimicking import alternative_view, distance, original_view
from scalekd.method.perception import ScaleKDLoss
from scalekd.method.projector import ChannelNorm, CrossAttentionProjector
from scalekd.method.released import loss_from_released
from scalekd.method.weights import LossWeights

__all__ = [
    "ChannelNorm",
    "CrossAttentionProjector",
    "LossWeights",
    "ScaleKDLoss",
    "alternative_view",
    "distance",
    "logit_distillation",
    "loss_from_released",
    "original_view",
]
