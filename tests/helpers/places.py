"""What is in a folder, to see that nothing was lost or written."""

import os
from pathlib import Path


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
