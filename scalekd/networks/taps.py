"""One forward pass of any timm model that gives both features and the logits.

`forward_intermediates` and then `forward_head` is bit-equal to `model(images)`. Layouts and shapes
are found by running a copy on the meta device, which costs no arithmetic and no memory.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scalekd.errors import InputError
from scalekd.features import Features, FeatureShapes, MapShape
from scalekd.networks.build import config
from scalekd.networks.inputs import input_config


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
        return y[:, -height * width :].transpose(1, 2).reshape(-1, *shape)
    return None


@dataclass(frozen=True)
class TapPlan:
    """Which of `forward_intermediates`' outputs are tapped.

    The final feature is the output of `forward_features`, past the final norm, where that has the
    last intermediate's shape, else (or without `final_norm`) the last intermediate itself.
    """

    penultimate: int
    final: int
    final_norm: bool


class Taps:
    """`Taps(model)(images)` -> `Features`, equal to one call of the model.

    Not a module: it holds none of the model's parameters for any trainer or state dict to find.

    Args:
        model: a timm model, or one that offers its `forward_intermediates` and `forward_head`.
        size: (height, width) of the images; default the model's own.
        penultimate: index of the penultimate feature among `forward_intermediates`' outputs.
            Default: of a pyramid the last one on a larger grid than the final; where all grids
            are the same, block number (depth * 2) // 3 (the paper's choice for ViT-S, ViT-B and
            Mixer-S/16).
        final_norm: whether the final feature is taken after the model's final norm.

    Raises:
        InputError: the model has no such methods, refuses the size, or has no index `penultimate`.
    """

    def __init__(
        self,
        model: nn.Module,
        size: tuple[int, int] | None = None,
        penultimate: int | None = None,
        final_norm: bool = True,
    ) -> None:
        self.model = model
        self.input = input_config(model, size)
        y, maps, classes = _on_meta(model, (2, self.input.channels, *self.input.size))
        grids = [tuple(m.shape[2:]) for m in maps]
        last = len(maps) - 1
        if penultimate is None:
            larger = [i for i in range(last) if grids[i] != grids[last]]
            penultimate = larger[-1] if larger else max(0, min(len(maps) * 2 // 3, last - 1))
        if not 0 <= penultimate < last:
            raise InputError(
                f"{_name(model)} has features 0 to {last} and the penultimate one is to be "
                f"number {penultimate}: it must come before the last"
            )
        final = map_shape(maps[last])
        self.plan = TapPlan(penultimate, last, final_norm and as_map(y, final) is not None)
        self.shapes = FeatureShapes(map_shape(maps[penultimate]), final, classes)

    def __call__(self, images: Tensor) -> Features:
        """Features of normalised `images` (N, channels, H, W), with the model's gradients."""
        y, penultimate, final = self.forward_features(images)
        model: Any = self.model
        return Features(penultimate, final, model.forward_head(y) if self.shapes.classes else None)

    def forward_features(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The model's own output before its head, and the two maps."""
        model: Any = self.model
        y, (penultimate, final) = model.forward_intermediates(
            images,
            indices=[self.plan.penultimate, self.plan.final],
            norm=False,
            output_fmt="NCHW",
        )
        if self.plan.final_norm:
            final = as_map(y, map_shape(final))
        return y, penultimate, final


def _on_meta(model: nn.Module, shape: tuple[int, ...]) -> tuple[Tensor, list[Tensor], int | None]:
    """Output of `forward_features`, all intermediates and the number of classes, without data."""
    if not (hasattr(model, "forward_intermediates") and hasattr(model, "forward_head")):
        raise InputError(
            f"{_name(model)} has no forward_intermediates and forward_head, timm's way to features"
        )
    # deepcopy takes what its memo holds for done: weights are replaced, not copied.
    memo: dict[int, Any] = {id(b): b.to("meta") for b in model.buffers()}
    memo |= {id(p): nn.Parameter(p.to("meta"), False) for p in model.parameters()}
    double: Any = copy.deepcopy(model, memo).eval()
    try:
        with torch.no_grad():
            y, maps = double.forward_intermediates(
                torch.empty(shape, device="meta"), norm=False, output_fmt="NCHW"
            )
            classes = None
            if getattr(model, "num_classes", 0):
                classes = double.forward_head(y).shape[1]
        if not isinstance(y, Tensor):
            raise InputError(f"{_name(model)} has several final features: one is needed")
    except (AssertionError, RuntimeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{_name(model)} refuses images of {shape[2]}x{shape[3]} pixels: {reason.rstrip('.')}; "
            "give it a size that it takes, or build it for this one (img_size among its arguments)"
        ) from error
    return y, maps, classes


def _name(model: nn.Module) -> str:
    return config(model).get("architecture") or type(model).__name__
