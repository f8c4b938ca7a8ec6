"""What a process of the runner does: build caches and run what is open, one after another."""

from typing import Any

import torch
from recorded import Recorded, Stop, commit

from scalekd.signals import ignore_stop_signals

_stop: Stop


def start(stop: Any) -> None:
    """Begin a process: one thread, and signals are the runner's, which sets `stop`."""
    global _stop
    _stop = stop
    torch.set_num_threads(1)
    ignore_stop_signals()
    commit()


def build_cache(trial: Recorded) -> None:
    """Build the cache of a run, or what is missing of it."""
    if not _stop.is_set():
        trial.build_cache()


def run(trial: Recorded) -> bool:
    """Run a run, or resume it; returns whether it is done."""
    return not _stop.is_set() and trial.run(_stop)
