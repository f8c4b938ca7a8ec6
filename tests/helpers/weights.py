"""Weights in files, and whether two models have the same."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    """Whether names and values of all tensors are equal."""
    mine, theirs = a.state_dict(), b.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[n], theirs[n]) for n in mine)


def save_weights(state: dict[str, Tensor], folder: Path) -> Path:
    save_file({n: t.contiguous() for n, t in state.items()}, folder / "w.safetensors")
    return folder / "w.safetensors"
