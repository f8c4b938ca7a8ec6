"""Files and folders that are complete or absent, whenever a process is killed.

Each is written under a temporary name and renamed at the end. The name is new and unpredictable and
its file is created, never opened, so nothing that is there already is touched: a link is not
followed, and a file of the user's is not taken for one of ours.
"""

import itertools
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Set
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from scalekd.errors import InputError

TEMPORARY_NAME = re.compile(r"\.scalekd-[0-9a-f]{16}\.part")
"""Temporary names, which nothing else makes."""


def refuse_existing(path: Path, remedy: str = "give another --out") -> None:
    """Raise InputError where there is anything at `path`, a link that leads nowhere included.

    Args:
        path: of a file or folder that is about to be made.
        remedy: what to do, as the message ends.
    """
    if os.path.lexists(path):
        raise InputError(f"{str(path)!r} exists and is not overwritten: {remedy}")


def check_new(path: Path, remedy: str = "give another --out") -> None:
    """Raise InputError where a file or folder cannot be made at `path`, as far as can be seen.

    Args:
        path: which must not exist.
        remedy: what to do if it does, as the message ends.
    """
    refuse_existing(path, remedy)
    parent = next(folder for folder in path.absolute().parents if os.path.lexists(folder))
    if not parent.is_dir():
        raise InputError(f"{str(path)!r} cannot be written: {str(parent)!r} is no folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"{str(path)!r} cannot be written: you may not write to {str(parent)!r}")


@contextmanager
def replacing(file: Path) -> Iterator[IO[bytes]]:
    """A stream whose content replaces that of `file`, or creates it, when the block ends.

    Raises:
        OSError: the disk is full, for example; the previous content is unchanged, as it is after
            any other exception in the block.
    """
    partial = _temporary_name(file.parent)
    stream = partial.open("xb")
    try:
        with stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_atomically(file: Path, content: bytes) -> None:
    """Replace the content of `file`, or create it.

    Raises:
        OSError: the disk is full, for example; the previous content is unchanged.
    """
    with replacing(file) as stream:
        stream.write(content)


def create_atomically(file: Path, content: bytes) -> None:
    """Create `file`.

    Raises:
        OSError: the file exists (FileExistsError), or the disk is full, for example.
    """
    partial = _temporary_name(file.parent)
    try:
        write_atomically(partial, content)
        _rename_to_new(partial, file)
    finally:
        partial.unlink(missing_ok=True)


def _rename_to_new(partial: Path, file: Path) -> None:
    """Give `partial` the name `file` too, or FileExistsError: renaming would replace a file."""
    try:
        os.link(partial, file)
    except FileExistsError:
        raise
    except OSError as error:  # a file system without hard links
        if os.path.lexists(file):
            raise FileExistsError(error.errno, "exists", str(file)) from error
        partial.replace(file)


@contextmanager
def new_path(path: Path) -> Iterator[Path]:
    """A path of the same name in a new folder beside `path`, for a file or a folder.

    What is there when the block ends becomes `path`; whatever else is in the new folder is removed.

    Raises:
        OSError: `path` is there by then (FileExistsError), or cannot be written; nothing is left
            behind, as after any other exception in the block.
    """
    folder = _temporary_name(path.parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir()
    try:
        partial = folder / path.name
        yield partial
        if partial.is_dir():
            partial.rename(path)
        else:
            with partial.open("rb") as written:
                os.fsync(written.fileno())
            _rename_to_new(partial, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """An empty folder beside `folder`, to which it is renamed when the block ends.

    Raises:
        OSError: `folder` is there and not empty, or cannot be written; nothing is left behind, as
            after any other exception in the block.
    """
    partial = _temporary_name(folder.parent)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial.mkdir()
    try:
        yield partial
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def remove_written_folder(folder: Path, names: Set[str]) -> None:
    """Remove a folder that an earlier process wrote, if it has files of these `names` alone."""
    if folder.is_dir() and not folder.is_symlink() and set(os.listdir(folder)) <= names:
        shutil.rmtree(folder)


def set_aside(path: Path) -> Path | None:
    """Rename a file, folder or link to NAME-before-1 and so on; returns its new name."""
    if not os.path.lexists(path):
        return None
    names = (path.with_name(f"{path.name}-before-{n}") for n in itertools.count(1))
    return path.rename(next(name for name in names if not os.path.lexists(name)))


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left under temporary names in `folder`, which we hold."""
    with suppress(OSError):
        for entry in os.scandir(folder):
            if TEMPORARY_NAME.fullmatch(entry.name):
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    os.unlink(entry.path)


def _temporary_name(folder: Path) -> Path:
    return folder / f".scalekd-{secrets.token_hex(8)}.part"
