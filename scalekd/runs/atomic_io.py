"""Files that are complete or absent, whenever a process is killed, and reading what is there."""

import json
import os
from pathlib import Path
from typing import Any

import yaml

from scalekd.errors import InputError


def write_atomically(file: Path, content: bytes) -> None:
    """Replace the content of `file`, or create it.

    Raises:
        OSError: the disk is full, for example; the previous content is unchanged.
    """
    partial = file.with_suffix(".part")
    try:
        with partial.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(file)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def read_jsonl(file: Path) -> tuple[list[dict[str, Any]], int]:
    """Read a file of one JSON object a line.

    An unterminated last line is skipped and not counted: its writer was killed or is still writing.

    Returns:
        The objects, and the number of broken lines, as a full disk leaves them. A missing file has
        no lines.
    """
    if not file.is_file():
        return [], 0
    text = file.read_text(errors="replace")
    objects, broken = [], 0
    for line in text[: text.rfind("\n") + 1].splitlines():
        try:
            parsed = json.loads(line)
        except ValueError:
            parsed = None
        if isinstance(parsed, dict):
            objects.append(parsed)
        else:
            broken += 1
    return objects, broken


def read_mapping(file: Path) -> dict[str, Any]:
    """Read a YAML or JSON file that contains one mapping.

    Raises:
        InputError: the file is missing, cannot be read, or contains something else. The message
            has only the file's name.
    """
    try:
        content = yaml.safe_load(file.read_text())
    except FileNotFoundError as error:
        raise InputError(f"{file.name} is missing") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{file.name} cannot be read") from error
    if not isinstance(content, dict):
        raise InputError(f"{file.name} is empty or no mapping")
    return content
