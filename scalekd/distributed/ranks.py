"""Several processes that train one student together, each a rank with a device of its own.

Outside of `process_group` there is one rank, number 0 of 1, and nothing here talks to anybody.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from torch import Tensor, distributed, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from scalekd.errors import InputError
from scalekd.signals import Interrupted

T = TypeVar("T")

PATIENCE = timedelta(hours=1)
"""How long a rank waits for the others: one of them may load a teacher from a slow disk."""

FAILED = "scalekd/failed"


class AnotherRankFailed(Exception):  # noqa: N818 -- no error of this rank's
    """This rank ends because another did, which has said why."""


def launch_environment() -> ClusterEnvironment:
    """Who started this process: torchrun or `--devices` (they set the same variables), Slurm's
    srun, or a person."""
    if "RANK" in os.environ:
        return TorchElasticEnvironment()
    if "SLURM_NTASKS" in os.environ and SLURMEnvironment.detect():
        return SLURMEnvironment(auto_requeue=False)  # signals are ours to handle
    return LightningEnvironment()


def rank() -> int:
    """This process's number, from 0 on."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world_size() -> int:
    """How many processes there are."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def local_world_size() -> int:
    """How many of them are on this machine."""
    if world_size() == 1:
        return 1
    said = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("SLURM_NTASKS_PER_NODE")
    return int(said or world_size())


@contextmanager
def process_group() -> Iterator[None]:
    """Around all that several ranks do together: the same calls in the same order in each.

    Where one fails, it alone says why.

    Raises:
        AnotherFailed: in place of what happens to the ranks that are left then.
    """
    started_by = launch_environment()
    if started_by.world_size() == 1:
        yield
        return
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(started_by.local_rank())
        backend = "cpu:gloo,cuda:nccl"
    os.environ["MASTER_ADDR"] = started_by.main_address
    os.environ["MASTER_PORT"] = str(started_by.main_port)
    store, number, count = next(
        rendezvous("env://", started_by.global_rank(), started_by.world_size())
    )
    distributed.init_process_group(
        backend,
        store=PrefixStore("scalekd", store),
        rank=number,
        world_size=count,
        timeout=PATIENCE,
    )
    try:
        yield
    except (Interrupted, KeyboardInterrupt):  # all of them at once
        raise
    except BaseException as error:
        if _of_connection(error) or _first_to_fail(store) != number:
            raise AnotherRankFailed from error
        raise
    distributed.destroy_process_group()


def decide_on_rank_0(decide: Callable[[], T]) -> T:
    """What `decide` gives in rank 0, where alone it is called; what it refuses, all refuse."""
    told: list[Any] = [None, None]
    if rank() == 0:
        try:
            told = [decide(), None]
        except InputError as error:
            told = [None, error]
    if world_size() > 1:
        distributed.broadcast_object_list(told, src=0)
    if told[1] is not None:
        raise told[1]
    value: T = told[0]
    return value


def check_same_on_all_ranks(**values: Any) -> None:
    """InputError where a rank has another value of one of these than rank 0."""
    if world_size() == 1:
        return
    theirs: list[dict[str, Any]] = [{}] * world_size()
    distributed.all_gather_object(theirs, values)
    for number, other in enumerate(theirs):
        for name, value in other.items():
            if value != theirs[0][name]:
                raise InputError(
                    f"rank {number} has another {name} than rank 0 ({value}; {theirs[0][name]}): "
                    "all ranks must be given the same files"
                )


def mean_over_ranks(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Means over the ranks of scalars, by name."""
    if world_size() == 1:
        return values
    together = torch.stack([value.float() for value in values.values()])
    distributed.all_reduce(together)
    return dict(zip(values, together / world_size(), strict=True))


def sum_over_ranks(count: int) -> int:
    """The sum over the ranks."""
    if world_size() == 1:
        return count
    together = torch.tensor(count)
    distributed.all_reduce(together)
    return int(together)


def any_rank(*wishes: bool) -> list[bool]:
    """For each wish whether some rank has it."""
    if world_size() == 1:
        return list(wishes)
    counts = torch.tensor(wishes, dtype=torch.int32)
    distributed.all_reduce(counts)
    return [bool(count) for count in counts.tolist()]


def barrier() -> None:
    """Until all ranks are here."""
    any_rank(False)


def broadcast_buffers(module: nn.Module) -> None:
    """Statistics that each rank keeps of its own images become those of rank 0."""
    if world_size() > 1:
        for buffer in module.buffers():
            distributed.broadcast(buffer, src=0)


def _of_connection(error: BaseException) -> bool:
    """Whether it says that another rank is gone, which gloo does in no type of its own."""
    of_gloo = isinstance(error, RuntimeError) and re.search(
        r"gloo|Connection (closed|reset)", str(error)
    )
    return isinstance(error, distributed.DistError) or bool(of_gloo)


def _first_to_fail(store: Store) -> int:
    """The rank that failed first, as far as this one can know."""
    try:
        return int(store.compare_set(FAILED, "", str(rank())))
    except (RuntimeError, ValueError):  # the store went with rank 0
        return 0
