"""Exceptions for what the user can correct."""

from scalekd.text import visible


class InputError(ValueError):
    """Bad input. The message is one line: the value, why it is refused, and the remedy.

    Characters of foreign names that a terminal would obey are escaped in it; see `visible`.

    The command line prints only the message and exits with code 2; in Python it is a `ValueError`.

    Example:
        >>> raise InputError("devices is 0: it must be 1 or more")
        Traceback (most recent call last):
        scalekd.errors.InputError: devices is 0: it must be 1 or more
    """

    def __init__(self, message: str) -> None:
        if "\nOriginal Traceback" in message:
            # A DataLoader's worker sends a traceback as text; the message is in its last line.
            message = message.strip().splitlines()[-1].partition("Error: ")[2]
        super().__init__(visible(message))


def check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    """Raise an InputError unless `value`, of the argument `name`, is one of `choices`."""
    if value not in choices:
        raise InputError(f"{name} is {value!r}: it must be {' or '.join(map(repr, choices))}")


class DivergedError(InputError):
    """A loss is non-finite (NaN or Inf), and the run may skip no (more) step because of it."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message without its full stop, else its type."""
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")


def one_line(error: BaseException) -> str:
    """Return an error's message on one line without its full stop, 400 characters at most."""
    message = " ".join(str(error).split()) or type(error).__name__
    return (message if len(message) < 400 else message[:400] + "…").rstrip(".")
