"""Layouts of features, told by value: (N, C, H, W), (N, H, W, C), tokens (N, prefix + H*W, C)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scalekd.features import MapShape

ToTokens = Callable[[Tensor], Tensor]
FromTokens = Callable[[Tensor, Tensor], Tensor]


def map_shape(features: Tensor) -> MapShape:
    """(C, H, W) of a map (N, C, H, W)."""
    _, channels, height, width = features.shape
    return channels, height, width


def as_map(y: Any, shape: MapShape) -> Tensor | None:
    """`y` as (N, C, H, W), or None where it cannot be a map of this `shape` (C, H, W).

    timm's models work on (N, C, H, W), (N, H, W, C) or tokens (N, prefix + H*W, C).
    """
    channels, height, width = shape
    if not isinstance(y, Tensor):
        return None
    if y.dim() == 4 and tuple(y.shape[1:]) == shape:
        return y
    if y.dim() == 4 and tuple(y.shape[1:]) == (height, width, channels):
        return y.permute(0, 3, 1, 2)
    if y.dim() == 3 and y.shape[2] == channels and y.shape[1] >= height * width:
        return map_from_tokens(y, shape)
    return None


def tokens_from_map(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, H*W, C)."""
    return x.flatten(2).transpose(1, 2)


def _tokens_of_channels_last(x: Tensor) -> Tensor:
    return x.flatten(1, 2)


def tokens_unchanged(x: Tensor) -> Tensor:
    """Tokens stay tokens."""
    return x


def map_from_tokens(tokens: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(N, prefix + H*W, C) -> (N, C, H, W), for a shape of (C, H, W); the prefix is left out."""
    cells = shape[1] * shape[2]
    return tokens[:, -cells:].transpose(1, 2).reshape(-1, *shape)


def _map_of_tokens(tokens: Tensor, like: Tensor) -> Tensor:
    return map_from_tokens(tokens, like.shape[1:])


def _channels_last_of_tokens(tokens: Tensor, like: Tensor) -> Tensor:
    cells = like.shape[1] * like.shape[2]
    return tokens[:, -cells:].reshape(-1, *like.shape[1:])


def _behind_prefix(tokens: Tensor, like: Tensor) -> Tensor:
    """Without prefix tokens that `like` has not; behind those of `like` that are missing."""
    missing = like.shape[1] - tokens.shape[1]
    return torch.cat([like[:, :missing], tokens], 1) if missing > 0 else tokens[:, -like.shape[1] :]


def _as_shaped(tokens: Tensor, like: Tensor) -> Tensor:
    return tokens.reshape(-1, *like.shape[1:])


@dataclass(frozen=True)
class LayoutConversion:
    """From one layout to another: `layout(x, like)` is `x` in the layout of `like`.

    order: of the tokens there, where it is not row by row (windows, mask units).
    """

    read: ToTokens
    write: FromTokens
    order: Tensor | None = None

    def __call__(self, x: Tensor, like: Tensor) -> Tensor:
        """`x` in the layout of `like`, behind its prefix tokens where `x` has none."""
        tokens = self.read(x)
        if self.order is not None:
            tokens = tokens[:, self.order.to(x.device)]
        return self.write(tokens, like)


def find_conversion(x: Any, like: Any) -> LayoutConversion | None:
    """The layout in which `x` has the values of `like`; None where there is none."""
    if not all(isinstance(t, Tensor) and t.dim() in (3, 4) for t in (x, like)):
        return None
    read = [tokens_unchanged] if x.dim() == 3 else [tokens_from_map, _tokens_of_channels_last]
    write = [_behind_prefix] if like.dim() == 3 else [_map_of_tokens, _channels_last_of_tokens]
    layouts = [LayoutConversion(r, w) for r in read for w in write]
    seen: list[tuple[FromTokens, Tensor]] = [(_as_shaped, like)]
    seen += [(_map_of_tokens, tokens_from_map(like))] if like.dim() == 4 else []
    orders = ((r, w, _order(r(x), tokens)) for r in read for w, tokens in seen)
    layouts += [LayoutConversion(r, w, order) for r, w, order in orders if order is not None]
    return next((layout for layout in layouts if _fits(layout, x, like)), None)


def _fits(layout: LayoutConversion, x: Tensor, like: Tensor) -> bool:
    try:
        return torch.equal(layout(x, like), like)
    except RuntimeError:  # not of shapes that this layout can join
        return False


def _order(tokens: Tensor, like: Tensor) -> Tensor | None:
    """Where each token of `like` (N, ..., C) is in `tokens`, going by their first channel."""
    if tokens.numel() != like.numel() or tokens.shape[2] != like.shape[-1]:
        return None
    if tokens.is_complex() or like.is_complex():
        return None
    here, there = (t.reshape(tokens.shape)[0, :, 0].argsort() for t in (tokens, like))
    return here[there.argsort()]
