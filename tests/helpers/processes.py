"""Processes that tests start, and what the system knows about them: descendants and ports."""

import contextlib
import ipaddress
import os
import signal
import subprocess
import time
import weakref
from collections.abc import Iterable
from pathlib import Path

LISTENING = "0A"

STARTED: "weakref.WeakSet[subprocess.Popen[str]]" = weakref.WeakSet()
"""Processes that must not outlive their test."""


def kill(process: subprocess.Popen[str]) -> None:
    """Kill (-9) the process, its workers, and its ranks with theirs."""
    ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for number in (process.pid, *map(int, ranks)):
        with contextlib.suppress(ProcessLookupError):  # a worker, in the group of its rank
            os.killpg(number, signal.SIGKILL)
    process.communicate()


def kill_what_is_left() -> None:
    """Kill those of `STARTED` that still run, because their test failed."""
    for process in list(STARTED):
        if process.poll() is None:
            with contextlib.suppress(FileNotFoundError):  # it ended meanwhile
                kill(process)


def descendants(process: int) -> set[int]:
    """All processes below `process`, however deep."""
    found: set[int] = set()
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for thread in Path(f"/proc/{process}/task").iterdir():
            for child in map(int, (thread / "children").read_text().split()):
                found |= {child, *descendants(child)}
    return found


def is_alive(process: int) -> bool:
    """Whether it runs: one that has ended and that nobody waited for does not."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def alive_after(processes: Iterable[int], seconds: float) -> set[int]:
    """Which of the processes have not ended within so many seconds."""
    deadline = time.monotonic() + seconds
    alive = set(filter(is_alive, processes))
    while alive and time.monotonic() < deadline:
        time.sleep(0.1)
        alive = set(filter(is_alive, alive))
    return alive


def listening_addresses(process: int) -> set[str]:
    """The local addresses at which a process waits for TCP connections."""
    sockets = set()
    for file in Path(f"/proc/{process}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            sockets.add(os.readlink(file))
    addresses = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{process}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENING and f"socket:[{fields[9]}]" in sockets:
                addresses.add(_address(fields[1].partition(":")[0]))
    return addresses


def _address(hexadecimal: str) -> str:
    """The address that Linux prints as 32-bit words in the byte order of the machine."""
    raw = bytes.fromhex(hexadecimal)
    words = [raw[start : start + 4][::-1] for start in range(0, len(raw), 4)]
    return str(ipaddress.ip_address(b"".join(words)))
