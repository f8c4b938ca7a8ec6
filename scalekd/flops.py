"""Floating-point operations that torch's FlopCounterMode counts wrongly."""

import math
from typing import Any

import torch


def _convolution_backward(
    output_gradient: list[int], images: list[int], weight: list[int], *others: Any, **_: Any
) -> int:
    """The operations of a convolution's backward pass, from the shapes of its arguments.

    The gradients of images and weight each cost as much as the forward pass. torch's own formula
    ignores the convolution's groups.
    """
    is_transposed, wanted_gradients = others[4], others[7]
    positions = images[2:] if is_transposed else output_gradient[2:]
    forward = 2 * output_gradient[0] * math.prod(positions) * math.prod(weight)
    return forward * (bool(wanted_gradients[0]) + bool(wanted_gradients[1]))


FLOP_FORMULAS = {torch.ops.aten.convolution_backward: _convolution_backward}
"""For `FlopCounterMode(custom_mapping=...)`."""
