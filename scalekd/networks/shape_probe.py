"""The shape probe: one pass of a model's copy on the meta device, without arithmetic."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scalekd.errors import InputError, first_line
from scalekd.networks.feature_selection import ShapeProbe
from scalekd.networks.input_config import pretrained_config
from scalekd.networks.layout import as_map, map_shape


def probe_shapes(model: nn.Module, shape: tuple[int, ...]) -> ShapeProbe:
    """Find the shapes of a timm model's features, and its norms.

    Args:
        model: is not changed.
        shape: of the images, (N, channels, H, W).

    Raises:
        InputError: the model does not have timm's methods, does not accept the size, reads the
            values of its data, or has several final features where one is needed.
    """
    if not (hasattr(model, "forward_intermediates") and hasattr(model, "forward_head")):
        raise InputError(
            f"{_architecture(model)} has no forward_intermediates and forward_head, timm's way to "
            "features; a module of your own offers `features`: see docs/own-modules.md"
        )
    meta_copy = _copy_to_meta(model)
    try:
        return _probe(meta_copy, shape)
    except InputError:
        raise
    except Exception as error:  # each family refuses a size in its own way
        reason = first_line(error)
        if "meta tensor" in reason:
            raise InputError(
                f"{_architecture(model)} reads the values of its data, so its shapes cannot be "
                "found on the meta device; as a module that offers its features it can be used: "
                "see docs/own-modules.md"
            ) from error
        resize = "call its set_input_size" if hasattr(model, "set_input_size") else "build it again"
        raise InputError(
            f"{_architecture(model)} refuses images of {shape[2]}x{shape[3]} pixels: {reason}; "
            f"give it a size that it accepts, or {resize} for this one (img_size=...)"
        ) from error


def _probe(meta_copy: Any, shape: tuple[int, ...]) -> ShapeProbe:
    logits = None
    with torch.no_grad(), _recorded_calls(meta_copy) as calls:
        output, maps = meta_copy.forward_intermediates(
            torch.empty(shape, device="meta"), norm=False, output_fmt="NCHW"
        )
        last = next((call for call in reversed(calls) if call.output is output), None)
        final_norm = last.name if last and "Norm" in last.kind else None
        calls.clear()
        if getattr(meta_copy, "num_classes", 0):
            logits = meta_copy.forward_head(output)
        else:
            with suppress(Exception):  # without classifier, the head matters only for its norm
                meta_copy.forward_head(output)
    if not isinstance(output, Tensor):
        raise InputError(f"{_architecture(meta_copy)} has several final features: one is needed")
    pooled_values = shape[0] * maps[-1].shape[1]
    norms = (call for call in calls if "Norm" in call.kind and "Batch" not in call.kind)
    return ShapeProbe(
        name=_architecture(meta_copy),
        maps=maps,
        output_is_last_map=as_map(output, map_shape(maps[-1])) is not None,
        final_norm=final_norm,
        pooled_norm=next((norm.name for norm in norms if norm.values == pooled_values), None),
        classes=None if logits is None else logits.shape[1],
    )


def _copy_to_meta(model: nn.Module) -> Any:
    """Return a copy of `model` on the meta device, in eval mode; no weight is copied."""
    # deepcopy takes what is in its memo as already copied.
    memo: dict[int, Any] = {id(b): b.to("meta") for b in model.buffers()}
    memo |= {id(p): nn.Parameter(p.to("meta"), False) for p in model.parameters()}
    return copy.deepcopy(model, memo).eval()


@dataclass(frozen=True)
class _ModuleCall:
    """A call of a module.

    name, kind: the module's name and class.
    values: number of elements in its first argument, if that is a tensor.
    output: what it returned.
    """

    name: str
    kind: str
    values: int
    output: Any


@contextmanager
def _recorded_calls(model: nn.Module) -> Iterator[list[_ModuleCall]]:
    """Record the calls of all modules of `model`, in the order in which they return."""
    calls: list[_ModuleCall] = []

    def make_hook(name: str, kind: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            values = inputs[0].numel() if inputs and isinstance(inputs[0], Tensor) else 0
            calls.append(_ModuleCall(name, kind, values, output))

        return hook

    handles = [
        module.register_forward_hook(make_hook(name, type(module).__name__))
        for name, module in model.named_modules()
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _architecture(model: nn.Module) -> str:
    return pretrained_config(model).get("architecture") or type(model).__name__
