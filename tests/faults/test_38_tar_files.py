"""Damaged and hostile tar files: those that were cut off between two samples passed as complete,
others filled the memory or ended in a traceback."""

import io
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.pictures import open_folder, png, tar, tar_folder
from helpers.refusals import refused


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tar_folder(tmp_path / "tars")


def declared(file: Path, name: str, size: int, kind: bytes = tarfile.REGTYPE) -> None:
    """Append a member that declares `size` bytes, which are a hole in the file."""
    good = file.read_bytes().rstrip(b"\0")
    good = good.ljust(-(-len(good) // 512) * 512, b"\0")
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    header = info.tobuf(tarfile.GNU_FORMAT)
    with file.open("wb") as content:
        content.write(good + header)
        content.truncate(len(good) + 512 + -(-size // 512) * 512 + 1024)


def test_a_tar_file_that_is_cut_off_after_a_sample_is_refused(root: Path) -> None:
    file = root / "train" / "0001.tar"
    with tarfile.open(file) as archive:
        ends = [m.offset_data + -(-m.size // 512) * 512 for m in archive.getmembers()]
    content = file.read_bytes()
    for end in (ends[1], ends[-1], ends[-1] + 100):
        file.write_bytes(content[:end])
        with refused(str(file), "cut off"):
            open_folder(root)
    file.write_bytes(content[: ends[-1] + 1024])
    assert open_folder(root).classes == 3


@pytest.mark.parametrize("ending", ["cls", "json"])
def test_a_giant_label_is_refused_without_being_read(ending: str, root: Path) -> None:
    file = root / "train" / "0002.tar"
    declared(file, f"000011.{ending}", 6 * 2**30)
    with refused(str(file), f"000011.{ending}", "too many for a label"):
        open_folder(root)


def test_a_giant_image_is_refused_without_being_read(root: Path) -> None:
    file = root / "train" / "0002.tar"
    declared(file, "x.jpg", 3 * 2**30)
    with refused(str(file), "sample 'x'", "more than 1 GiB"):
        open_folder(root)


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_a_giant_header_is_refused_without_being_read(kind: bytes, root: Path) -> None:
    file = root / "train" / "0002.tar"
    declared(file, "x", 3 * 2**30, kind)
    with refused(str(file), "damaged"):
        open_folder(root)


def test_a_chain_of_headers_is_refused(root: Path) -> None:
    file = root / "train" / "0002.tar"
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 0
    file.write_bytes(info.tobuf(tarfile.USTAR_FORMAT) * 20_000 + bytes(1024))
    with refused(str(file), "damaged"):
        open_folder(root)


def test_a_size_below_zero_is_refused(root: Path) -> None:
    file = root / "train" / "0002.tar"
    content = bytearray(file.read_bytes())
    content[124:136] = b"\xff" * 8 + struct.pack(">i", -1024)
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content[:512])
    file.write_bytes(content)
    with refused(str(file), "damaged"):
        open_folder(root)


def test_a_sparse_member_is_refused(root: Path) -> None:
    file = root / "train" / "0002.tar"
    pax = {
        "GNU.sparse.major": "0",
        "GNU.sparse.minor": "1",
        "GNU.sparse.size": "9",
        "GNU.sparse.numblocks": "1",
        "GNU.sparse.map": "0,9",
    }
    with tarfile.open(file, "w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("a.png")
        info.size, info.pax_headers = len(png(1)), pax
        archive.addfile(info, io.BytesIO(png(1)))
    with refused(str(file), "sparse"):
        open_folder(root)


NESTED = b"[" * 500_000


@pytest.mark.parametrize(
    ("members", "facts"),
    [
        ({"a.json": b'{"label": ' + NESTED + b"]" * 500_000 + b"}"}, ["sample 'a'", "from 0 on"]),
        ({"a.json": NESTED}, ["sample 'a'", "from 0 on"]),
        ({"a.json": b'{"label": ' + b"1" * 10_000 + b"}"}, ["sample 'a'", "from 0 on"]),
        ({"a.json": b'{"label": 1.5}'}, ["'1.5'", "from 0 on"]),
        ({"a.json": b'{"label": true}'}, ["'True'", "from 0 on"]),
        ({"a.json": b'{"label": NaN}'}, ["'nan'", "from 0 on"]),
        ({"a.cls": b"1_0"}, ["'1_0'", "from 0 on"]),
        ({"a.cls": "\u0661".encode()}, ["from 0 on"]),
        ({"a.cls": b"3000000"}, ["label 3000000", "without gaps"]),
    ],
    ids=["deep", "open", "long", "fraction", "truth", "NaN", "underscore", "script", "far"],
)
def test_a_label_that_is_no_class_is_refused(
    members: dict[str, bytes], facts: list[str], root: Path
) -> None:
    tar(root / "train" / "0003.tar", {"a.png": png(1), **members})
    with refused(*facts, str(root)):
        open_folder(root)


@pytest.mark.parametrize(
    "harm",
    [lambda c: c[:700], lambda c: c[512:], lambda c: b"\xff" * len(c), lambda c: c[:512] * 3],
    ids=["within a member", "without first header", "other bytes", "headers only"],
)
def test_other_damage_is_refused(harm: Callable[[bytes], bytes], root: Path) -> None:
    file = root / "val" / "0000.tar"
    file.write_bytes(harm(file.read_bytes()))
    with refused(str(file)):
        open_folder(root)


def test_a_giant_image_in_a_folder_is_refused_without_being_read(tmp_path: Path) -> None:
    file = tmp_path / "flat" / "a.tif"
    file.parent.mkdir()
    with file.open("wb") as content:
        content.truncate(3 * 2**30)
    with refused(str(file), "more than 1 GiB"):
        open_folder(tmp_path / "flat")
