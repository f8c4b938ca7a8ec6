"""The one exception for what the user can put right."""


class InputError(ValueError):
    """Bad input. The message is one line: what was wrong, with the value, and what to do.

    The command line prints it alone and exits with 2; in Python it is a `ValueError`.
    """
