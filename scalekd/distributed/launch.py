"""One command, as several processes on this machine: a rank for each device."""

import logging
import math
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import torch
from lightning.fabric.plugins.environments.lightning import find_free_network_port

from scalekd.errors import InputError
from scalekd.signals import STOP_SIGNALS

logger = logging.getLogger(__name__)

PARENT = "SCALEKD_LAUNCHED_BY"
GRACE = 20.0
"""Seconds that the other ranks have to end by themselves when one has failed."""


def check_devices(devices: int) -> None:
    """InputError where this machine has not so many; on a CPU any number is possible."""
    if devices < 1:
        raise InputError(f"devices is {devices}: it must be 1 or more")
    if torch.cuda.is_available() and devices > torch.cuda.device_count():
        raise InputError(
            f"devices is {devices} and this machine has {torch.cuda.device_count()} GPUs: "
            "give at most so many; for several machines start one process a device, by torchrun "
            "or srun (docs/scaling.md)"
        )


def launch(devices: int, arguments: list[str]) -> int:
    """Run `scalekd` with `arguments` in `devices` processes.

    Signals are handed on. Where one process fails, all end, and by its exit code.

    Returns:
        The exit code.
    """
    shared = {
        **os.environ,
        "WORLD_SIZE": str(devices),
        "LOCAL_WORLD_SIZE": str(devices),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(find_free_network_port()),
        PARENT: str(os.getpid()),
    }
    if not torch.cuda.is_available():
        shared.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // devices)))
    ranks: list[subprocess.Popen[bytes]] = []
    asked = threading.Event()

    def hand_on(number: int, _: Any) -> None:
        asked.set()
        for process in ranks:
            process.send_signal(number)

    for number in STOP_SIGNALS:
        signal.signal(number, hand_on)
    for rank in range(devices):
        ranks.append(
            subprocess.Popen(
                [sys.executable, "-m", "scalekd", *arguments],
                env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                start_new_session=True,  # or Ctrl-C would reach them twice
            )
        )
    failed = _first_failure(ranks)
    if failed is None:
        return 0
    _end(ranks, math.inf if asked.is_set() else GRACE)  # who was asked to stop is saving
    code = ranks[failed].returncode
    if code < 0:
        name = signal.Signals(-code).name
        logger.error(
            "rank %d was killed by %s: out of memory, perhaps? The same command with --resume goes "
            "on from its newest checkpoint",
            failed,
            name,
        )
        return 128 - code
    return int(code)


def launcher_is_gone() -> bool:
    """Whether this process is a rank whose `launch` is gone."""
    parent = os.environ.get(PARENT)
    return parent is not None and os.getppid() != int(parent)


def _first_failure(ranks: list[subprocess.Popen[bytes]]) -> int | None:
    """Waits for all, or for the first that fails."""
    while True:
        codes = [process.poll() for process in ranks]
        if failed := [(code, rank) for rank, code in enumerate(codes) if code]:
            return min(failed)[1]  # one that was killed, which the others only noticed
        if all(code == 0 for code in codes):
            return None
        time.sleep(0.1)


def _end(ranks: list[subprocess.Popen[bytes]], grace: float) -> None:
    until = time.monotonic() + grace
    while any(process.poll() is None for process in ranks) and time.monotonic() < until:
        time.sleep(0.1)
    for process in ranks:
        if process.poll() is None:  # it waits for the one that is gone
            process.kill()
        process.wait()
