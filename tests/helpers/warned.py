"""The warnings that the package logs: expected ones are named, all others fail their test."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

unexpected: list[str] = []
"""Messages of the warnings that were logged in this test and that no `warned` block named."""


class _Collect(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        unexpected.append(record.getMessage())


@contextmanager
def no_unexpected_warning() -> Iterator[None]:
    """Fails where the package logs a warning that no `warned` block within this one names."""
    handler = _Collect(logging.WARNING)
    unexpected.clear()
    logging.getLogger("scalekd").addHandler(handler)
    try:
        yield
        assert unexpected == []
    finally:
        logging.getLogger("scalekd").removeHandler(handler)


@contextmanager
def warned(pattern: str) -> Iterator[list[str]]:
    """Fails where no warning matches `pattern`; gives the messages of those that do, afterwards."""
    messages: list[str] = []
    before = len(unexpected)
    try:
        yield messages
    finally:
        logged = unexpected[before:]
        messages += [message for message in logged if re.search(pattern, message)]
        unexpected[before:] = [message for message in logged if message not in messages]
    assert messages, f"no warning matches {pattern!r}; logged: {logged}"
