"""Counting floating-point operations, where torch's own count is wrong."""

import math
from typing import Any

import torch


def _convolution_backward(
    of_output: list[int], images: list[int], weight: list[int], *others: Any, **_: Any
) -> int:
    """Each of the two gradients costs what the forward did; torch's own count forgets groups."""
    transposed, wanted = others[4], others[7]
    positions = images[2:] if transposed else of_output[2:]
    forward = 2 * of_output[0] * math.prod(positions) * math.prod(weight)
    return forward * (bool(wanted[0]) + bool(wanted[1]))


GROUPED = {torch.ops.aten.convolution_backward: _convolution_backward}
