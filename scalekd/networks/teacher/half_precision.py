"""A teacher's weights in half precision, cast where autocast would cast them at each use."""

from collections.abc import Callable

import torch
from torch import nn

Undo = Callable[[], None]


def cast_autocast_layers(model: nn.Module, dtype: torch.dtype) -> Undo | None:
    """Cast the weights of linear layers and convolutions to `dtype`, in place.

    These are the layers whose weights autocast casts. Nothing is cast if all parameters of `model`
    are in such layers, because one in full precision has to tell the precision of the model.

    Returns:
        A function that restores the weights, or None if nothing was cast.
    """
    layers = [m for m in model.modules() if type(m) in (nn.Linear, nn.Conv2d)]
    full_precision = {p: p.data for layer in layers for p in layer.parameters()}
    if all(p in full_precision for p in model.parameters()):
        return None
    for parameter in full_precision:
        parameter.data = parameter.data.to(dtype)

    def undo() -> None:
        for parameter, data in full_precision.items():
            parameter.data = data

    return undo
