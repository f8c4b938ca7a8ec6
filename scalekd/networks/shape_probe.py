"""One pass of a timm model's copy on the meta device: shapes and norms, without arithmetic."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scalekd.errors import InputError
from scalekd.networks.build import pretrained_config
from scalekd.networks.feature_selection import ShapeProbe
from scalekd.networks.layout import as_map, map_shape


def probe_shapes(model: nn.Module, shape: tuple[int, ...]) -> ShapeProbe:
    """What one pass over images of `shape` (N, channels, H, W) shows.

    Raises:
        InputError: the model has not timm's methods, refuses the size, or has several features
            where one is needed.
    """
    if not (hasattr(model, "forward_intermediates") and hasattr(model, "forward_head")):
        raise InputError(
            f"{_name(model)} has no forward_intermediates and forward_head, timm's way to "
            "features; a module of your own offers `features`: see docs/own-modules.md"
        )
    # deepcopy takes what its memo holds for done: weights are replaced, not copied.
    memo: dict[int, Any] = {id(b): b.to("meta") for b in model.buffers()}
    memo |= {id(p): nn.Parameter(p.to("meta"), False) for p in model.parameters()}
    double: Any = copy.deepcopy(model, memo).eval()
    headed = bool(getattr(model, "num_classes", 0))
    logits = None
    try:
        with torch.no_grad(), _calls(double) as calls:
            y, maps = double.forward_intermediates(
                torch.empty(shape, device="meta"), norm=False, output_fmt="NCHW"
            )
            last = next((call for call in reversed(calls) if call.output is y), None)
            final_norm = last.name if last and "Norm" in last.kind else None
            calls.clear()
            if headed:
                logits = double.forward_head(y)
            else:
                with suppress(Exception):  # only its norm is looked for
                    double.forward_head(y)
        if not isinstance(y, Tensor):
            raise InputError(f"{_name(model)} has several final features: one is needed")
    except InputError:
        raise
    except Exception as error:  # each family has its own way to refuse a size
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "meta tensor" in reason:
            raise InputError(
                f"{_name(model)} looks at its data's values on its way, so its shapes cannot be "
                "found beforehand; as a module that offers its features it can be used: see "
                "docs/own-modules.md"
            ) from error
        resize = "call its set_input_size" if hasattr(model, "set_input_size") else "build it anew"
        raise InputError(
            f"{_name(model)} refuses images of {shape[2]}x{shape[3]} pixels: {reason.rstrip('.')}; "
            f"give it a size that it takes, or {resize} for this one (img_size=...)"
        ) from error
    pooled = shape[0] * maps[-1].shape[1]
    of_pooled = (
        c.name for c in calls if "Norm" in c.kind and "Batch" not in c.kind and c.values == pooled
    )
    return ShapeProbe(
        name=_name(model),
        maps=maps,
        y_fits=as_map(y, map_shape(maps[-1])) is not None,
        final_norm=final_norm,
        pooled_norm=next(of_pooled, None),
        classes=None if logits is None else logits.shape[1],
    )


@dataclass(frozen=True)
class _Call:
    """A module's call: its name and class, how many values it was given, what it returned."""

    name: str
    kind: str
    values: int
    output: Any


@contextmanager
def _calls(model: nn.Module) -> Iterator[list[_Call]]:
    """The calls of modules meanwhile, in the order in which they return."""
    seen: list[_Call] = []

    def hook(name: str, kind: str) -> Any:
        def leave(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            values = inputs[0].numel() if inputs and isinstance(inputs[0], Tensor) else 0
            seen.append(_Call(name, kind, values, output))

        return leave

    named = [(module, hook(n, type(module).__name__)) for n, module in model.named_modules()]
    hooks = [module.register_forward_hook(leave) for module, leave in named]
    try:
        yield seen
    finally:
        for one in hooks:
            one.remove()


def _name(model: nn.Module) -> str:
    return pretrained_config(model).get("architecture") or type(model).__name__
