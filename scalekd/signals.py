"""Signals that stop a job: it finishes its step, saves its state and exits with the usual code."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

STOP_SIGNALS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")
    if hasattr(signal, name)
]
"""Ctrl-C, the signals that a cluster sends before it ends a job, and that of a closed terminal."""

EXIT_CODES = {signal.SIGINT: 130, getattr(signal, "SIGHUP", None): 129}
"""Exit codes after signals; after any other it is 143."""


def handled_stop_signals() -> list[int]:
    """`STOP_SIGNALS`, without SIGHUP where the process ignores it, as under `nohup`."""
    hangup = getattr(signal, "SIGHUP", None)
    ignored = hangup is not None and signal.getsignal(hangup) == signal.SIG_IGN
    return [number for number in STOP_SIGNALS if not (ignored and number == hangup)]


class Interrupted(Exception):  # noqa: N818 -- no error: somebody asked for it
    """A run was asked to stop, and its state is in its checkpoint.

    Attributes:
        message: for the user.
        received: number of the signal.
        code: exit code of the process: 130 after Ctrl-C, 129 after SIGHUP, else 143.
    """

    def __init__(self, message: str = "", received: int = signal.SIGINT) -> None:
        super().__init__(message, received)
        self.message, self.received = message, received
        self.code = EXIT_CODES.get(received, 143)

    def __str__(self) -> str:
        return self.message


class CtrlC:
    """A handler of SIGINT that raises KeyboardInterrupt, as Python's own, and remembers it.

    C code that looks up an attribute drops an exception that is raised meanwhile, and other code
    turns it into an error of its own. Without a memory the program would then continue, or end as
    by that error. Its worker processes, which nobody needs any more, are killed.

    Attributes:
        received: whether it was called.
        ignored: whether it does nothing: the program says why it ends.
    """

    def __init__(self) -> None:
        self.received = self.ignored = False

    def __call__(self, number: int, frame: Any) -> None:
        """Handle the signal."""
        if self.ignored:
            return
        self.received = True
        for process in multiprocessing.active_children():
            process.kill()
        raise KeyboardInterrupt


@contextmanager
def remember_ctrl_c() -> Iterator[CtrlC]:
    """Inside, a Ctrl-C that was dropped is raised again when a training begins; see `CtrlC`.

    Where this is all that the program does, a Ctrl-C afterwards ends it without a word.
    """
    ctrl_c = CtrlC()
    if threading.current_thread() is not threading.main_thread():
        yield ctrl_c
        return
    before = signal.signal(signal.SIGINT, ctrl_c)
    try:
        yield ctrl_c
    finally:
        signal.signal(signal.SIGINT, _end_silently if before is _end_at_once else before)


def end_at_once_on_ctrl_c() -> None:
    """Make Ctrl-C end the program by one line, before it has anything to save or to clean up.

    Imports of C code may drop a KeyboardInterrupt, or end by another error.
    """
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, _end_at_once)


def _end_at_once(number: int, frame: Any) -> None:
    with suppress(OSError):
        os.write(2, b"scalekd: stopped before it had begun\n")
    _end_silently(number, frame)


def _end_silently(number: int, frame: Any) -> None:
    os._exit(EXIT_CODES[signal.SIGINT])


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
    before = {number: signal.getsignal(number) for number in handled_stop_signals()}
    ctrl_c = before[signal.SIGINT]
    if isinstance(ctrl_c, CtrlC) and ctrl_c.received:
        raise KeyboardInterrupt

    def stop_gently(number: int, _: Any) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, before[signal.SIGINT])
        stop()

    for number in before:
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
