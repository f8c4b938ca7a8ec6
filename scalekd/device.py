"""The device that computes, and the processor cores beside it."""

import functools
import os

import torch


@functools.cache
def best_device() -> torch.device:
    """The GPU, or the CPU where there is none.

    Each step asks for it, and without a GPU torch searches the disk for its driver each time.
    """
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def usable_cores() -> int:
    """Number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
