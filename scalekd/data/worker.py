"""The worker processes of DataLoaders: how they start, and how they end."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.queues import Queue
from typing import NoReturn

from scalekd.distributed import ranks
from scalekd.processes import end_with_parent, socket_folder
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
    with _temporary_files_in(socket_folder()):  # which this process deletes
        forkserver.ensure_running()
    return "forkserver"


@contextmanager
def _temporary_files_in(folder: str) -> Iterator[None]:
    """Inside, processes are started that keep their temporary files in `folder`."""
    before = {name: value for name, value in os.environ.items() if name == "TMPDIR"}
    os.environ["TMPDIR"] = folder
    try:
        yield
    finally:
        del os.environ["TMPDIR"]
        os.environ.update(before)


def initialize_worker(_: int) -> None:
    """Make a worker process end with its parent, and only with its parent.

    A signal that stops a run is sent to all of its processes, but the main process still needs the
    batches of this one to finish its step. Without the main process the worker ends, which the
    child of a fork server would not notice by itself.
    """
    for received in STOP_SIGNALS:
        signal.signal(received, signal.SIG_IGN)
    end_with_parent()
    # A batch that cannot be handed over would be waited for; the main process explains the end. The
    # first is called where it cannot be put into the queue, the second where its memory cannot be
    # passed on: multiprocessing's thread for that prints its error and waits for the next request.
    Queue._on_queue_feeder_error = staticmethod(_end)  # type: ignore[attr-defined]
    sys.excepthook = _end


def _end(*_: object) -> NoReturn:
    os._exit(1)


def end_workers() -> None:
    """Kill this process's workers as it exits: it would wait for them, but they ignore signals."""
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()
