"""The one exception for what the user can put right."""


class InputError(ValueError):
    """Bad input. The message is one line: what was wrong, with the value, and what to do.

    The command line prints it alone and exits with 2; in Python it is a `ValueError`.
    """

    def __init__(self, message: str) -> None:
        if "\nOriginal Traceback" in message:
            # What a loading process raised comes as its type and a traceback, which ends in it.
            message = message.strip().splitlines()[-1].partition("Error: ")[2]
        super().__init__(message)


class DivergedError(InputError):
    """A loss is no number any more, and no step of this run may be left out for it."""
