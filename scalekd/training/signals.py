"""Signals that end a job: it finishes its step, saves, and leaves with the code that is usual."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

STOPPING = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
]
"""Ctrl-C, and what a cluster sends before it ends a job."""


class Interrupted(Exception):  # noqa: N818 -- no error: somebody's wish
    """The run was asked to stop; its state is in the checkpoint.

    code: to exit with: 130 after Ctrl-C, else 143.
    """

    def __init__(self, message: str = "", received: int = signal.SIGINT) -> None:
        super().__init__(message, received)
        self.message, self.received = message, received
        self.code = 130 if received == signal.SIGINT else 143

    def __str__(self) -> str:
        return self.message


@contextmanager
def stopping(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` at the first of `STOPPING`; an Interrupted then says by which it was.

    A second Ctrl-C ends at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    before = {number: signal.getsignal(number) for number in STOPPING}

    def gently(number: int, _: Any) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, before[signal.SIGINT])
        stop()

    for number in STOPPING:
        signal.signal(number, gently)
    try:
        yield
    except Interrupted as stopped:
        raise Interrupted(stopped.message, *received[:1]) from stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
