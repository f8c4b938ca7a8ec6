"""In a container with a small /dev/shm a training ended in a traceback of a hundred lines."""

import os
from types import SimpleNamespace

import pytest
import torch
from helpers.refusals import refused

from scalekd.data.loader import check_shared_memory
from scalekd.networks import CachedOutputs

pytestmark = pytest.mark.usefixtures("small")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container has 64 MiB where nobody asks for more."""
    pages = SimpleNamespace(f_frsize=4096, f_blocks=2**14, f_bavail=2**14)
    monkeypatch.setattr(os, "statvfs", lambda _: pages)


def test_a_shared_memory_that_is_too_small_is_refused_before_the_training() -> None:
    item = torch.zeros(3, 224, 224, dtype=torch.uint8), 3
    check_shared_memory(workers=1, items=200, examples=[item])
    check_shared_memory(workers=0, items=4096, examples=[item])
    with refused("4 worker processes prepare 74 MiB", "64 MiB, 64 free", "--data.workers 0"):
        check_shared_memory(workers=4, items=64, examples=[item])


def test_cached_outputs_take_shared_memory_too() -> None:
    """A batch with a teacher's cached outputs is larger than its images."""
    image = torch.zeros(3, 224, 224, dtype=torch.uint8)
    cached = CachedOutputs(torch.zeros(768, 7, 7), torch.zeros(1000), [torch.zeros(768)])
    check_shared_memory(workers=2, items=64, examples=[(image, 3)])
    with refused("2 worker processes prepare 75 MiB"):
        check_shared_memory(workers=2, items=64, examples=[(image, 3, cached)])


def test_the_masks_of_a_detection_take_shared_memory_too() -> None:
    """Its items are images with a dictionary, and some have no object."""
    image = torch.zeros(3, 480, 640, dtype=torch.uint8)
    empty, full = (
        (image, {"boxes": torch.zeros(n, 4), "masks": torch.zeros(n, 480, 640, dtype=torch.uint8)})
        for n in (0, 14)
    )
    check_shared_memory(workers=2, items=16, examples=[empty])
    with refused("2 worker processes prepare 188 MiB"):
        check_shared_memory(workers=2, items=16, examples=[empty, full])
