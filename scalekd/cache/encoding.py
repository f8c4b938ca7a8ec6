"""What is kept of a teacher, in fewer bytes."""

from typing import Literal

import torch
from torch import Tensor

from scalekd.errors import InputError
from scalekd.networks import CachedOutputs

CachePrecision = Literal["float32", "float16", "bfloat16", "int8"]
"""Of the features; logits are float32 in each."""

TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

STEPS = 127
"""Of int8, from 0 to the largest value of a channel in an image."""

EncodedRows = dict[str, Tensor]
"""Tensors by the names that they have in a file, each with a row for each image."""


def encode(kept: CachedOutputs, precision: CachePrecision) -> EncodedRows:
    """As it is stored.

    int8 has a scale for each channel of each image: some channels are many times as large as
    others, in all places alike. What the tail is given beside is float16 with it.

    Raises:
        InputError: a value is too large for float16, or is no number.
    """
    kind = TYPES.get(precision, torch.float16)
    rows = {f"beside.{i}": part.to(kind) for i, part in enumerate(kept.tail_inputs)}
    if kept.logits.shape[1]:
        rows["logits"] = kept.logits.float()
    if precision == "int8":
        scale = kept.final.float().abs().amax((2, 3), keepdim=True) / STEPS
        steps = kept.final / scale.clamp(min=torch.finfo(torch.float32).tiny)
        rows |= {"final": steps.round().to(torch.int8), "scale": scale}
    else:
        rows["final"] = kept.final.to(kind)
    if not all(rows[name].isfinite().all() for name in rows):
        if all(part.isfinite().all() for part in (kept.final, kept.logits, *kept.tail_inputs)):
            raise InputError(
                f"the teacher's features reach {kept.final.abs().max():.3g}, too much for float16: "
                "keep them in bfloat16 or float32"
            )
        raise InputError("the teacher's features are nan or inf on these images")
    return rows


def decode(rows: EncodedRows) -> CachedOutputs:
    """What was encoded, but for its error; of int8 in float32."""
    final = rows["final"]
    if "scale" in rows:
        final = final * rows["scale"]
    beside = [rows[f"beside.{i}"] for i in range(sum(name.startswith("beside.") for name in rows))]
    return CachedOutputs(final, rows.get("logits", final.new_empty(len(final), 0)), beside)


def encoding_errors(exact: Tensor, stored: Tensor) -> tuple[float, float]:
    """How far stored features are from the exact ones, both (N, C, H, W), relative to their size.

    Returns:
        Of the features as they are, and of what varies over space: the alternative view's.
    """

    def between(a: Tensor, b: Tensor) -> float:
        return float((a - b).norm() / b.norm().clamp(min=torch.finfo(b.dtype).tiny))

    def varying(x: Tensor) -> Tensor:
        return x - x.mean((2, 3), keepdim=True)

    exact, stored = exact.float(), stored.float()
    return between(stored, exact), between(varying(stored), varying(exact))
