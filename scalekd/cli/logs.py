"""What the package logs, and Python's warnings, as lines on stderr."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from scalekd.cli.output import tell


@contextmanager
def shown_logs() -> Iterator[None]:
    """Print what "scalekd" loggers say, from INFO on, and all warnings, within this block.

    Exceptions that Python can only report, for example while it deletes an object of which another
    exception left a half, are not printed.
    """
    logger = logging.getLogger("scalekd")
    level, handler, show_warning = logger.level, _Lines(), warnings.showwarning
    report_unraisable = sys.unraisablehook
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    warnings.showwarning = lambda message, *_, **__: logger.warning("%s", message)
    sys.unraisablehook = lambda ignored: logger.debug("%s", ignored.exc_value)
    try:
        yield
    finally:
        sys.unraisablehook = report_unraisable
        warnings.showwarning = show_warning
        logger.setLevel(level)
        logger.removeHandler(handler)


class _Lines(logging.Handler):
    """`scalekd: warning: MESSAGE`, each once; above the progress bars, while rich shows some."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno == logging.INFO and record.name.startswith(
            ("scalekd.jobs.", "scalekd.transfer.")
        ):
            return  # for train.log only: a job displays its own progress
        kind = f"{record.levelname.lower()}: " if record.levelno > logging.INFO else ""
        line = f"{kind}{record.getMessage()}"
        if line not in self.shown:
            self.shown.add(line)
            tell(line)
