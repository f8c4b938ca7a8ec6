"""What the baselines do with feature maps: the mean over space, tokens, another grid, precision."""

from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.nn import functional as F


def outside_autocast(tensor: Tensor) -> AbstractContextManager[None]:
    """Return a context in which products of tensors on this one's device keep their precision."""
    device = tensor.device.type
    if not torch.amp.is_autocast_available(device):  # the meta device, where FLOPs are counted
        device = "cpu"
    return torch.autocast(device, enabled=False)


def in_full_precision(tensor: Tensor) -> Tensor:
    """Return the tensor in float32, or in float64 where it is that already."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def pooled(feature_map: Tensor) -> Tensor:
    """Return the mean over space (N, C) of a map (N, C, H, W), in float32 or float64."""
    return in_full_precision(feature_map).mean((2, 3))


def tokens(feature_map: Tensor) -> Tensor:
    """Return a map (N, C, H, W) as tokens (N, H W, C), row by row."""
    return feature_map.flatten(2).transpose(1, 2)


def resized(feature_map: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resize a map (N, C, H, W) to a grid of (height, width) by bilinear interpolation.

    The positions are those of the cells' centres (`align_corners=False`), without a filter against
    aliasing. A map that has this grid already is returned as it is.
    """
    if tuple(feature_map.shape[2:]) == grid:
        return feature_map
    return F.interpolate(feature_map, size=grid, mode="bilinear", align_corners=False)
