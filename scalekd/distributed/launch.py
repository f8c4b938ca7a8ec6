"""`scalekd --devices N`: one command as N processes on this machine, one rank for each device."""

import logging
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

import torch

from scalekd.device import usable_cores
from scalekd.distributed.ranks import RENDEZVOUS_FOLDER
from scalekd.errors import InputError
from scalekd.processes import LAUNCHER_PID
from scalekd.signals import EXIT_CODES, handled_stop_signals

logger = logging.getLogger(__name__)

GRACE_PERIOD = 20.0
"""Seconds in which the other ranks can end by themselves after one has failed."""

SECONDS_TO_END_AT_ONCE = 5
"""Seconds after a second Ctrl-C after which ranks that have not ended are killed."""


def check_devices(devices: int) -> None:
    """Raise InputError where this machine has fewer GPUs, or without GPUs fewer CPU cores."""
    if devices < 1:
        raise InputError(f"devices is {devices}: it must be 1 or more")
    on_gpus = torch.cuda.is_available()
    available = torch.cuda.device_count() if on_gpus else usable_cores()
    if devices > available:
        has = f"{available} GPUs" if on_gpus else f"no GPU, and {available} CPU cores to use"
        raise InputError(
            f"devices is {devices} and this machine has {has}: give at "
            "most that number; to train on several machines start one process for each device, by "
            "torchrun or srun (docs/scaling.md)"
        )


def launch(devices: int, arguments: list[str]) -> int:
    """Run `scalekd` with `arguments` in one process for each of `devices`.

    The processes receive the signals that this process receives. Where one fails, all are ended.
    They meet through a file in a folder that only this user can open, not at a port.

    Returns:
        The exit code of the first process that failed, or 0.
    """
    with tempfile.TemporaryDirectory(prefix="scalekd-ranks-", ignore_cleanup_errors=True) as folder:
        return _launch(devices, arguments, folder)


def _launch(devices: int, arguments: list[str], folder: str) -> int:
    environment = {
        **os.environ,
        "WORLD_SIZE": str(devices),
        "LOCAL_WORLD_SIZE": str(devices),
        RENDEZVOUS_FOLDER: folder,
        LAUNCHER_PID: str(os.getpid()),
    }
    if not torch.cuda.is_available():
        environment.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // devices)))
    ranks: list[subprocess.Popen[bytes]] = []
    received: list[int] = []

    def kill_ranks(*_: Any) -> None:
        for process in ranks:
            process.kill()

    def forward_signal(number: int, _: Any) -> None:
        received.append(number)
        for process in ranks:
            process.send_signal(number)
        if received.count(signal.SIGINT) == 2:  # they end at once, unless they hang
            signal.signal(signal.SIGALRM, kill_ranks)
            signal.alarm(SECONDS_TO_END_AT_ONCE)

    for number in handled_stop_signals():
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
    _end_all(ranks, math.inf if received else GRACE_PERIOD)
    if received.count(signal.SIGINT) > 1:
        return EXIT_CODES[signal.SIGINT]
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
