"""Tables that name image files and their classes, one image a row: CSV, TSV and Parquet."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from scalekd.data.image_folder import FolderSamples
from scalekd.data.source import (
    Source,
    StoredSplit,
    build_source,
    build_validation_source,
    normal_name,
    without_labels,
)
from scalekd.data.splits import (
    SPLIT_NAMES,
    TRAINING_NAMES,
    VALIDATION_NAMES,
    build_held_out_source,
    first_named,
    hold_out,
    note_on_held_out,
    refuse_val_share,
    share_of,
)
from scalekd.data.table_file import TABLE_ENDINGS, Table, read_table
from scalekd.errors import InputError
from scalekd.recipe import Data

# fmt: off
PATH_COLUMNS = (
    "path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path",
)
# fmt: on
"""Names, in any case, of the column of the image files."""

LABEL_COLUMNS = ("label", "class", "class_name", "target", "category")
"""Names, in any case, of the column of the classes."""

SPLIT_COLUMNS = ("split",)
"""Names, in any case, of the column that says what each image is for."""

NAMED = 3
"""So many of the missing files are named in the message."""


@dataclass(frozen=True)
class ImageTable:
    """The images that a table names.

    Args:
        root: how messages name the table.
        folder: the table's, from which its paths start.
        paths: of all images, as the table has them.
        labels: of all images; empty where the table is used without labels.
        splits: numbers of the rows of each split; of one that is called train without a column of
            splits.
        has_splits: whether there is such a column.
        note: which columns are used.
    """

    root: str
    folder: str
    paths: Sequence[str]
    labels: Sequence[str]
    splits: dict[str, list[int]]
    has_splits: bool
    note: str

    def find_split(self, wanted: Sequence[str]) -> str | None:
        """The name of the split that is called as one of `wanted`; None where there is none."""
        return first_named(self.splits, wanted, f"the split column of {self.root}")

    def refuse(self, purpose: str, remedy: str) -> InputError:
        """The error of a table without images for a purpose."""
        return InputError(
            f"the split column of {self.root} has {', '.join(self.splits)}, and none {purpose}: "
            f"{remedy}"
        )

    def read_split(self, name: str) -> StoredSplit:
        """The images of a split, whose classes are its different labels."""
        rows = self.splits[name]
        files = [os.path.join(self.folder, self.paths[row]) for row in rows]
        identifiers = [self._identifier(self.paths[row]) for row in rows]
        if not self.labels:
            return StoredSplit(name=name, samples=FolderSamples(files), identifiers=identifiers)
        classes = _in_order({self.labels[row] for row in rows})
        numbers = {label: number for number, label in enumerate(classes)}
        targets = [numbers[self.labels[row]] for row in rows]
        return StoredSplit(
            name=name,
            samples=FolderSamples(files, targets),
            identifiers=identifiers,
            classes=classes,
            targets=torch.tensor(targets, dtype=torch.int64),
        )

    def _identifier(self, path: str) -> str:
        """The same wherever the table lies: beside its images, or with absolute paths to them."""
        below = os.path.relpath(os.path.join(self.folder, path), self.folder)
        outside = below.split(os.sep)[0] == os.pardir
        return os.path.normpath(path) if outside and os.path.isabs(path) else below


def is_table_name(root: str) -> bool:
    """Whether a file's name ends as a table's."""
    return root.lower().endswith(TABLE_ENDINGS)


def open_table(data: Data) -> Source:
    """Open the images that a table names to train on, and those to validate on.

    Raises:
        InputError: the table or a column cannot be read, a file is missing or named twice, a row
            has no label, or there are no images to train or to validate on.
    """
    table = read_image_table(data)
    name = table.find_split(TRAINING_NAMES)
    if name is None:
        raise table.refuse("to train on", "name a split train")
    training, notes = table.read_split(name), [table.note]
    if not training.classes:
        refuse_val_share(data, f"{data.root} is used without labels")
        return build_source(data, training, notes=notes)
    if len(training.classes) < 2:
        raise InputError(f"{data.root!r} has one class to train on; at least 2 are needed")
    validation_name = table.find_split(VALIDATION_NAMES)
    if validation_name is not None:
        refuse_val_share(data, f"the split column of {data.root} has {validation_name}")
        validation = table.read_split(validation_name)
        notes.append(f"accuracy is measured on the split {validation_name} of {data.root}")
        return build_source(data, training, validation, notes=notes)
    if table.has_splits and data.val_share is None:
        remedy = f"name one val, or give --data.val_share 0.1 to hold out a part of {name}"
        raise table.refuse("to validate on", remedy)
    training, validation = hold_out(training, share_of(data), data.root)
    why = f"{data.root} has no column {SPLIT_COLUMNS[0]}"
    if table.has_splits:
        why = f"the split column of {data.root} has none to validate on"
    notes.append(note_on_held_out(data, why, training, validation))
    return build_source(data, training, validation, notes=notes)


def open_table_validation(data: Data) -> Source:
    """Open the images of a table to evaluate on: its validation split, or without splits all.

    With `data.val_share` they are those that training holds out.
    """
    table = read_image_table(data)
    if not table.labels:
        raise without_labels(data.root)
    name = table.find_split(VALIDATION_NAMES)
    if name is not None:
        refuse_val_share(data, f"the split column of {data.root} has {name}")
        note = f"accuracy is measured on the split {name} of {data.root}"
        return build_validation_source(data, table.read_split(name), [table.note, note])
    name = table.find_split(TRAINING_NAMES)
    if name is None or (table.has_splits and data.val_share is None):
        remedy = "name one val, or give --data.val_share with the share that the training held out"
        raise table.refuse("to evaluate on", remedy)
    return build_held_out_source(data, table.read_split(name), [table.note])


def read_image_table(data: Data) -> ImageTable:
    """Read the paths, labels and splits of a table, and see that its images are there.

    Raises:
        InputError: a column, a value or a file is missing, or not as it must be.
    """
    with_labels = data.labels is not False
    wanted = PATH_COLUMNS + SPLIT_COLUMNS + (LABEL_COLUMNS if with_labels else ())
    table = read_table(Path(data.root), wanted)
    used = [table.require(PATH_COLUMNS, "the image files")]
    if with_labels:
        remedy = ", or train without labels with --data.labels false"
        used.append(table.require(LABEL_COLUMNS, "the classes", remedy))
    paths = table.columns[used[0]]
    if not paths:
        raise InputError(f"{data.root} has no rows: give one for each image")
    folder = os.path.dirname(data.root) or "."
    _check_files(table, paths, folder)
    splits = {"train": list(range(len(paths)))}
    if split := table.find(SPLIT_COLUMNS):
        splits = _read_splits(table, split)
    named = f"{used[0]} for the files" + (f" and {used[1]} for the classes" if with_labels else "")
    return ImageTable(
        root=data.root,
        folder=folder,
        paths=paths,
        labels=list(map(normal_name, table.columns[used[1]])) if with_labels else (),
        splits=splits,
        has_splits=split is not None,
        note=f"of the columns of {data.root} it uses {named}"
        + (f", and {split} for the splits" if split else ""),
    )


def _read_splits(table: Table, column: str) -> dict[str, list[int]]:
    """Numbers of the rows of each split."""
    splits: dict[str, list[int]] = {}
    for row, name in enumerate(table.columns[column]):
        if name.lower() not in SPLIT_NAMES:
            raise InputError(
                f"{table.file}, {table.place(row)} has the split {name!r}: it must be "
                f"{', '.join(SPLIT_NAMES[:-1])} or {SPLIT_NAMES[-1]}"
            )
        splits.setdefault(name, []).append(row)
    return splits


def _check_files(table: Table, paths: Sequence[str], folder: str) -> None:
    """Raise InputError where a file is named twice, or is missing."""
    first, files = dict[str, int](), [os.path.normpath(os.path.join(folder, p)) for p in paths]
    for row, file in enumerate(files):
        if (earlier := first.setdefault(file, row)) != row:
            raise InputError(
                f"{table.file}, {table.place(row)} names {paths[row]!r}, as {table.place(earlier)} "
                "does: name each image once"
            )
    missing = [row for row, file in enumerate(files) if not os.path.isfile(file)]
    if missing:
        named = ", ".join(f"{paths[row]!r} ({table.place(row)})" for row in missing[:NAMED])
        raise InputError(
            f"{len(missing)} of the {len(paths)} files that {table.file} names are missing, for "
            f"example {named}: give their paths from the folder of {table.file.name}"
        )


def _in_order(labels: set[str]) -> tuple[str, ...]:
    """The labels by their values where all are integers, else by their text."""
    if all(map(_is_integer, labels)):
        return tuple(sorted(labels, key=int))
    return tuple(sorted(labels))


def _is_integer(text: str) -> bool:
    """Whether this is how an integer is written, so that no two texts are the same number."""
    digits = text.removeprefix("-")
    return digits.isascii() and digits.isdigit() and len(text) < 20 and str(int(text)) == text
