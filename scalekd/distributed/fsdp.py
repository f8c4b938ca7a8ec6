"""Weights in pieces: each rank keeps its own, and has the others' while it computes with them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from scalekd.distributed import ranks
from scalekd.networks.blocks import repeated_blocks


def shard_trained(model: nn.Module, parts: list[nn.Module]) -> None:
    """Shard each of `parts`, and what is left of the `model`, with gradients, over all ranks.

    Whoever runs `model` must start by calling it, and its parts by calling them.
    """
    for part in (*parts, model):
        fully_shard(part, mesh=_mesh())


def shard_frozen(model: nn.Module) -> None:
    """Shard the repeated blocks of a model of which also single blocks are run; the rest, which is
    small, stays whole in each rank."""
    for block in repeated_blocks(model):
        fully_shard(block, mesh=_mesh(), reshard_after_forward=True)


def _mesh() -> DeviceMesh:
    return init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", (ranks.world_size(),))


def gather_full(nested: Any) -> Any:
    """The same with whole tensors in place of pieces. All ranks must ask for it at once."""
    return tree_map(lambda x: x.full_tensor().cpu() if isinstance(x, DTensor) else x, nested)


def distribute_optimizer_state(state: dict[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """An optimizer's whole state as this rank's pieces, where its parameters are sharded."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def piece(tensor: Any, like: Tensor) -> Any:
        if not isinstance(like, DTensor) or not isinstance(tensor, Tensor):
            return tensor
        if tensor.shape != like.shape:  # a count of steps
            return tensor
        return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)

    pieces = {
        number: {name: piece(value, parameters[number]) for name, value in of_one.items()}
        for number, of_one in state["state"].items()
    }
    return {**state, "state": pieces}


@contextmanager
def gathered_for_inference(method: nn.Module, student: nn.Module) -> Iterator[None]:
    """So that `student`, a part of the sharded `method` or sharded itself, can be run alone."""
    if isinstance(method, FSDPModule):
        method.unshard()
    yield
    for module in (method, student):
        if isinstance(module, FSDPModule):
            module.reshard()
