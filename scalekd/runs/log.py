"""A run folder's train.log: what the package logs while a job trains."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from scalekd.text import visible


@contextmanager
def logging_to(file: Path) -> Iterator[None]:
    """Inside, append the messages of the logger "scalekd" and of its children to `file`.

    Where logging is not configured, warnings are still written to stderr, as without this block,
    and messages of level INFO are written to the file only.

    Args:
        file: the log file; its folder must exist by the first message. Lines that cannot be
            written, for example to a full disk, are lost and end nothing.
    """
    logger = logging.getLogger("scalekd")
    level = logger.level
    handlers: list[logging.Handler] = [_LogFile(file)]
    if not logger.hasHandlers() and logging.lastResort is not None:
        handlers.append(logging.lastResort)
        logger.setLevel(level or logging.INFO)
    for handler in handlers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            logger.removeHandler(handler)
        logger.setLevel(level)


class _LogFile(logging.Handler):
    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = file
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        # Opened for each line: on a full disk, closing a file raises what writing it left undone.
        with suppress(OSError), self.file.open("a", errors="backslashreplace") as file:
            file.write(visible(self.format(record)) + "\n")
