"""A process that holds a run folder."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from multiprocessing.context import ForkProcess
from multiprocessing.queues import SimpleQueue
from pathlib import Path

from scalekd.runs.lock import hold_folder

FORK = multiprocessing.get_context("fork")


def _hold(
    how: Callable[[Path], AbstractContextManager[None]], folder: Path, said: "SimpleQueue[int]"
) -> None:
    with how(folder):
        child = FORK.Process(target=time.sleep, args=(600,))
        child.start()
        assert child.pid is not None
        time.sleep(0.2)  # it closes what it inherited first
        said.put(child.pid)
        time.sleep(600)


@contextmanager
def holding(
    folder: Path, how: Callable[[Path], AbstractContextManager[None]] = hold_folder
) -> Iterator[tuple[ForkProcess, int]]:
    """A process that holds the folder, and the number of one that it forked and that stays."""
    said: SimpleQueue[int] = FORK.SimpleQueue()
    process = FORK.Process(target=_hold, args=(how, folder, said))
    process.start()
    forked = said.get()
    try:
        yield process, forked
    finally:
        process.kill()
        process.join()
        os.kill(forked, signal.SIGKILL)
