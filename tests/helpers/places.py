"""Folders: what is in one, to see that nothing was lost or written; one for temporary files."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def snapshot(root: Path) -> dict[str, bytes | str]:
    """Every path below `root`: the content of files, the target of links, "folder", "other"."""
    found: dict[str, bytes | str] = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = f"link to {os.readlink(path)}"
        elif path.is_file():
            found[name] = path.read_bytes()
        else:
            found[name] = "folder" if path.is_dir() else "other"
    return found


@contextmanager
def temporary_folder_below(root: Path) -> Iterator[None]:
    """Inside, ROOT/temporary is TMPDIR, by a path that is short enough for sockets in it."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder, pytest.MonkeyPatch.context() as patch:
        (root / "temporary").symlink_to(folder)
        patch.setenv("TMPDIR", folder)
        yield
