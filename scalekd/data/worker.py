"""The processes that load images: how they start, and how they end."""

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
    """Of loading processes.

    What has threads of gloo's or NCCL's must not be forked: now and then the child hangs. Such a
    process's loaders are forked from a server, which has imported what they need. A run beside
    others is a spawned process, whose own would be spawned too: seconds for each.
    """
    if sys.platform != "linux":
        return None
    if ranks.world_size() == 1:
        return "fork"
    multiprocessing.set_forkserver_preload(["scalekd.data.forkserver"])
    forkserver.ensure_running()
    return "forkserver"


def serve_one_process(_: int) -> None:
    """What ends a run goes to all its processes; the main one still needs this one's batches.

    But without the main one it ends too, which a server's child would not notice by itself, and
    without a word of what it could not hand over then.
    """
    for received in STOP_SIGNALS:
        signal.signal(received, signal.SIG_IGN)
    sys.excepthook = _unless_parent_is_gone
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    _parent_is_gone(None)
    os._exit(1)


def _unless_parent_is_gone(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if not _parent_is_gone(1.0):
        sys.__excepthook__(kind, error, trace)


def _parent_is_gone(within: float | None) -> bool:
    """Waits for so many seconds, or for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    return bool(wait([parent.sentinel], within))


def end_workers() -> None:
    """At the end of a process, which would wait for those that outlive its signal to end."""
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()
