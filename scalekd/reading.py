"""Reading files that anybody may have written or damaged: bounded, checked, and refused by name.

Every reader refuses by an `InputError` that begins with the file's name, whatever the file holds.
A pipe, a device or a folder in a file's place is never waited for.
"""

import json
import os
import re
import stat
from pathlib import Path
from typing import IO, Any

import yaml

from scalekd.errors import InputError

MAX_BYTES = 2**18
"""Largest YAML or JSON file that is read; settings have a few thousand bytes."""

MAX_LINES_BYTES = 2**30
"""Largest file of one JSON object a line."""

MAX_DEPTH = 32
"""Deepest nesting of a YAML or JSON file."""


def open_regular(file: Path, name: str | None = None) -> IO[bytes]:
    """Open a regular file for reading.

    Args:
        file: the file.
        name: how the message calls it; by default the file's name.

    Raises:
        InputError: there is no such file, it may not be read, or it is something else.
    """
    name = file.name if name is None else name
    try:
        descriptor = open_without_waiting(file)
    except OSError as error:
        raise InputError(f"{name} {why_unreadable(error)}") from error
    except ValueError as error:  # a null byte in the name
        raise InputError(f"{name} cannot be read: {error}") from error
    if descriptor is None:
        raise InputError(f"{name} is no regular file")
    return os.fdopen(descriptor, "rb")


def open_without_waiting(file: Path | str, flags: int = os.O_RDONLY) -> int | None:
    """Open a regular file, without waiting for the other end of a pipe.

    Args:
        file: the file.
        flags: of `os.open`.

    Returns:
        Its descriptor; None where something else than a regular file is there.

    Raises:
        OSError: it cannot be opened.
        ValueError: its name has a null byte.
    """
    descriptor = os.open(file, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    return None


def why_unreadable(error: OSError) -> str:
    """Why a file or folder cannot be read, to follow its name: "is missing", for example."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return "is missing"
    if isinstance(error, PermissionError):
        return "cannot be read: you have no permission to read it"
    return f"cannot be read: {error.strerror or error}"


def read_text(file: Path, name: str | None = None, limit: int = MAX_BYTES) -> str:
    """Read a text file.

    Args:
        file: the file.
        name: how the message calls it; by default the file's name.
        limit: most bytes that it may have.

    Raises:
        InputError: the file cannot be read, is larger, or is no text.
    """
    name = file.name if name is None else name
    with open_regular(file, name) as stream:
        try:
            content = stream.read(limit + 1)
        except OSError as error:
            raise InputError(f"{name} {why_unreadable(error)}") from error
    if len(content) > limit:
        raise InputError(f"{name} is larger than {limit} bytes, which no such file is")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is no text in UTF-8") from error


def read_mapping(file: Path, name: str | None = None, limit: int = MAX_BYTES) -> dict[str, Any]:
    """Read a YAML or JSON file that contains one mapping, with text for keys.

    Raises:
        InputError: the file cannot be read or contains something else.
    """
    name = file.name if name is None else name
    text = read_text(file, name, limit)
    try:
        content = parse_json(text) if file.suffix == ".json" else parse_yaml(text)
    except (ValueError, yaml.YAMLError) as error:
        kind = "JSON" if file.suffix == ".json" else "YAML"
        raise InputError(f"{name} cannot be read as {kind}: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InputError(f"{name} is empty or no mapping")
    return content


def read_jsonl(file: Path) -> tuple[list[dict[str, Any]], int]:
    """Read a file of one JSON object a line.

    An unterminated last line is skipped and not counted: its writer was killed or is still writing.

    Returns:
        The objects, and the number of broken lines, as a full disk leaves them. A missing file has
        no lines.

    Raises:
        InputError: the file is there and cannot be read.
    """
    if not os.path.lexists(file):
        return [], 0
    objects, broken, size = [], 0, 0
    with open_regular(file) as stream:
        for line in stream:
            size += len(line)
            if size > MAX_LINES_BYTES:
                raise InputError(f"{file.name} is larger than {MAX_LINES_BYTES} bytes")
            if not line.endswith(b"\n") or not line.strip():
                continue
            try:
                parsed = parse_json(line.decode()) if len(line) < MAX_BYTES else None
            except ValueError:
                parsed = None
            if isinstance(parsed, dict):
                objects.append(parsed)
            else:
                broken += 1
    return objects, broken


def parse_json(text: str) -> Any:
    """Parse JSON.

    Raises:
        ValueError: it is no JSON, or nested too deeply.
    """
    try:
        content = json.loads(text)
    except RecursionError as error:
        raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels") from error
    _check_depth(content)
    return content


def _check_depth(content: Any) -> None:
    level, depth = [content], 0
    while level := [
        inner
        for outer in level
        if isinstance(outer, dict | list)
        for inner in (outer.values() if isinstance(outer, dict) else outer)
    ]:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")


def parse_yaml(text: str) -> Any:
    """Parse YAML of plain data.

    Numbers such as 1e-3 are numbers. Keys that are given twice, aliases of lists and mappings (of
    which a few lines make billions of values), and tags are refused.

    Raises:
        yaml.YAMLError: it is no such YAML, or larger or nested deeper than any settings.
    """
    if len(text) > MAX_BYTES:
        raise UnwantedYamlError(f"it is longer than {MAX_BYTES} characters")
    try:
        return yaml.load(text, Loader=_SettingsLoader)
    except UnwantedYamlError:
        raise
    except yaml.YAMLError as error:
        raise yaml.YAMLError(" ".join(str(error).split())) from error
    except (ValueError, RecursionError, OverflowError) as error:  # a date of month 13
        raise yaml.YAMLError(str(error)) from error


class UnwantedYamlError(yaml.YAMLError):  # type: ignore[misc]
    """YAML that a parser would read, and that is probably a mistake or an attack."""


class _SettingsLoader(yaml.SafeLoader):  # type: ignore[misc]
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        is_alias = self.check_event(yaml.AliasEvent)
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise UnwantedYamlError(f"it is nested deeper than {MAX_DEPTH} levels")
        node = super().compose_node(parent, index)
        self.depth -= 1
        if is_alias and not isinstance(node, yaml.ScalarNode):
            raise UnwantedYamlError("an alias of a list or mapping is not read: write it out")
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := next((key for key in keys if keys.count(key) > 1), None):
            raise UnwantedYamlError(f"the key {twice!r} is there twice: remove one")
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


_SettingsLoader.yaml_implicit_resolvers = {
    letter: [(tag, form) for tag, form in forms if not tag.endswith((":float", ":timestamp"))]
    for letter, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_SettingsLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9_]+|[0-9][0-9_]*(?=[eE]))([eE][-+]?[0-9]+)?$"
        r"|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)


def is_number(value: object, *, least: float = -1e300, most: float = 1e300) -> bool:
    """Whether a value that was read is a finite number from `least` to `most`."""
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


def is_whole(value: object, *, least: int = 0, most: int = 2**53) -> bool:
    """Whether a value that was read is a whole number from `least` to `most`."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
