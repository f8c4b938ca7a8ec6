"""Feature layouts: maps (N, C, H, W), channels last (N, H, W, C), tokens (N, prefix + H*W, C).

Conversions between layouts are found by comparing values, not by a model's name.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scalekd.features import MapShape

ToTokens = Callable[[Tensor], Tensor]
"""From a feature in any layout to tokens (N, L, C)."""

FromTokens = Callable[[Tensor, Tensor], Tensor]
"""From tokens (N, L, C) and a feature in the target layout to that layout."""


def map_shape(features: Tensor) -> MapShape:
    """Return (C, H, W) of a map (N, C, H, W)."""
    _, channels, height, width = features.shape
    return channels, height, width


def as_map(feature: Any, shape: MapShape) -> Tensor | None:
    """Return `feature` as (N, C, H, W), or None if it cannot be a map of this shape.

    Args:
        feature: (N, C, H, W), (N, H, W, C) or tokens (N, prefix + H*W, C), the layouts that timm's
            models use; or anything else.
        shape: (C, H, W).
    """
    channels, height, width = shape
    if not isinstance(feature, Tensor):
        return None
    if feature.dim() == 4 and tuple(feature.shape[1:]) == shape:
        return feature
    if feature.dim() == 4 and tuple(feature.shape[1:]) == (height, width, channels):
        return feature.permute(0, 3, 1, 2)
    if feature.dim() == 3 and feature.shape[2] == channels and feature.shape[1] >= height * width:
        return map_from_tokens(feature, shape)
    return None


def tokens_from_map(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, H*W, C)."""
    return x.flatten(2).transpose(1, 2)


def _tokens_from_channels_last(x: Tensor) -> Tensor:
    return x.flatten(1, 2)


def tokens_unchanged(x: Tensor) -> Tensor:
    """(N, L, C) -> (N, L, C)."""
    return x


def map_from_tokens(tokens: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(N, prefix + H*W, C) -> (N, C, H, W), for a shape of (C, H, W), without prefix tokens."""
    cells = shape[1] * shape[2]
    return tokens[:, -cells:].transpose(1, 2).reshape(-1, *shape)


def _map_like(tokens: Tensor, like: Tensor) -> Tensor:
    return map_from_tokens(tokens, like.shape[1:])


def _channels_last_like(tokens: Tensor, like: Tensor) -> Tensor:
    cells = like.shape[1] * like.shape[2]
    return tokens[:, -cells:].reshape(-1, *like.shape[1:])


def _tokens_like(tokens: Tensor, like: Tensor) -> Tensor:
    """Drop prefix tokens that `like` does not have; prepend its own where `tokens` lack them."""
    missing = like.shape[1] - tokens.shape[1]
    return torch.cat([like[:, :missing], tokens], 1) if missing > 0 else tokens[:, -like.shape[1] :]


def _shaped_like(tokens: Tensor, like: Tensor) -> Tensor:
    return tokens.reshape(-1, *like.shape[1:])


@dataclass(frozen=True)
class LayoutConversion:
    """From one layout to another: `conversion(x, like)` is `x` in the layout of `like`.

    to_tokens: from the first layout to tokens.
    from_tokens: from tokens to the second layout.
    order: indices of the tokens in the second layout's order, where it is not row by row
        (windows, mask units).
    """

    to_tokens: ToTokens
    from_tokens: FromTokens
    order: Tensor | None = None

    def __call__(self, x: Tensor, like: Tensor) -> Tensor:
        """Convert `x`; where it lacks prefix tokens, those of `like` are put before it."""
        tokens = self.to_tokens(x)
        if self.order is not None:
            tokens = tokens[:, self.order.to(x.device)]
        return self.from_tokens(tokens, like)


def find_conversion(x: Any, like: Any) -> LayoutConversion | None:
    """Return the conversion that gives `like` from `x`, bit-identical; None if there is none."""
    if not all(isinstance(t, Tensor) and t.dim() in (3, 4) for t in (x, like)):
        return None
    reads = [tokens_unchanged] if x.dim() == 3 else [tokens_from_map, _tokens_from_channels_last]
    writes = [_tokens_like] if like.dim() == 3 else [_map_like, _channels_last_like]
    conversions = [LayoutConversion(read, write) for read in reads for write in writes]
    reordered: list[tuple[FromTokens, Tensor]] = [(_shaped_like, like)]
    reordered += [(_map_like, tokens_from_map(like))] if like.dim() == 4 else []
    orders = ((r, w, _find_order(r(x), tokens)) for r in reads for w, tokens in reordered)
    conversions += [LayoutConversion(r, w, order) for r, w, order in orders if order is not None]
    return next((c for c in conversions if _converts(c, x, like)), None)


def _converts(conversion: LayoutConversion, x: Tensor, like: Tensor) -> bool:
    try:
        return torch.equal(conversion(x, like), like)
    except RuntimeError:  # the shapes do not fit this conversion
        return False


def _find_order(tokens: Tensor, like: Tensor) -> Tensor | None:
    """Return where each token of `like` (N, ..., C) is in `tokens`, going by the first channel."""
    if tokens.numel() != like.numel() or tokens.shape[2] != like.shape[-1]:
        return None
    if tokens.is_complex() or like.is_complex():
        return None
    here, there = (t.reshape(tokens.shape)[0, :, 0].argsort() for t in (tokens, like))
    return here[there.argsort()]
