"""Two Unicode forms of one name were other classes that looked the same in the refusal, and what
may not be read was called missing or ended in a traceback."""

import os
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers.pictures import image_folder, open_folder, tar_folder
from helpers.refusals import refused

from scalekd.data.open import open_validation
from scalekd.data.webdataset import TarSamples
from scalekd.recipe import Data

COMPOSED = unicodedata.normalize("NFC", "café")
DECOMPOSED = unicodedata.normalize("NFD", "café")


@contextmanager
def without_rights(path: Path) -> Iterator[None]:
    """Take the right to read `path`, also from root."""
    for parent in reversed(path.parents[:-1]):
        if parent.stat().st_uid == os.geteuid() and "pytest" in str(parent):
            parent.chmod(0o755)
    path.chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65_534)
    try:
        yield
    finally:
        os.seteuid(user)
        path.chmod(0o755)


def test_both_forms_of_a_name_are_one_class(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "images", ("bee", COMPOSED), each=1)
    (root / "val" / COMPOSED).rename(root / "val" / DECOMPOSED)
    source = open_folder(root)
    assert [split.classes for split in source.splits] == [("bee", COMPOSED)] * 2
    assert source.notes == []


def test_both_forms_in_one_split_are_refused_distinguishably(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "images", ("bee", COMPOSED, DECOMPOSED), each=1)
    with refused(ascii(COMPOSED), ascii(DECOMPOSED), "Unicode"):
        open_folder(root)


@pytest.mark.parametrize("below", [".", "train", "val/ant", "val/ant/0.jpg"])
def test_a_folder_or_image_without_permission_is_named(below: str, tmp_path: Path) -> None:
    root = image_folder(tmp_path / "images", each=1)
    with without_rights(root / below), refused("no permission to read", str(root / below)):
        open_folder(root)
    if below in (".", "val/ant"):
        with without_rights(root / below), refused("no permission to read", str(root / below)):
            open_validation(Data(str(root)))


def test_a_root_in_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "locked" / "images", each=1)
    with without_rights(tmp_path / "locked"), refused("no permission to read", str(root)):
        open_folder(root)


def test_a_tar_file_without_permission_is_named(tmp_path: Path) -> None:
    root = tar_folder(tmp_path / "tars", tars=1)
    file = root / "train" / "0000.tar"
    with without_rights(file), refused("no permission to read", str(file)):
        TarSamples([file])


@pytest.mark.parametrize(
    ("root", "parts"),
    [
        ("x" * 300, ("data.root is 'xxx", "longer than 255 bytes")),
        ("x/" * 3000, ("no folder",)),
    ],
    ids=["long", "deep"],
)
def test_what_cannot_be_a_folders_name_is_refused(root: str, parts: tuple[str, ...]) -> None:
    with refused(*parts):
        open_folder(root)
