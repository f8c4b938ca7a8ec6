"""In a container with a small /dev/shm a training ended in a traceback of a hundred lines."""

import os
from types import SimpleNamespace

import pytest
from helpers.refusals import refused

from scalekd.data.loader import check_shared_memory
from scalekd.networks import InputConfig


def test_a_shared_memory_that_is_too_small_is_refused_before_the_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A container has 64 MiB where nobody asks for more."""
    pages = SimpleNamespace(f_frsize=4096, f_blocks=2**14, f_bavail=2**14)
    monkeypatch.setattr(os, "statvfs", lambda _: pages)
    config = InputConfig(3, (224, 224), (0.5,) * 3, (0.5,) * 3)
    check_shared_memory(workers=1, images=50, config=config)
    check_shared_memory(workers=0, images=4096, config=config)
    with refused("4 worker processes prepare 294 MiB", "64 MiB, 64 free", "--data.workers 0"):
        check_shared_memory(workers=4, images=64, config=config)
