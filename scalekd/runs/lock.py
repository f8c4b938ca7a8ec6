"""Who trains in a run folder, by a lock that the system takes back however a process ends.

The file `.lock` is locked by every process that trains in its folder, and says which began. The
file alone means nothing: who was killed cannot remove it.
"""

import fcntl
import json
import os
import socket
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from multiprocessing.util import register_after_fork
from pathlib import Path
from typing import IO, Literal

from scalekd.errors import InputError

NAME = ".lock"
TRIES = 20
"""To lock, a twentieth of a second apart: `find_trainer` locks for a moment too."""


@dataclass(frozen=True)
class TrainingProcess:
    """The process that began to train in a folder.

    certain: it is known to run; else it began on another machine, or on a file system without
        locks, and was seen neither to end nor to be there.
    """

    host: str
    pid: int
    since: str
    certain: bool = True

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """The folder is this process's to train in, and of those that are `share_folder` it.

    Raises:
        InputError: others train in it, or it cannot be written to.
    """
    try:
        file = (folder / NAME).open("a+")
    except OSError as error:
        raise InputError(f"{str(folder)!r} cannot be written to: {error}") from error
    with file:
        # What is forked, such as loading processes, may outlive this process by seconds.
        register_after_fork(file, lambda inherited: inherited.close())
        if not _free(file):
            raise _taken(folder, _written(file))
        _lock(file, fcntl.LOCK_SH)  # for those beside
        me = TrainingProcess(
            socket.gethostname(), os.getpid(), datetime.now(UTC).isoformat(" ", "seconds")
        )
        _rewrite(file, json.dumps(asdict(me)))
        try:
            yield
        finally:
            _rewrite(file, "")


@contextmanager
def share_folder(folder: Path) -> Iterator[None]:
    """A process that trains for the one that has the folder, and may outlive it by a step."""
    if not (folder / NAME).is_file():
        yield
        return
    with (folder / NAME).open("r") as file:
        register_after_fork(file, lambda inherited: inherited.close())
        _lock(file, fcntl.LOCK_SH)
        yield


def refuse_if_training(folder: Path) -> None:
    """InputError where somebody is known to train in the folder."""
    there = find_trainer(folder)
    if there is not None and there.certain:
        raise _taken(folder, there)


def find_trainer(folder: Path) -> TrainingProcess | None:
    """Who trains in a folder; None where nobody does, or it is no run folder."""
    try:
        file = (folder / NAME).open("r+")
    except FileNotFoundError:
        return None
    except OSError:
        file = (folder / NAME).open("r")  # another user's
    with file:
        state, written = _try(file), _written(file)
    if state == "held":
        return written or TrainingProcess("this machine or another", 0, "a moment ago")
    if written is None or (state == "free" and written.host == socket.gethostname()):
        return None
    return replace(written, certain=False)


def _taken(folder: Path, by: TrainingProcess | None) -> InputError:
    return InputError(
        f"{str(folder)!r} is being trained in by {by or 'another process'}: wait for it, or give "
        "another --out"
    )


def _free(file: IO[str]) -> bool:
    for _ in range(TRIES):
        if _try(file) != "held":
            return True
        time.sleep(0.05)
    return False


def _try(file: IO[str]) -> Literal["held", "free", "unknown"]:
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
        warnings.warn(
            f"{file.name} cannot be locked here ({error}): take care that nothing else trains in "
            "this folder",
            stacklevel=2,
        )


def _written(file: IO[str]) -> TrainingProcess | None:
    file.seek(0)
    try:
        return TrainingProcess(**json.load(file))
    except (ValueError, TypeError):
        return None


def _rewrite(file: IO[str], text: str) -> None:
    """For whoever reads it; on a full disk it goes without."""
    with suppress(OSError):
        os.ftruncate(file.fileno(), 0)
        os.write(file.fileno(), text.encode())
