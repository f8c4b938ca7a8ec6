"""Processes that were started by another one, and end with it.

A rank of `scalekd --devices` or of torchrun, a run that is trained in parallel, a process that
loads images: none of them outlives the process that started it by more than ten seconds, even if
that is killed (-9).
"""

import ctypes
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing.util import get_temp_dir

from scalekd.errors import InputError

LAUNCHER_PID = "SCALEKD_LAUNCHED_BY"
"""Environment variable with the process id of `scalekd --devices`, in the ranks it started."""

SECONDS_TO_SAVE = 7.0
"""How long a process may finish its step and save after the process that started it has ended."""

LONGEST_SOCKET_PATH = 103
"""Bytes of a Unix socket's path: 107 on Linux, 103 on macOS."""

BELOW_TEMPORARY_FOLDER = len("/pymp-12345678" * 2 + "/listener-12345678")
"""Bytes that multiprocessing adds to the temporary folder; the fork server has one of its own."""

PR_SET_PDEATHSIG = 1  # of Linux's <sys/prctl.h>


def _starter() -> int | None:
    """Process id of what started this process as a rank; None where nothing did."""
    if LAUNCHER_PID in os.environ:
        return int(os.environ[LAUNCHER_PID])
    return os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None


_STARTER = _starter()


def parent_is_gone() -> bool:
    """Whether the process that started this one, as a worker or as a rank, has ended."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        return not parent.is_alive()
    return _STARTER is not None and os.getppid() != _STARTER


def end_with_parent(stop: Callable[[], None] | None = None) -> None:
    """End this process when the process that started it has ended, which a thread watches.

    Args:
        stop: asks this process to save and end, for which it has `SECONDS_TO_SAVE`; without it this
            process is killed at once, on Linux by the kernel.
    """
    if multiprocessing.parent_process() is None and _STARTER is None:
        return
    if stop is None:
        ask_to_be_killed_with_parent()
    if parent_is_gone():
        os._exit(1)
    threading.Thread(target=_watch_parent, args=(stop,), daemon=True).start()


def ask_to_be_killed_with_parent() -> None:
    """Let Linux kill this process when the one that started it has ended; elsewhere do nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _watch_parent(stop: Callable[[], None] | None) -> None:
    while not parent_is_gone():
        time.sleep(0.25)
    if stop is not None:
        stop()
        time.sleep(SECONDS_TO_SAVE)
    os._exit(1)


def stop_with_launcher() -> None:
    """Make a rank save and end, as by SIGTERM, when what started the ranks has ended."""
    end_with_parent(lambda: os.kill(os.getpid(), signal.SIGTERM))


def socket_folder() -> str:
    """Make the folder for the sockets of this process and of its workers, once; return its path.

    It is deleted as this process exits. Without it each worker makes one of its own, which a killed
    worker leaves behind. It is in the temporary folder of the system (TMPDIR), or in /tmp where
    that has too long a path for a socket.

    Raises:
        InputError: neither can be used.
    """
    before = tempfile.tempdir
    if len(os.fsencode(tempfile.gettempdir())) + BELOW_TEMPORARY_FOLDER > LONGEST_SOCKET_PATH:
        tempfile.tempdir = "/tmp"
    try:
        return get_temp_dir()
    except OSError as error:
        raise InputError(
            f"no folder for the sockets of processes can be made in {tempfile.gettempdir()} "
            f"({error.strerror}): let TMPDIR be a writable folder with a short path"
        ) from error
    finally:
        tempfile.tempdir = before
