"""How a teacher's cached outputs are stored: in float32, float16, bfloat16 or int8."""

from typing import Literal

import torch
from torch import Tensor

from scalekd.errors import InputError
from scalekd.networks import CachedOutputs

CachePrecision = Literal["float32", "float16", "bfloat16", "int8"]
"""How the features are stored; logits are stored in float32 with each."""

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

INT8_STEPS = 127
"""Steps of int8 from 0 to the largest value of a channel in an image."""

EncodedRows = dict[str, Tensor]
"""Tensors by the names that they have in a part, each with one row for each image."""


def encode(outputs: CachedOutputs, precision: CachePrecision) -> EncodedRows:
    """Encode a teacher's outputs as they are stored.

    int8 has one scale for each channel of each image: some channels are many times as large as
    others, in all places alike. With int8 the inputs of the teacher's tail are stored in float16.

    Args:
        outputs: outputs for N images.
        precision: how the final feature and the tail's inputs are stored.

    Returns:
        final (N, C, H, W); with int8 its scale (N, C, 1, 1); logits (N, classes) where the teacher
        has a classifier; tail_inputs.0, tail_inputs.1, ..., (N, ...) each.

    Raises:
        InputError: a value is too large for float16, or is non-finite.
    """
    dtype = DTYPES.get(precision, torch.float16)
    rows = {f"tail_inputs.{i}": tensor.to(dtype) for i, tensor in enumerate(outputs.tail_inputs)}
    if outputs.logits.shape[1]:
        rows["logits"] = outputs.logits.float()
    if precision == "int8":
        scale = outputs.final.float().abs().amax((2, 3), keepdim=True) / INT8_STEPS
        steps = outputs.final / scale.clamp(min=torch.finfo(torch.float32).tiny)
        rows |= {"final": steps.round().to(torch.int8), "scale": scale}
    else:
        rows["final"] = outputs.final.to(dtype)
    if not all(tensor.isfinite().all() for tensor in rows.values()):
        exact = (outputs.final, outputs.logits, *outputs.tail_inputs)
        if all(tensor.isfinite().all() for tensor in exact):
            raise InputError(
                f"the teacher's features reach {outputs.final.abs().max():.3g}, too much for "
                "float16: cache them in bfloat16 or float32"
            )
        raise InputError("the teacher's features are non-finite (NaN or Inf) on these images")
    return rows


def decode(rows: EncodedRows) -> CachedOutputs:
    """Decode stored rows; features that were stored in int8 come back in float32.

    Args:
        rows: what `encode` returned.

    Returns:
        The encoded outputs, up to the rounding of their precision.
    """
    final = rows["final"]
    if "scale" in rows:
        final = final * rows["scale"]
    count = sum(name.startswith("tail_inputs.") for name in rows)
    tail_inputs = [rows[f"tail_inputs.{i}"] for i in range(count)]
    return CachedOutputs(final, rows.get("logits", final.new_empty(len(final), 0)), tail_inputs)


def encoding_errors(exact: Tensor, stored: Tensor) -> tuple[float, float]:
    """Measure how far stored features are from the exact ones.

    Args:
        exact, stored: features (N, C, H, W).

    Returns:
        Relative error |stored - exact| / |exact| of the features, and the same of the features
        minus their mean over space, which is what DFM's alternative view compares.
    """

    def relative_error(a: Tensor, b: Tensor) -> float:
        return float((a - b).norm() / b.norm().clamp(min=torch.finfo(b.dtype).tiny))

    def without_mean(x: Tensor) -> Tensor:
        return x - x.mean((2, 3), keepdim=True)

    exact, stored = exact.float(), stored.float()
    return (
        relative_error(stored, exact),
        relative_error(without_mean(stored), without_mean(exact)),
    )
