"""The worker processes of DataLoaders: how they start, and how they end."""

import multiprocessing
import os
import signal
import sys
import threading
from multiprocessing import forkserver
from multiprocessing.connection import wait
from types import TracebackType

from scalekd.distributed import ranks
from scalekd.signals import STOP_SIGNALS


def start_method() -> str | None:
    """The multiprocessing start method of worker processes; None for the platform's default.

    A process that has threads of gloo or NCCL must not be forked: now and then the child hangs.
    With several ranks, worker processes are therefore forked from a server, which has imported what
    they need. With one rank they are forked outright: by default, a run that was spawned itself
    (`--parallel`) would spawn them, which takes seconds for each.
    """
    if sys.platform != "linux":
        return None
    if ranks.world_size() == 1:
        return "fork"
    multiprocessing.set_forkserver_preload(["scalekd.data.forkserver"])
    forkserver.ensure_running()
    return "forkserver"


def initialize_worker(_: int) -> None:
    """Make a worker process end with its parent, and only with its parent.

    A signal that stops a run is sent to all of its processes, but the main process still needs the
    batches of this one to finish its step. Without the main process the worker ends, which the
    child of a fork server would not notice by itself, and prints no traceback about batches that it
    could not hand over.
    """
    for received in STOP_SIGNALS:
        signal.signal(received, signal.SIG_IGN)
    sys.excepthook = _print_unless_parent_ended
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    _parent_ends_within(None)
    os._exit(1)


def _print_unless_parent_ended(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if not _parent_ends_within(1.0):
        sys.__excepthook__(kind, error, trace)


def _parent_ends_within(seconds: float | None) -> bool:
    """Wait for the parent process to end, at most so many seconds, or forever for None."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    return bool(wait([parent.sentinel], seconds))


def end_workers() -> None:
    """Kill this process's workers as it exits: it would wait for them, but they ignore signals."""
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()
