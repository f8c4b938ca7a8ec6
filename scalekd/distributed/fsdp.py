"""Weights sharded over the ranks (FSDP): each keeps a part, and gathers the rest to compute."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from scalekd.distributed import ranks
from scalekd.networks.blocks import repeated_blocks


def shard_learner(learner: nn.Module, average: nn.Module | None = None) -> None:
    """Shard what a run trains over all ranks: weights, gradients, and with them the optimizer.

    Whoever runs the learner must start by calling it, and its parts by calling them.

    Args:
        learner: has a `student`, and below its `criterion` projectors where it has a teacher.
        average: `module` in it is the average of the student's weights.
    """
    criterion = getattr(learner, "criterion", nn.Module())
    # What a list or dictionary of a loss holds is called by itself; other parts need not be.
    lists = [
        part for part in criterion.children() if isinstance(part, nn.ModuleDict | nn.ModuleList)
    ]
    projectors = [module for part in lists for module in part.children()]
    _shard([*repeated_blocks(learner.get_submodule("student")), *projectors, learner])
    if average is not None:
        student = average.get_submodule("module")
        _shard([*repeated_blocks(student), student])


def shard_frozen(model: nn.Module) -> None:
    """Shard the repeated blocks of a model of which single blocks are run, too; the rest, which is
    small, stays unsharded in each rank. A model that is sharded already is left as it is."""
    blocks = repeated_blocks(model)
    _shard([b for b in blocks if not isinstance(b, FSDPModule)], reshard_after_forward=True)


def _shard(modules: Sequence[nn.Module], **options: Any) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for module in modules:
        mesh = init_device_mesh(device, (ranks.world_size(),))
        fully_shard(module, mesh=mesh, **options)


def gather_full(nested: Any) -> Any:
    """The same nested data with complete tensors on the CPU in place of sharded ones.

    All ranks must ask for it at once.
    """
    return tree_map(lambda x: x.full_tensor().cpu() if isinstance(x, DTensor) else x, nested)


def distribute_optimizer_state(state: dict[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """An unsharded optimizer state as this rank's part, where its parameters are sharded."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def distribute(value: Any, parameter: Tensor) -> Any:
        if not isinstance(parameter, DTensor) or not isinstance(value, Tensor):
            return value
        if value.shape != parameter.shape:  # a count of steps
            return value
        on_device = value.to(parameter.device)
        return distribute_tensor(on_device, parameter.device_mesh, parameter.placements)

    distributed = {
        number: {name: distribute(value, parameters[number]) for name, value in entries.items()}
        for number, entries in state["state"].items()
    }
    return {**state, "state": distributed}


@contextmanager
def gathered_for_inference(learner: nn.Module, student: nn.Module) -> Iterator[None]:
    """Inside, `student` runs by itself: a part of the sharded `learner`, or sharded on its own."""
    if isinstance(learner, FSDPModule):
        learner.unshard()
    yield
    for module in (learner, student):
        if isinstance(module, FSDPModule):
            module.reshard()
