"""Processes that load images and fail: out of shared memory, by file limits, or killed.

It was a traceback of a hundred lines, after the preflight, or the run waited for ever.
"""

import gc
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from helpers.refusals import refused
from torch import Tensor
from torch.utils.data import Dataset

from scalekd.data.loader import ImageLoader
from scalekd.data.worker import end_workers, initialize_worker

REMEDY = ("--data.workers 0", "shared memory (/dev/shm has")


class Images(Dataset[Tensor]):
    def __init__(self, fault: str = "") -> None:
        self.fault = fault

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> Tensor:
        if self.fault == "killed" and index == 20:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault == "shared memory":
            raise RuntimeError("unable to write to file </torch_7>: No space left on device (28)")
        if self.fault == "no files":  # the worker cannot open the batch that it hands over
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
        return torch.zeros(3, 8, 8)


def loader(fault: str = "") -> ImageLoader:
    return ImageLoader(
        Images(fault),
        batch_size=4,
        num_workers=2,
        worker_init_fn=initialize_worker,
        multiprocessing_context="fork",
    )


@contextmanager
def no_more_files() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))  # those that are open stay open
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("killed", "exited unexpectedly"),
        ("shared memory", "No space left on device"),
        ("no files", "Too many open files"),
    ],
)
def test_a_failing_worker_is_one_line(
    fault: str, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    handler = signal.getsignal(signal.SIGCHLD)
    with refused(reason, *REMEDY):
        list(loader(fault))
    assert signal.getsignal(signal.SIGCHLD) == handler
    assert "Traceback" not in capfd.readouterr().err
    end_workers()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_workers_that_cannot_be_started_are_one_line() -> None:
    with no_more_files(), refused("Too many open files", *REMEDY):
        list(loader())
    end_workers()
    gc.collect()  # here, where the warning of the half iterator is expected


def test_batches_of_intact_workers_arrive() -> None:
    assert len(list(loader())) == 16
