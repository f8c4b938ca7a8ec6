"""Walking folders: which files are images, and what is skipped, with a count."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from scalekd.data.decoding import is_image_name, unreadable
from scalekd.errors import InputError

SYSTEM_NAMES = {
    "__macosx",
    "__pycache__",
    "@eadir",
    "@recycle",
    "@recently-snapshot",
    "@tmp",
    "#recycle",
    "#snapshot",
    "$recycle.bin",
    "lost+found",
    "network trash folder",
    "system volume information",
    "temporary items",
    "thumbs.db",
}
"""Names, in lower case, that operating systems and file servers give to folders of their own."""

Identity = tuple[int, int]
"""Device and number of a folder: the same for all paths that lead to it."""


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden by its name, or the system's: no class and no image."""
    return name[:1] == "." or name.lower() in SYSTEM_NAMES


@dataclass
class Tally:
    """Counts paths, and has one of them as an example."""

    count: int = 0
    example: str = ""

    def add(self, path: str) -> None:
        """Count a path."""
        self.count += 1
        self.example = min(self.example or path, path)


@dataclass
class Skipped:
    """What a walk skipped.

    Attributes:
        others: files that are no images by their names.
        hidden: hidden folders, and the system's, where a class folder might be.
        links: links to folders that are read anyway, or that lead upwards.
        special: FIFOs, devices and sockets that have an image's name.
        loose: images beside class folders, which have no class.
        empty: class folders without images.
    """

    others: Tally = field(default_factory=Tally)
    hidden: Tally = field(default_factory=Tally)
    links: Tally = field(default_factory=Tally)
    special: Tally = field(default_factory=Tally)
    loose: Tally = field(default_factory=Tally)
    empty: Tally = field(default_factory=Tally)

    def notes(self, root: str) -> list[str]:
        """One line for each kind of what was skipped below `root`."""
        reasons = (
            (self.others, "no images by their names", "the files"),
            (self.hidden, "hidden or the system's", "the folders"),
            (self.links, "to folders that are read anyway", "the links"),
            (self.special, "no regular files", "the files"),
            (self.loose, "in no class folder", "the images"),
            (self.empty, "without images", "the class folders"),
        )
        return [
            f"skipped, {why}: {tally.count} of {what} in {root}, for example {tally.example}"
            for tally, why, what in reasons
            if tally.count
        ]


def walk(
    tops: list[str], barred: set[Identity], skipped: Skipped
) -> dict[str, list[tuple[str, list[str]]]]:
    """List the images below each of several folders, every folder once whatever links lead to it.

    Links are followed after all else, and not to folders that are read already or barred: a link
    that leads upwards would multiply images, and put them into the wrong class.

    Args:
        tops: the folders.
        barred: folders that no link may lead to.
        skipped: collects what is skipped.

    Returns:
        For each top the folders below it and their images' sorted names, sorted by folder.

    Raises:
        InputError: a folder cannot be read, or a link to an image leads nowhere.
    """
    found: dict[str, list[tuple[str, list[str]]]] = {top: [] for top in tops}
    visited = barred | {identity(top) for top in tops}
    waiting, links = [(top, top) for top in tops], list[tuple[str, str]]()
    while waiting or links:
        if not waiting:
            waiting, links = _unvisited(links, visited, skipped), []
            continue
        top, folder = waiting.pop()
        images, subfolders = list[str](), list[tuple[str, str]]()
        for entry in scan(folder):
            if is_hidden(entry.name):
                continue
            if is_file(entry):
                if is_image_name(entry.name):
                    images.append(entry.name)
                else:
                    skipped.others.add(entry.path)
            elif is_folder(entry):
                (links if entry.is_symlink() else subfolders).append((top, entry.path))
            elif is_image_name(entry.name):
                skipped.special.add(entry.path)
        waiting += _unvisited(subfolders, visited, skipped)
        if images:
            found[top].append((folder, sorted(images)))
    return {top: sorted(folders) for top, folders in found.items()}


def has_images(root: Path) -> bool:
    """Whether there is an image below a folder."""
    waiting, visited = [str(root)], identities_upwards(root)
    while waiting:
        for entry in scan(waiting.pop()):
            if is_hidden(entry.name):
                continue
            if is_folder(entry):
                if (found := identity(entry.path)) not in visited:
                    visited.add(found)
                    waiting.append(entry.path)
            elif is_image_name(entry.name) and is_file(entry):
                return True
    return False


def scan(folder: str | Path) -> Iterator[os.DirEntry[str]]:
    """The entries of a folder.

    Raises:
        InputError: the folder cannot be read.
    """
    with readable(folder), os.scandir(folder) as entries:
        yield from entries


@contextmanager
def readable(path: str | Path) -> Iterator[None]:
    """Raise what the operating system says about a file or folder as one line."""
    try:
        yield
    except OSError as error:
        raise unreadable(path, error) from error


def identity(folder: str | Path) -> Identity:
    """Device and number of a folder."""
    with readable(folder):
        status = os.stat(folder)
    return status.st_dev, status.st_ino


def identities_upwards(folder: Path) -> set[Identity]:
    """The identities of a folder and of all that it is in."""
    resolved = folder.resolve()
    return {identity(parent) for parent in (resolved, *resolved.parents)}


def _unvisited(
    folders: list[tuple[str, str]], visited: set[Identity], skipped: Skipped
) -> list[tuple[str, str]]:
    """Those of `folders` that were not visited; they count as visited from now on."""
    unvisited = []
    for top, path in sorted(folders):
        if (found := identity(path)) in visited:
            skipped.links.add(path)
        else:
            visited.add(found)
            unvisited.append((top, path))
    return unvisited


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one; a link to itself is none."""
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def is_file(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a regular file; InputError where a link to an image leads nowhere."""
    try:
        if entry.is_file():
            return True
        dangling = entry.is_symlink() and not os.path.exists(entry.path)
    except PermissionError as error:
        raise unreadable(entry.path, error) from error
    except OSError:  # a link to itself
        dangling = True
    if dangling and is_image_name(entry.name):
        raise InputError(
            f"the image {entry.path!r} is a link that leads nowhere: bring back what it leads to, "
            "or remove it"
        )
    return False
