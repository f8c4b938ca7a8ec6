"""Reading columns of a CSV, TSV or Parquet file as text."""

import csv
import io
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scalekd.errors import InputError, one_line
from scalekd.reading import MAX_LINES_BYTES, open_regular

TABLE_ENDINGS = (".csv", ".tsv", ".parquet")
"""How the names of tables end, in lower case."""

DELIMITERS = ",;\t"
"""What may stand between the fields of a CSV file: spreadsheets of some countries write ;."""


@dataclass(frozen=True)
class Table:
    """Columns of a table, as text.

    Args:
        file: that has it.
        names: of all its columns.
        columns: values of those columns that were read, by name, stripped; none is empty.
        lines: of the file in which each row ends; empty for Parquet, which has none.
    """

    file: Path
    names: tuple[str, ...]
    columns: dict[str, list[str]]
    lines: Sequence[int] = ()

    def find(self, wanted: Collection[str]) -> str | None:
        """Name of the column that is called as one of `wanted`; None where there is none.

        Raises:
            InputError: there are several.
        """
        found = [name for name in self.names if name.lower() in wanted]
        if len(found) > 1:
            raise InputError(
                f"{self.file} has the columns {' and '.join(map(repr, found))}, and one of them is "
                "needed: rename or remove the others"
            )
        return found[0] if found else None

    def require(self, wanted: Collection[str], content: str, remedy: str = "") -> str:
        """Name of the column that is called as one of `wanted`.

        Raises:
            InputError: there is none, or there are several; the message says what its `content`
                would be.
        """
        name = self.find(wanted)
        if name is None:
            raise InputError(
                f"{self.file} has the columns {', '.join(map(repr, self.names))}, and none of "
                f"{content}: name one of them {next(iter(wanted))}{remedy}"
            )
        return name

    def place(self, row: int) -> str:
        """How messages name a row, counted from 0."""
        return _place(self.lines[row] if self.lines else None, row)


def read_table(file: Path, wanted: Collection[str]) -> Table:
    """Read those columns of a table whose names are `wanted`, which are in lower case.

    Raises:
        InputError: the file cannot be read, is damaged, or has a row without a value.
    """
    parquet = file.name.lower().endswith(".parquet")
    return _read_parquet(file, wanted) if parquet else _read_text(file, wanted)


def _read_text(file: Path, wanted: Collection[str]) -> Table:
    with open_regular(file, str(file)) as stream:
        if os.fstat(stream.fileno()).st_size > MAX_LINES_BYTES:
            raise InputError(f"{file} is larger than {MAX_LINES_BYTES} bytes: use Parquet")
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        try:
            header = text.readline()
            text.seek(0)
            reader = csv.reader(text, delimiter=_find_delimiter(file, header), strict=True)
            return _collect(file, reader, wanted)
        except csv.Error as error:
            raise InputError(
                f"{file} cannot be read after line {reader.line_num} ({error}): put quotes only "
                "around complete fields"
            ) from error
        except UnicodeDecodeError as error:
            raise InputError(f"{file} is no text in UTF-8: save it as UTF-8") from error


def _find_delimiter(file: Path, header: str) -> str:
    """The delimiter that makes most fields of the first line."""
    if file.name.lower().endswith(".tsv"):
        return "\t"
    return max(DELIMITERS, key=header.count)


def _collect(file: Path, reader: Any, wanted: Collection[str]) -> Table:
    rows: Iterator[list[str]] = iter(reader)
    names = tuple(name.strip() for name in next(rows, []))
    used = [index for index, name in enumerate(names) if name.lower() in wanted]
    columns: dict[int, list[str]] = {index: [] for index in used}
    lines = list[int]()
    for row in rows:
        if not any(map(str.strip, row)):
            continue
        line = reader.line_num
        if len(row) != len(names):
            raise InputError(
                f"{file}, line {line} has {len(row)} fields, and the first line has {len(names)}: "
                "put quotes around fields that contain the delimiter"
            )
        for index in used:
            value = row[index].strip()
            if not value:
                raise InputError(
                    f"{file}, line {line} has no {names[index]}: give it one, or remove the line"
                )
            columns[index].append(value)
        lines.append(line)
    return Table(file, names, {names[index]: columns[index] for index in used}, lines)


def _read_parquet(file: Path, wanted: Collection[str]) -> Table:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise InputError(
            f"{file} needs the package pyarrow: install scalekd[hub], or save it as CSV"
        ) from error
    with open_regular(file, str(file)) as stream:
        try:
            opened = parquet.ParquetFile(stream)
            names = tuple(opened.schema_arrow.names)
            used = [name for name in names if name.lower() in wanted]
            for name in used:
                _check_type(file, name, opened.schema_arrow.field(name).type)
            content = opened.read(columns=used)
        except InputError:
            raise
        except Exception as error:  # pyarrow raises many kinds for damaged files
            raise InputError(f"{file} cannot be read as Parquet ({one_line(error)})") from error
    columns = {name: _as_text(file, name, content[name].to_pylist()) for name in used}
    return Table(file, names, columns)


def _check_type(file: Path, name: str, kind: Any) -> None:
    """Raise InputError unless the values of a column of Parquet are text, integers or truths."""
    from pyarrow import types

    values = kind.value_type if types.is_dictionary(kind) else kind
    readable = (
        types.is_string,
        types.is_large_string,
        types.is_string_view,
        types.is_integer,
        types.is_boolean,
    )
    if not any(is_of(values) for is_of in readable):
        inside = types.is_struct(values) or types.is_binary(values)
        remedy = "make them text or integers"
        if inside:
            remedy = "if it has the images themselves, give their folder as hf:FOLDER"
        raise InputError(f"the column {name} of {file} is of type {values}: {remedy}")


def _as_text(file: Path, name: str, values: list[Any]) -> list[str]:
    texts = ["" if value is None else str(value).strip() for value in values]
    if "" in texts:
        raise InputError(
            f"{file}, {_place(None, texts.index(''))} has no {name}: give it one, or remove the row"
        )
    return texts


def _place(line: int | None, row: int) -> str:
    return f"row {row + 1}" if line is None else f"line {line}"
