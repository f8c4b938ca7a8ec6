"""A process that holds a run folder's lock."""

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


def _live_on(own_pid: "SimpleQueue[int]") -> None:
    own_pid.put(os.getpid())  # now it has closed the lock file that it inherited
    time.sleep(600)


def _hold(
    lock: Callable[[Path], AbstractContextManager[None]],
    folder: Path,
    child_pids: "SimpleQueue[int]",
) -> None:
    with lock(folder):
        FORK.Process(target=_live_on, args=(child_pids,)).start()
        time.sleep(600)


@contextmanager
def holding(
    folder: Path, lock: Callable[[Path], AbstractContextManager[None]] = hold_folder
) -> Iterator[tuple[ForkProcess, int]]:
    """Start a process that holds `folder` by `lock`, and a child of it.

    Yields:
        The process, and the process id of its child, which lives on when the process is killed.
    """
    child_pids: SimpleQueue[int] = FORK.SimpleQueue()
    process = FORK.Process(target=_hold, args=(lock, folder, child_pids))
    process.start()
    child = child_pids.get()
    try:
        yield process, child
    finally:
        process.kill()
        process.join()
        os.kill(child, signal.SIGKILL)
