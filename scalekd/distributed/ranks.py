"""Several processes that train one student together: each is a rank with a device of its own.

Outside of `process_group` there is one rank, number 0 of 1, and nothing here communicates.
"""

import json
import logging
import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch._C._distributed_c10d import FileStore, PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from scalekd.errors import InputError
from scalekd.signals import Interrupted

logger = logging.getLogger(__name__)

TIMEOUT = timedelta(hours=1)
"""How long a rank waits for the others: one of them may load a teacher from a slow disk."""

DEFAULT_PORT = 12910

RENDEZVOUS_FOLDER = "SCALEKD_RENDEZVOUS"
"""Environment variable with the folder in which the ranks of `scalekd --devices` meet."""

FIRST_FAILED = "scalekd/failed"
"""Key in the ranks' common store of the number of the rank that failed first."""


class AnotherRankFailed(Exception):  # noqa: N818 -- no error of this rank's
    """This rank ends because another rank failed, which has printed the reason."""


@dataclass(frozen=True)
class LaunchEnvironment:
    """The place of this process among those that were started together; by default it is alone.

    Attributes:
        rank: number of this process, from 0 on.
        world_size: number of processes.
        local_rank: number of this process on its machine, and of its GPU.
        local_world_size: number of processes on this machine.
        main_address: host of rank 0.
        main_port: port at which rank 0 is reached.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    main_address: str = "127.0.0.1"
    main_port: int = DEFAULT_PORT


def launch_environment() -> LaunchEnvironment:
    """Read how this process was started from the environment variables.

    `torchrun` and `scalekd --devices` set RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE.
    Without LOCAL_RANK, as Kubeflow starts its pods, each process is alone on its machine.
    Slurm's `srun` sets SLURM_STEP_NODELIST, SLURM_PROCID, SLURM_NTASKS, SLURM_LOCALID, SLURM_NODEID
    and SLURM_TASKS_PER_NODE, with or without --ntasks-per-node. In a batch script or an allocation
    without `srun`, and in a Slurm job that is named "bash" or "interactive", this process is alone.
    MASTER_ADDR and MASTER_PORT are used where they are set.

    Raises:
        InputError: RANK is set and WORLD_SIZE is not, or one of them is not a number.
    """
    variables = os.environ
    if "RANK" in variables:
        world_size = _number("WORLD_SIZE")
        alone = "LOCAL_RANK" not in variables
        return LaunchEnvironment(
            rank=_number("RANK"),
            world_size=world_size,
            local_rank=_number("LOCAL_RANK", 0),
            local_world_size=_number("LOCAL_WORLD_SIZE", 1 if alone else world_size),
            main_address=variables.get("MASTER_ADDR", "127.0.0.1"),
            main_port=_number("MASTER_PORT", DEFAULT_PORT),
        )
    is_interactive = variables.get("SLURM_JOB_NAME") in ("bash", "interactive")
    if "SLURM_STEP_NODELIST" in variables and not is_interactive:
        tasks = variables.get("SLURM_TASKS_PER_NODE", variables["SLURM_NTASKS"])
        job = variables.get("SLURM_JOB_ID")  # gives a port that all tasks of the job agree on
        port = DEFAULT_PORT if job is None else 15_000 + int(job[-4:])
        return LaunchEnvironment(
            rank=int(variables["SLURM_PROCID"]),
            world_size=int(variables["SLURM_NTASKS"]),
            local_rank=int(variables["SLURM_LOCALID"]),
            local_world_size=tasks_per_node(tasks)[int(variables.get("SLURM_NODEID", 0))],
            main_address=variables.get("MASTER_ADDR")
            or first_host(variables["SLURM_STEP_NODELIST"]),
            main_port=int(variables.get("MASTER_PORT", port)),
        )
    return LaunchEnvironment()


def _number(name: str, default: int | None = None) -> int:
    value = os.environ.get(name, default)
    try:
        return int(value)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise InputError(
            f"RANK is {os.environ['RANK']} and {name} is {value}: whatever started this process "
            "must set RANK and WORLD_SIZE to numbers, or neither of them"
        ) from error


def tasks_per_node(listed: str) -> list[int]:
    """The number of tasks on each node from Slurm's short form: "4(x2),3" is [4, 4, 3]."""
    counts: list[int] = []
    for entry in listed.split(","):
        tasks, _, repeated = entry.partition("(x")
        counts += [int(tasks)] * int(repeated.rstrip(")") or 1)
    return counts


def first_host(nodes: str) -> str:
    """The first host of Slurm's short form: "gpu[07-09,12],cpu1" starts with "gpu07"."""
    return re.split("[, ]", re.sub(r"\[(\w+)[^\]]*\]", r"\1", nodes))[0]


def rank() -> int:
    """The number of this process, from 0 on."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world_size() -> int:
    """The number of processes."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def local_world_size() -> int:
    """The number of processes on this machine."""
    return launch_environment().local_world_size if world_size() > 1 else 1


@contextmanager
def process_group() -> Iterator[None]:
    """Connect the ranks; inside, each of them makes the same calls in the same order.

    When a rank fails, only that one raises its error.

    Raises:
        AnotherRankFailed: in the other ranks, in place of the errors that follow there.
    """
    environment = launch_environment()
    if environment.world_size == 1:
        tasks = os.environ.get("SLURM_NTASKS", "1")
        if tasks != "1" and not {"RANK", "SLURM_STEP_NODELIST"} & os.environ.keys():
            logger.warning(
                "this Slurm job has %s tasks, and one process of scalekd is running, as it was "
                "not started by srun: write `srun scalekd ...` to train with all of them",
                tasks,
            )
        yield
        return
    backend = "gloo"
    if torch.cuda.is_available():
        # A launcher may show each process its own GPU alone.
        torch.cuda.set_device(environment.local_rank % torch.cuda.device_count())
        backend = "cpu:gloo,cuda:nccl"
    if environment.world_size == environment.local_world_size:
        _stay_on_this_machine()
    store = _open_store(environment)
    try:
        # Another rank that is connected may fail while this one is still connecting.
        distributed.init_process_group(
            backend,
            store=PrefixStore("scalekd", store),
            rank=environment.rank,
            world_size=environment.world_size,
            timeout=TIMEOUT,
        )
        yield
    except (Interrupted, KeyboardInterrupt):  # which all ranks raise at once
        raise
    except BaseException as error:
        lost = distributed.is_initialized() and _is_connection_error(error)
        if lost or _first_failed_rank(store, environment.rank) != environment.rank:
            raise AnotherRankFailed from error
        raise
    distributed.destroy_process_group()


def _open_store(environment: LaunchEnvironment) -> Store:
    """Open the store in which the ranks tell each other their addresses.

    It is a file in a private folder of `scalekd --devices`, else torch's own at the main address.
    """
    if folder := os.environ.get(RENDEZVOUS_FOLDER):
        store: Store = FileStore(str(Path(folder) / "store"), environment.world_size)
    else:
        os.environ["MASTER_ADDR"] = environment.main_address
        os.environ["MASTER_PORT"] = str(environment.main_port)
        store, _, _ = next(rendezvous("env://", environment.rank, environment.world_size))
    store.set_timeout(TIMEOUT)
    return store


def _stay_on_this_machine() -> None:
    """Make gloo and NCCL use the loopback interface: no other machine can connect to the ranks."""
    loopback = next((n for _, n in socket.if_nameindex() if re.fullmatch(r"lo\d*", n)), None)
    if loopback is not None:
        os.environ["GLOO_SOCKET_IFNAME"] = loopback
        os.environ.setdefault("NCCL_SOCKET_IFNAME", loopback)


def decide_on_rank_0(decide: Callable[[], Any]) -> Any:
    """Call `decide` on rank 0 only, and give its return value to all ranks.

    Ranks exchange JSON and never pickles: what one rank sends cannot run code in another.

    Args:
        decide: its return value is plain data; with several ranks, as JSON gives it back.

    Raises:
        InputError: in all ranks, where `decide` raised it.
    """
    if world_size() == 1:
        return decide()
    decision: dict[str, Any] = {}
    if rank() == 0:
        try:
            decision = {"value": decide()}
        except InputError as error:
            decision = {"refusal": str(error)}
    decision = _broadcast_json(decision, source=0)
    if "refusal" in decision:
        raise InputError(decision["refusal"])
    return decision["value"]


def check_same_on_all_ranks(**values: Any) -> None:
    """Raise InputError where one of these values, plain data, differs between ranks."""
    if world_size() == 1:
        return
    values_of_ranks = _gather_json(values)
    for number, others in enumerate(values_of_ranks):
        for name, value in others.items():
            if value != values_of_ranks[0][name]:
                raise InputError(
                    f"rank {number} has another {name} than rank 0 ({value}; "
                    f"{values_of_ranks[0][name]}): give all ranks the same files"
                )


def _broadcast_json(value: Any, source: int) -> Any:
    """The `value` of rank `source`, in all ranks."""
    sent = bytearray(json.dumps(value).encode()) if rank() == source else bytearray()
    length = torch.tensor(len(sent))
    distributed.broadcast(length, src=source)
    text = torch.frombuffer(sent, dtype=torch.uint8) if sent else torch.empty(int(length)).byte()
    distributed.broadcast(text, src=source)
    return json.loads(text.numpy().tobytes())


def _gather_json(mine: Any) -> list[Any]:
    """The values of all ranks, in all ranks."""
    return [_broadcast_json(mine, source=number) for number in range(world_size())]


def mean_over_ranks(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """The mean over the ranks of each of these scalars, by name."""
    if world_size() == 1:
        return values
    stacked = torch.stack([value.float() for value in values.values()])
    distributed.all_reduce(stacked)
    return dict(zip(values, stacked / world_size(), strict=True))


def gather_lists(mine: list[Any]) -> list[Any]:
    """The lists of all ranks, of plain data that JSON can hold, one after another."""
    return mine if world_size() == 1 else [each for part in _gather_json(mine) for each in part]


def any_flags(flags: Tensor) -> Tensor:
    """For each of the flags (N,), whether it is set on some rank."""
    if world_size() == 1 or not len(flags):
        return flags
    counts = flags.int()
    distributed.all_reduce(counts)
    return counts > 0


def any_rank(*flags: bool) -> list[bool]:
    """For each of the flags, whether it is true on some rank."""
    found: list[bool] = any_flags(torch.tensor(flags, dtype=torch.bool)).tolist()
    return found


def barrier() -> None:
    """Wait until all ranks call it."""
    any_rank(False)


def broadcast_buffers(module: nn.Module) -> None:
    """Copy the buffers of rank 0 to all ranks: BatchNorm's statistics are of each rank's images."""
    if world_size() > 1:
        for buffer in module.buffers():
            distributed.broadcast(buffer, src=0)


def _is_connection_error(error: BaseException) -> bool:
    """Whether the error means that another rank is gone. gloo has no error type for that."""
    is_of_gloo = isinstance(error, RuntimeError) and re.search(
        r"gloo|Connection (closed|reset)", str(error)
    )
    return isinstance(error, distributed.DistError) or bool(is_of_gloo)


def _first_failed_rank(store: Store, mine: int) -> int:
    """The rank that failed first, as far as this rank, the number `mine`, can find out."""
    try:
        return int(store.compare_set(FIRST_FAILED, "", str(mine)))
    except (RuntimeError, ValueError):  # rank 0 is gone, and the store with it
        return 0
