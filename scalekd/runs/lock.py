"""A lock on a folder that one process trains in; it also protects the folder of a cache.

Every process that trains in a folder holds a lock (flock) on the folder's file `.lock`, in which
the first of them writes its host and process id. The system releases the lock however a process
ends. The file by itself means nothing: a process that was killed cannot remove it.
"""

import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from multiprocessing.util import register_after_fork
from pathlib import Path
from typing import IO, Literal

from scalekd.errors import InputError
from scalekd.reading import is_whole, open_without_waiting, parse_json

logger = logging.getLogger(__name__)

NAME = ".lock"
TRIES = 20
"""Attempts to lock, 1/20 second apart: `find_process` holds the lock for a moment, too."""


@dataclass(frozen=True)
class TrainingProcess:
    """The process that started to train in a folder.

    Attributes:
        host: its machine.
        pid: its process id on that machine.
        since: when it started, in UTC.
        certain: whether it is certainly running. False where it started on another machine or on a
            file system without locks, so that its end cannot be observed.
    """

    host: str
    pid: int
    since: str
    certain: bool = True

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Lock `folder` for this process, and for the processes that `share_folder` with it.

    Raises:
        InputError: other processes train in the folder, or it cannot be written to.
    """
    try:
        file = _open(folder, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise InputError(f"{str(folder)!r} cannot be written to: {error}") from error
    with file:
        # Forked processes, such as those that load images, may outlive this process by seconds.
        register_after_fork(file, lambda inherited: inherited.close())
        if not _wait_until_free(file):
            raise _refusal(folder, _read_process(file))
        _lock(file, fcntl.LOCK_SH)  # shared with the processes that train in parallel
        process = TrainingProcess(
            socket.gethostname(), os.getpid(), datetime.now(UTC).isoformat(" ", "seconds")
        )
        _rewrite(file, json.dumps(asdict(process)))
        try:
            yield
        finally:
            _rewrite(file, "")


@contextmanager
def share_folder(folder: Path) -> Iterator[None]:
    """Share the lock of the process that holds `folder`; this process may outlive it by a step."""
    if not (folder / NAME).is_file():
        yield
        return
    with _open(folder, os.O_RDONLY) as file:
        register_after_fork(file, lambda inherited: inherited.close())
        _lock(file, fcntl.LOCK_SH)
        yield


def find_process(folder: Path) -> TrainingProcess | None:
    """The process that trains in `folder`; None where there is none, no such run folder, or none
    whose lock may be read."""
    try:
        try:
            file = _open(folder, os.O_RDWR)
        except PermissionError:
            file = _open(folder, os.O_RDONLY)  # it is another user's
    except OSError:
        return None
    with file:
        state, process = _try_to_lock(file), _read_process(file)
    if state == "held":
        return process or TrainingProcess("this machine or another", 0, "a moment ago")
    if process is None or (state == "free" and process.host == socket.gethostname()):
        return None
    return replace(process, certain=False)


def remove(folder: Path) -> None:
    """Remove the lock of a folder that this process holds, and that is about to be removed."""
    (folder / NAME).unlink(missing_ok=True)


def _open(folder: Path, flags: int) -> IO[str]:
    """Open the lock's file, which is no link, pipe or device.

    Raises:
        OSError: it is one, or cannot be opened.
    """
    descriptor = open_without_waiting(folder / NAME, flags | os.O_NOFOLLOW)
    if descriptor is None:
        raise OSError(f"its {NAME} is no regular file")
    return os.fdopen(descriptor, "r" if flags & os.O_ACCMODE == os.O_RDONLY else "r+")


def _refusal(folder: Path, process: TrainingProcess | None) -> InputError:
    return InputError(
        f"{str(folder)!r} is being trained in by {process or 'another process'}: wait for it, or "
        "give another --out"
    )


def _wait_until_free(file: IO[str]) -> bool:
    for _ in range(TRIES):
        if _try_to_lock(file) != "held":
            return True
        time.sleep(0.05)
    return False


def _try_to_lock(file: IO[str]) -> Literal["held", "free", "unknown"]:
    """Take the exclusive lock where it is free; "unknown" on a file system without locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return "held"
    except OSError:
        return "unknown"
    return "free"


def _lock(file: IO[str], kind: int) -> None:
    try:
        fcntl.flock(file, kind)
    except OSError as error:
        logger.warning(
            "%s cannot be locked on this file system (%s): make sure that nothing else trains in "
            "this folder",
            file.name,
            error,
        )


def _read_process(file: IO[str]) -> TrainingProcess | None:
    """The process that the file names; None where it is empty or contains something else."""
    file.seek(0)
    try:
        plain = parse_json(file.read(10_000))
        process = TrainingProcess(plain["host"], plain["pid"], plain["since"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
    texts = isinstance(process.host, str) and isinstance(process.since, str)
    return process if texts and is_whole(process.pid) else None


def _rewrite(file: IO[str], text: str) -> None:
    """Replace the file's text, for people and `find_process`; a full disk leaves it empty."""
    with suppress(OSError):
        os.ftruncate(file.fileno(), 0)
        os.write(file.fileno(), text.encode())
