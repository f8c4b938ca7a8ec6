"""`scalekd --devices N`: one command as N processes on this machine, one rank for each device."""

import logging
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any

import torch

from scalekd.errors import InputError
from scalekd.signals import STOP_SIGNALS

logger = logging.getLogger(__name__)

LAUNCHER_PID = "SCALEKD_LAUNCHED_BY"
"""Environment variable with the process id of `launch`, in the ranks that it started."""

GRACE_PERIOD = 20.0
"""Seconds in which the other ranks can end by themselves after one has failed."""


def check_devices(devices: int) -> None:
    """Raise InputError where this machine has fewer GPUs. Without GPUs any number is possible."""
    if devices < 1:
        raise InputError(f"devices is {devices}: it must be 1 or more")
    if torch.cuda.is_available() and devices > torch.cuda.device_count():
        raise InputError(
            f"devices is {devices} and this machine has {torch.cuda.device_count()} GPUs: give at "
            "most that number; to train on several machines start one process for each device, by "
            "torchrun or srun (docs/scaling.md)"
        )


def launch(devices: int, arguments: list[str]) -> int:
    """Run `scalekd` with `arguments` in one process for each of `devices`.

    The processes receive the signals that this process receives. Where one fails, all are ended.

    Returns:
        The exit code of the first process that failed, or 0.
    """
    environment = {
        **os.environ,
        "WORLD_SIZE": str(devices),
        "LOCAL_WORLD_SIZE": str(devices),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(find_free_port()),
        LAUNCHER_PID: str(os.getpid()),
    }
    if not torch.cuda.is_available():
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // devices)))
    ranks: list[subprocess.Popen[bytes]] = []
    was_signalled = threading.Event()

    def forward_signal(number: int, _: Any) -> None:
        was_signalled.set()
        for process in ranks:
            process.send_signal(number)

    for number in STOP_SIGNALS:
        signal.signal(number, forward_signal)
    for rank in range(devices):
        ranks.append(
            subprocess.Popen(
                [sys.executable, "-m", "scalekd", *arguments],
                env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                start_new_session=True,  # or Ctrl-C would reach them twice
            )
        )
    failed = _wait_for_first_failure(ranks)
    if failed is None:
        return 0
    # Ranks that were asked to stop are saving: they get as long as they need.
    _end_all(ranks, math.inf if was_signalled.is_set() else GRACE_PERIOD)
    code = ranks[failed].returncode
    if code < 0:
        name = signal.Signals(-code).name
        logger.error(
            "rank %d was killed by %s: out of memory, perhaps? The same command with --resume "
            "resumes from its newest checkpoint",
            failed,
            name,
        )
        return 128 - code
    return int(code)


def launcher_is_gone() -> bool:
    """Whether this process is a rank that `launch` started, and that process has ended."""
    launcher = os.environ.get(LAUNCHER_PID)
    return launcher is not None and os.getppid() != int(launcher)


def find_free_port() -> int:
    """A port of this machine that nothing listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for_first_failure(ranks: list[subprocess.Popen[bytes]]) -> int | None:
    """The number of the rank that fails first; None when all have succeeded."""
    while True:
        codes = [process.poll() for process in ranks]
        if failed := [(code, rank) for rank, code in enumerate(codes) if code]:
            return min(failed)[1]  # a killed one has a negative code; the others follow from it
        if all(code == 0 for code in codes):
            return None
        time.sleep(0.1)


def _end_all(ranks: list[subprocess.Popen[bytes]], grace_period: float) -> None:
    deadline = time.monotonic() + grace_period
    while any(process.poll() is None for process in ranks) and time.monotonic() < deadline:
        time.sleep(0.1)
    for process in ranks:
        if process.poll() is None:  # it waits for the rank that is gone
            process.kill()
        process.wait()
