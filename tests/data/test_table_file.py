"""Reading columns of tables: as spreadsheets and scripts write them, and damaged."""

import sys
from pathlib import Path

import pandas as pd
import pytest
from helpers.refusals import refused

from scalekd.data.table_file import read_table

WANTED = ("path", "label")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "a.csv"


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_the_files_of_spreadsheets_are_read(
    delimiter: str, encoding: str, newline: str, file: Path
) -> None:
    rows = [("path", "more", "label"), ('"a, b; c.jpg"', "", " Käfer "), ("d.jpg", "x", "蜂"), ()]
    file.write_bytes(newline.join(map(delimiter.join, rows)).encode(encoding))
    table = read_table(file, WANTED)
    assert table.names == ("path", "more", "label")
    assert table.columns == {"path": ["a, b; c.jpg", "d.jpg"], "label": ["Käfer", "蜂"]}
    assert [table.place(row) for row in range(2)] == ["line 2", "line 3"]


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"path,label\na.jpg,ant,3\n", ("line 2", "3 fields", "2")),
        (b"path,label\na.jpg\n", ("line 2", "1 fields")),
        (b"path,label\na.jpg,ant\nb.jpg, \n", ("line 3", "no label")),
        (b'path,label\n"a.jpg,ant\n', ("cannot be read",)),
        (b"path,label\n\xff.jpg,ant\n", ("no text in UTF-8",)),
        (b"path,label\n" + b"a" * 200_000 + b",ant\n", ("cannot be read", "limit")),
    ],
    ids=["too many", "too few", "no value", "open quote", "other text", "long"],
)
def test_damaged_text_is_refused_with_the_line(
    content: bytes, parts: tuple[str, ...], file: Path
) -> None:
    file.write_bytes(content)
    with refused(str(file), *parts):
        read_table(file, WANTED)


def test_an_empty_file_has_no_columns(file: Path) -> None:
    file.touch()
    assert read_table(file, WANTED).names == ()


def test_a_folder_is_no_table(tmp_path: Path) -> None:
    with refused(str(tmp_path), "no regular file"):
        read_table(tmp_path, WANTED)


def test_values_of_parquet_are_text(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    labels = pd.Series(["x", "y"], dtype="category")
    pd.DataFrame({"path": ["a", "b"], "label": labels, "more": [[1], [2]]}).to_parquet(file)
    assert read_table(file, WANTED).columns == {"path": ["a", "b"], "label": ["x", "y"]}
    pd.DataFrame({"path": ["a", "b"], "label": [True, False]}).to_parquet(file)
    assert read_table(file, WANTED).columns["label"] == ["True", "False"]


def test_other_values_of_parquet_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pd.DataFrame({"path": ["a"], "label": [1.5]}).to_parquet(file)
    with refused("label", "double", "integers"):
        read_table(file, WANTED)
    pd.DataFrame({"path": [{"bytes": b"a", "path": "b"}], "label": [1]}).to_parquet(file)
    with refused("path", "struct", "hf:FOLDER"):
        read_table(file, WANTED)
    pd.DataFrame({"path": ["a", None], "label": [1, 2]}).to_parquet(file)
    with refused("row 2", "no path"):
        read_table(file, WANTED)
    file.write_bytes(b"PAR1 and no more")
    with refused(str(file), "cannot be read as Parquet"):
        read_table(file, WANTED)


def test_without_pyarrow_the_package_to_install_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with refused("pyarrow", "scalekd[hub]", "CSV"):
        read_table(tmp_path / "a.parquet", WANTED)
