"""Signals that stop a job: it finishes its step, saves its state and exits with the usual code."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

STOP_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
]
"""Ctrl-C, and the signals that a cluster sends before it ends a job."""


class Interrupted(Exception):  # noqa: N818 -- no error: somebody asked for it
    """A run was asked to stop, and its state is in its checkpoint.

    Attributes:
        message: for the user.
        received: number of the signal.
        code: exit code of the process: 130 after Ctrl-C, else 143.
    """

    def __init__(self, message: str = "", received: int = signal.SIGINT) -> None:
        super().__init__(message, received)
        self.message, self.received = message, received
        self.code = 130 if received == signal.SIGINT else 143

    def __str__(self) -> str:
        return self.message


class CtrlC:
    """A handler of SIGINT that raises KeyboardInterrupt, as Python's own, and remembers it.

    C code that looks up an attribute drops an exception that is raised meanwhile. Without a memory
    the program would then continue.

    Attributes:
        received: whether it was called.
    """

    def __init__(self) -> None:
        self.received = False

    def __call__(self, number: int, frame: Any) -> None:
        """Handle the signal."""
        self.received = True
        raise KeyboardInterrupt


@contextmanager
def remember_ctrl_c() -> Iterator[None]:
    """Inside, a Ctrl-C that was dropped is raised again when a training begins; see `CtrlC`."""
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
    """Inside, the first of `STOP_SIGNALS` calls `stop`; a second Ctrl-C ends the program at once.

    Args:
        stop: asks what runs inside to finish its step, save, and raise `Interrupted`.

    Raises:
        Interrupted: it was raised inside; now it has the number of the signal.
        KeyboardInterrupt: there was a Ctrl-C before, and it was dropped; see `remember_ctrl_c`.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    ctrl_c = before[signal.SIGINT]
    if isinstance(ctrl_c, CtrlC) and ctrl_c.received:
        raise KeyboardInterrupt

    def stop_gently(number: int, _: Any) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, before[signal.SIGINT])
        stop()

    for number in STOP_SIGNALS:
        signal.signal(number, stop_gently)
    try:
        yield
    except Interrupted as interrupted:
        raise Interrupted(interrupted.message, *received[:1]) from interrupted
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
    """Leave `STOP_SIGNALS` to the parent, which started this process in `block_stop_signals`."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # a delayed one is dropped by this
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
