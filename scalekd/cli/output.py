"""What a command prints: stdout and stderr that may be lost, messages, and a bar of progress.

They are lost on a full disk, or by a reader or a terminal that goes away.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from scalekd.text import visible


class Output:
    """A text stream that writes nothing any more after its first error, which it remembers.

    Example:
        >>> with lossy_outputs() as stdout:
        ...     print("a result")
        a result
        >>> stdout.error is None
        True
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        """Write, or lose, `text`."""
        try:
            return self.stream.write(text)
        except OSError as error:
            self._close(error)
            return len(text)

    def flush(self) -> None:
        """Write, or lose, what is buffered."""
        try:
            self.stream.flush()
        except OSError as error:
            self._close(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def _close(self, error: OSError) -> None:
        """Let the stream end nowhere, with what Python has buffered and would write at its end."""
        self.error = error
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.stream.fileno())
        os.close(nowhere)
        self.stream.flush()


@contextmanager
def lossy_outputs() -> Iterator[Output]:
    """Inside, sys.stdout and sys.stderr raise no OSError; see `Output`.

    Returns:
        stdout.
    """
    before = sys.stdout, sys.stderr
    nowhere = os.open(os.devnull, os.O_RDWR)
    while nowhere <= 2:  # a closed stream: a file that is opened later must not take its number
        nowhere = os.dup(nowhere)
    os.close(nowhere)
    outputs = [Output(stream or open(os.devnull, "w")) for stream in before]  # noqa: SIM115
    sys.stdout, sys.stderr = outputs
    try:
        yield outputs[0]
    finally:
        for output in outputs:
            output.flush()
        sys.stdout, sys.stderr = before


def tell(message: str) -> None:
    """Write `scalekd: MESSAGE` to stderr as one line, and in one piece.

    `print` writes the end of a line separately where Python does not buffer (PYTHONUNBUFFERED): the
    lines of worker processes or ranks that have something to say at once would run together.
    """
    sys.stderr.write(visible(f"scalekd: {message}") + "\n")


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr while it is a terminal, which disappears at the end.

    Args:
        what: is done, in the plural.

    Returns:
        A function that is called with the number done and of all.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    console = Console(file=sys.stderr)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bars:
        task = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)
