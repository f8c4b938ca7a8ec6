"""Names, shapes and logits of the students that the paper's authors released, without weights.

The logits are those of the authors' code for `fill_by_rule` and `image_by_rule`.
"""

import gzip
import json
import math
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

GOLDENS = Path(__file__).parents[1] / "export" / "goldens" / "released_students.json.gz"


def read_released() -> dict[str, dict[str, Any]]:
    """For each student `shapes` by name, those of indices under `constant`, and where they are
    known the first 40 `logits` and the `spread` of all of them."""
    content: dict[str, dict[str, Any]] = json.loads(gzip.decompress(GOLDENS.read_bytes()))
    return content


def fill_by_rule(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """Weights that depend on each tensor's name and shape alone."""
    return {name: _tensor(name, shape) for name, shape in shapes.items()}


def _tensor(name: str, shape: list[int]) -> Tensor:
    if name.endswith("num_batches_tracked"):
        return torch.tensor(1)
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
    if name.endswith("running_var"):
        return (1 + 0.3 * drawn.abs()).float()
    if len(shape) > 1 and name.endswith("weight"):
        return (drawn / math.sqrt(math.prod(shape[1:]))).float()
    if name.endswith(("weight", "gamma")):  # of norms and layer scales
        return (1 + 0.2 * drawn).float()
    return (0.1 * drawn).float()


def image_by_rule() -> Tensor:
    """One image (1, 3, 224, 224), normalised."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, 3, 224, 224, generator=generator, dtype=torch.float64).float()
