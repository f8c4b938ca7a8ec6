"""Text from outside, such as names of files, classes and models, in what rich prints."""

from rich.markup import escape


def printable(text: object) -> str:
    """`str(text)` as rich's markup that prints it unchanged, brackets included."""
    return escape(str(text))
