"""The teacher: frozen by construction, and able to run its last stage on others' tokens.

The tail is everything that the teacher runs after its penultimate feature, its final norm
included. It is found by watching one pass, and replayed by calling the same modules with the same
other arguments (rotary tables, masks, prefix tokens) as the teacher's pass just used.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scalekd.errors import InputError
from scalekd.features import Features, FeatureShapes
from scalekd.networks.taps import Taps, as_map, map_shape

TOLERANCE = 1e-4
"""Largest difference between replay and teacher, relative to the largest value of its output."""


@dataclass(frozen=True)
class _Call:
    """One call of a tail module in the teacher's last pass, less the feature that it was given."""

    module: nn.Module
    others: tuple[Any, ...]
    keywords: dict[str, Any]


class FrozenTeacher:
    """A teacher that nothing can train, with its tail.

    Not a module, so it is in nobody's `parameters()`, `state_dict()`, checkpoint, EMA or DDP, and
    a trainer's `train()` does not reach it; a deep copy is itself. It follows the images that it
    is shown to their device, and to float64.

    Args:
        model: a timm model with pretrained weights. It is put into eval mode and its parameters
            are frozen, in place.
        size: (height, width) that it works at; default its own. Other images are resized.
        penultimate: index of the feature that the tail starts from; default, of a pyramid, before
            its last stage, and of a plain ViT before its last third of blocks (8..11 of 12).

    Attributes:
        shapes: `FeatureShapes` of what it gives.
        input: its channels, size and normalisation.
        difference: largest difference between the replayed tail and the teacher's own output on
            a random image, relative to the largest value of that output.

    Raises:
        InputError: no tail can be found, or its replay differs by more than `TOLERANCE`.
    """

    def __init__(
        self,
        model: nn.Module,
        size: tuple[int, int] | None = None,
        penultimate: int | None = None,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        taps = Taps(model, size, penultimate)
        if penultimate is None and taps.shapes.penultimate == taps.shapes.final:
            # An isotropic model: its tail is a third of its blocks, so it starts one before.
            taps = Taps(model, size, max(0, taps.plan.penultimate - 1))
        self._taps = taps
        self.input = taps.input
        self.shapes: FeatureShapes = taps.shapes
        self._calls: list[_Call] = []
        self._prefix: Tensor | None = None
        self._recording = False
        assert taps.shapes.penultimate is not None
        self._grid = taps.shapes.penultimate[1:]
        parameter = next(model.parameters())
        shape = (2, self.input.channels, *self.input.size)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(parameter)
        hooks = [
            module.register_forward_pre_hook(self._record, with_kwargs=True)
            for module in self._find_tail(noise)
        ]
        try:
            self.difference = self._verify(noise)
        except Exception as error:
            for hook in hooks:
                hook.remove()
            if isinstance(error, InputError):
                raise
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise self._refusal(f"replaying its last stage fails ({reason})") from error

    def __deepcopy__(self, memo: dict[int, Any]) -> "FrozenTeacher":
        return self

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Features:
        """Features of `images` (N, channels, H, W), normalised as `self.input` says."""
        images = images.to(self._follow(images))
        if tuple(images.shape[2:]) != self.input.size:
            images = F.interpolate(images, self.input.size, mode="bicubic", antialias=True)
        self.model.eval()
        self._calls.clear()
        self._recording = True
        try:
            return self._taps(images)
        finally:
            self._recording = False

    def tail(self, tokens: Tensor) -> Tensor:
        """Tokens (N, L, C) on the penultimate grid -> (N, L', C') on the final one.

        To be called after the teacher's pass on the same N images, whose other inputs it reuses.
        Gradients run through it to the tokens.
        """
        x = self._layout(tokens.to(next(self.model.parameters()).dtype))
        for call in self._calls:
            x = call.module(x, *call.others, **call.keywords)
        final = as_map(x, self.shapes.final)
        assert final is not None, "the verified tail ends in the final feature"
        return final.flatten(2).transpose(1, 2)

    def _follow(self, images: Tensor) -> torch.dtype:
        """To the images' device, and to a wider precision; never to a narrower one, for good."""
        parameter = next(self.model.parameters())
        dtype = torch.promote_types(parameter.dtype, images.dtype)
        if (parameter.device, parameter.dtype) != (images.device, dtype):
            self.model.to(images.device, dtype)
        return dtype

    def _record(self, module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        if not self._recording:
            return
        feature, *others = inputs
        if not self._calls:
            self._first, self._entrance = feature.shape[1:], feature.data_ptr()
            tokens = self._grid[0] * self._grid[1]
            self._prefix = feature[:, :-tokens] if feature.dim() == 3 else None
        self._calls.append(_Call(module, tuple(others), keywords))

    def _layout(self, tokens: Tensor) -> Tensor:
        """`tokens` in the layout that the tail's first module was given."""
        if self._prefix is not None:
            return torch.cat([self._prefix, tokens], 1)
        grid = tokens.reshape(len(tokens), *self._grid, -1)
        return grid if self._first == grid.shape[1:] else grid.permute(0, 3, 1, 2)

    @torch.no_grad()
    def _find_tail(self, images: Tensor) -> list[nn.Module]:
        """The modules called, by the model itself, after the one that gave the penultimate map."""
        calls: list[tuple[nn.Module, Any]] = []
        depth = 0

        def enter(module: nn.Module, inputs: Any) -> None:
            nonlocal depth
            depth += 1

        def leave(module: nn.Module, inputs: Any, output: Any) -> None:
            nonlocal depth
            depth -= 1
            if depth == 0:
                calls.append((module, output))

        hooks = [
            hook
            for module in self.model.modules()
            for hook in (
                module.register_forward_pre_hook(enter),
                module.register_forward_hook(leave),
            )
        ]
        _, penultimate, _ = self._taps.forward_features(images)
        for hook in hooks:
            hook.remove()
        shape = map_shape(penultimate)
        cut = [
            i
            for i, (_, output) in enumerate(calls)
            if isinstance(output, Tensor)
            and (seen := as_map(output, shape)) is not None
            and torch.equal(seen, penultimate)
        ]
        if not cut or cut[-1] == len(calls) - 1:
            raise InputError(
                f"no tail found in the teacher {type(self.model).__name__}: its penultimate "
                f"feature {shape} is not the output of a module with others after it; try another "
                "`penultimate` index, or another teacher"
            )
        return [module for module, _ in calls[cut[-1] + 1 :]]

    def _verify(self, images: Tensor) -> float:
        features = self(images)
        for call in self._calls:
            others = [t for t in (*call.others, *call.keywords.values()) if isinstance(t, Tensor)]
            if any(t.data_ptr() == self._entrance for t in others):
                raise self._refusal("a later module takes the penultimate feature once more")
        own = features.final.flatten(2).transpose(1, 2)
        replayed = self.tail(features.penultimate.flatten(2).transpose(1, 2))
        difference = ((replayed - own).abs().max() / own.abs().max()).item()
        if not difference <= TOLERANCE:
            raise self._refusal(
                "its last stage, run on its own penultimate feature, differs from its output by "
                f"{difference:.1e} of the largest value (allowed: {TOLERANCE:.0e})"
            )
        return difference

    def _refusal(self, reason: str) -> InputError:
        name = type(self.model).__name__
        return InputError(f"the teacher {name} cannot be replayed: {reason}; take another teacher")
