"""Files that are whole or not there, whenever a process is killed."""

import json
import os
from pathlib import Path
from typing import Any


def metrics_file(out: Path) -> Path:
    """What the runs of a run folder record, a line for each report."""
    return out / "metrics.jsonl"


def write_atomically(file: Path, content: bytes) -> None:
    """Put `content` in `file`, in place of what is there.

    Raises:
        OSError: the disk is full or the like; what was there is as it was.
    """
    partial = file.with_suffix(".part")
    try:
        with partial.open("wb") as whole:
            whole.write(content)
            whole.flush()
            os.fsync(whole.fileno())
        partial.replace(file)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def read_jsonl(file: Path) -> tuple[list[dict[str, Any]], int]:
    """What the lines of a .jsonl file say, and how many of them are broken, by a full disk.

    A last line that is not at its end is left out: its writer was killed, or is at it. A file that
    is not there has no lines.
    """
    if not file.is_file():
        return [], 0
    text = file.read_text(errors="replace")
    lines, broken = [], 0
    for whole in text[: text.rfind("\n") + 1].splitlines():
        try:
            line = json.loads(whole)
        except ValueError:
            line = None
        if isinstance(line, dict):
            lines.append(line)
        else:
            broken += 1
    return lines, broken
