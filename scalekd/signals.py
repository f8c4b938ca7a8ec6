"""Signals that end a job: it finishes its step, saves, and leaves with the code that is usual."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

STOP_SIGNALS = [
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


class CtrlC:
    """Raises KeyboardInterrupt, as Python does, and remembers it: C code that asks an object for an
    attribute drops whatever is raised meanwhile, and then nobody would stop.

    received: whether it was called.
    """

    def __init__(self) -> None:
        self.received = False

    def __call__(self, number: int, frame: Any) -> None:
        """As a signal's handler."""
        self.received = True
        raise KeyboardInterrupt


@contextmanager
def remember_ctrl_c() -> Iterator[None]:
    """A Ctrl-C within is obeyed at the latest when a training begins; see `CtrlC`."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, CtrlC())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def stop_on_signal(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` at the first of `STOP_SIGNALS`; an Interrupted then says by which it was.

    A second Ctrl-C ends at once.

    Raises:
        KeyboardInterrupt: there was one before, and it was dropped.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    earlier = before[signal.SIGINT]
    if isinstance(earlier, CtrlC) and earlier.received:
        raise KeyboardInterrupt

    def gently(number: int, _: Any) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, before[signal.SIGINT])
        stop()

    for number in STOP_SIGNALS:
        signal.signal(number, gently)
    try:
        yield
    except Interrupted as stopped:
        raise Interrupted(stopped.message, *received[:1]) from stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def block_stop_signals() -> Iterator[None]:
    """Delay `STOP_SIGNALS`, also in child processes until they call `ignore_stop_signals`.

    Otherwise a signal that arrives before a child has set its handlers would kill it.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_stop_signals() -> None:
    """Leave `STOP_SIGNALS` to the parent, which began this process in `block_stop_signals`."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # what waited is gone with this
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
