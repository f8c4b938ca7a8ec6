"""Text from outside, such as names of files, classes and models, as it may be printed.

A name may hold anything: control characters that move a terminal's cursor or set its title, bytes
that are no text, characters that reverse the order of reading, and rich's markup. Everything that
the command line prints passes `visible`; what rich prints also passes `printable`.
"""

import sys
from typing import Any, TextIO


def visible(text: object) -> str:
    """`str(text)` on one line, with all that cannot be seen as an escape such as `\\x1b`."""
    plain = str(text)
    return plain if plain.isprintable() else "".join(map(_visible_character, plain))


def printable(text: object) -> str:
    """`visible(text)` as rich's markup that prints it unchanged, brackets included."""
    from rich.markup import escape

    return escape(visible(text))


def build_console(**options: Any) -> Any:
    """A rich console that prints names as they are: no smileys in place of :words:, no colours for
    numbers."""
    from rich.console import Console

    return Console(**{"highlight": False, "emoji": False, **options})


def accept_all_characters(*streams: TextIO) -> None:
    """Let streams of any encoding take any text: what they cannot encode becomes an escape."""
    for stream in streams or (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")


def _visible_character(character: str) -> str:
    if character.isprintable():
        return character
    if "\udc80" <= character <= "\udcff":  # a byte of a name that is no text
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()
