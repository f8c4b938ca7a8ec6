"""Write an evaluation's tables and pictures into a folder."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, astuple, fields
from pathlib import Path
from typing import Any

from scalekd.atomic_io import check_new, new_folder
from scalekd.errors import InputError
from scalekd.evaluation.confusion import draw_confusion
from scalekd.evaluation.results import ClassResult, Confusion, Evaluation


def write_evaluation(evaluation: Evaluation, folder: Path) -> None:
    """Write an evaluation into a new folder, which is complete or does not exist.

    - evaluation.json: all numbers but the pairs of confused classes.
    - per_class.csv: a line for each class and model.
    - confusions.csv: a line for each pair of confused classes and model.
    - confusion.png, or of several models confusion-1.png, ...: their confusion matrices.

    Raises:
        InputError: the folder exists or cannot be written.
    """
    check_new(folder)
    try:
        with new_folder(folder) as partial:
            (partial / "evaluation.json").write_text(to_json(evaluation) + "\n")
            for number, result in enumerate(evaluation.models, 1):
                name = f"confusion-{number}.png" if len(evaluation.models) > 1 else "confusion.png"
                (partial / name).write_bytes(draw_confusion(result))
            rows = [(m.model, *astuple(c)) for m in evaluation.models for c in m.per_class]
            _write_table(partial / "per_class.csv", ClassResult, rows)
            rows = [(m.model, *astuple(c)) for m in evaluation.models for c in m.confusions]
            _write_table(partial / "confusions.csv", Confusion, rows)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{str(folder)!r} could not be written: {reason}") from error


def to_json(evaluation: Evaluation) -> str:
    """An evaluation as JSON, without the pairs of confused classes, which may be many."""
    plain: dict[str, Any] = asdict(evaluation)
    for result in plain["models"]:
        del result["confusions"]
    return json.dumps(plain, indent=2)


def _write_table(file: Path, kind: Any, rows: Iterable[Sequence[Any]]) -> None:
    names = ["class" if field.name == "name" else field.name for field in fields(kind)]
    file.write_bytes(to_csv([["model", *names], *rows]))


def to_csv(rows: Iterable[Sequence[Any]]) -> bytes:
    """Rows as CSV in UTF-8; the bytes of file names that are no text are as they are on disk."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode(errors="surrogateescape")
