"""The state of run folders, read from their files, and the comparison of several."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

import matplotlib
from matplotlib.figure import Figure

from scalekd.atomic_io import create_atomically, refuse_existing
from scalekd.errors import InputError
from scalekd.reading import is_number, is_whole, read_mapping, why_unreadable
from scalekd.recipe import Method, flatten_settings
from scalekd.runs import lock
from scalekd.runs.curves import Curves, draw, has_accuracy, lines_by_run
from scalekd.runs.folder import RunFolder, find_run_folders
from scalekd.runs.result import (
    METHOD_NAMES,
    TRANSFERS,
    Result,
    Run,
    accuracy_gains,
    methods_to_train,
    read_metrics,
    read_results,
)

T = TypeVar("T")

FolderState = Literal["running", "perhaps running", "stopped", "finished"]


@dataclass(frozen=True)
class RunFolderStatus:
    """The state of a run folder, as far as its files can be read.

    Attributes:
        folder: its path.
        state: "perhaps running" where a process on another machine may train in it.
        step: optimizer steps so far, the sum over its runs.
        steps: optimizer steps when all runs are finished; None before the first line of metrics.
        process: that trains in it, where it is running or perhaps running.
        teacher: its name; None for a supervised baseline.
        student: its name.
        methods: in the order in which they are trained.
        seeds: of each method.
        teacher_top1: the teacher's accuracy (a share), where it was measured.
        top1: accuracies (shares) of the finished runs by method and seed.
        loss: final losses of the finished runs by method and seed, where there are no labels.
        gain: percentage points by which the folder's first method exceeds another, for each seed
            that both finished.
        current_top1: newest accuracy (a share) of the first method, while no run is finished.
        seconds: training time, the sum over its runs.
        date: when it was last written to, in UTC.
        settings: the recipe by dotted names.
        problems: files that could not be read, and why.
        transfer: what a student is trained for after its distillation, such as "segmentation"; None
            of a distillation. Its backbone is then the `student`.
        scores: newest scores (shares) of a transfer, by name.
    """

    folder: str
    state: FolderState
    step: int = 0
    steps: int | None = None
    process: lock.TrainingProcess | None = None
    teacher: str | None = None
    student: str | None = None
    methods: list[Method] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    teacher_top1: float | None = None
    top1: dict[Method, dict[int, float]] = field(default_factory=dict)
    loss: dict[Method, dict[int, float]] = field(default_factory=dict)
    gain: dict[Method, list[float]] = field(default_factory=dict)
    current_top1: float | None = None
    seconds: float = 0.0
    date: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    transfer: str | None = None
    scores: dict[str, float] = field(default_factory=dict)


def read_run_folders(roots: Sequence[Path]) -> list[RunFolderStatus]:
    """The state of every run folder at or below `roots`, the newest first.

    Raises:
        InputError: one of the roots is no folder.
    """
    for root in roots:
        try:
            os.scandir(root).close()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise InputError(f"there is no folder {str(root)!r}") from error
        except OSError as error:
            raise InputError(f"{str(root)!r} {why_unreadable(error)}") from error
    folders = {f.path.resolve(): f for root in roots for f in find_run_folders(root)}
    statuses = [read_run_folder(folder) for folder in folders.values()]
    return sorted(statuses, key=lambda status: status.date or "", reverse=True)


def read_run_folder(folder: RunFolder) -> RunFolderStatus:
    """The state of one run folder; what cannot be read is listed in `problems`."""
    problems: list[str] = []
    settings = _read_mapping(folder.settings, problems)
    if isinstance(settings.get("backbone"), str):
        return _read_transfer(folder, settings, problems)
    if settings and not _is_recipe(settings):
        problems.append("settings.yaml is no recipe")
        settings = {}
    main = settings.get("method", "scalekd")
    methods = (
        methods_to_train(settings.get("teacher"), settings.get("compare", []), main)
        if settings
        else []
    )
    seeds = settings.get("seeds", [])
    runs = {Run(method, seed) for seed in seeds for method in methods}

    entries = _read_lines(folder.metrics, read_metrics, problems)
    results = _read_lines(folder.results, read_results, problems)
    summary = _read_mapping(folder.summary, problems) if os.path.lexists(folder.summary) else {}
    teacher_top1 = summary.get("teacher_top1")
    if not (teacher_top1 is None or is_number(teacher_top1, least=0, most=1)):
        problems.append("summary.json has a teacher_top1 that is no accuracy")
        teacher_top1 = None
    is_finished = bool(runs) and {result.run for result in results} >= runs
    if is_finished and not summary:
        problems.append("summary.json is missing, which --resume writes")

    process, state = _find_state(folder, is_finished)
    newest = {Run(entry["method"], entry["seed"]): entry for entry in entries}.values()
    accuracies = [
        e["top1"] for e in entries if e["method"] in methods[:1] and e["top1"] is not None
    ]
    return RunFolderStatus(
        folder=str(folder.path),
        state=state,
        step=sum(entry["step"] for entry in newest),
        steps=max(entry["steps"] for entry in newest) * len(runs) if newest else None,
        process=process,
        teacher=settings.get("teacher"),
        student=settings.get("student"),
        methods=methods,
        seeds=seeds,
        teacher_top1=teacher_top1,
        top1=_by_method(results, lambda result: result.top1),
        loss=_by_method(results, lambda result: result.loss if result.top1 is None else None),
        gain={m: gains for m in methods[1:] if (gains := accuracy_gains(results, m, main))},
        current_top1=accuracies[-1] if accuracies and not results else None,
        seconds=sum(entry["seconds"] for entry in newest),
        date=_date(folder),
        settings=flatten_settings(settings),
        problems=problems,
    )


def _read_transfer(
    folder: RunFolder, settings: dict[str, Any], problems: list[str]
) -> RunFolderStatus:
    """The state of the run folder of a transfer, which has one run."""
    entries = _read_lines(folder.metrics, read_metrics, problems)
    nothing: dict[str, Any] = {"step": 0, "steps": None, "seconds": 0.0}
    newest = entries[-1] if entries else nothing
    process, state = _find_state(folder, newest["step"] == newest["steps"])
    measured = [e["scores"] for e in entries if isinstance(e.get("scores"), dict)]
    scores: dict[str, Any] = measured[-1] if measured else {}
    return RunFolderStatus(
        folder=str(folder.path),
        state=state,
        step=newest["step"],
        steps=newest["steps"],
        process=process,
        student=settings["backbone"],
        seconds=newest["seconds"],
        date=_date(folder),
        settings=flatten_settings(settings),
        problems=problems,
        transfer=TRANSFERS.get(newest.get("method", ""), "transfer"),
        scores={name: share for name, share in scores.items() if is_number(share, least=0, most=1)},
    )


def _find_state(
    folder: RunFolder, is_finished: bool
) -> tuple[lock.TrainingProcess | None, FolderState]:
    """The process that trains in a folder, if any, and the folder's state."""
    process = lock.find_process(folder.path)
    if process is not None:
        return process, "running" if process.certain else "perhaps running"
    return None, "finished" if is_finished else "stopped"


def _date(folder: RunFolder) -> str:
    return datetime.fromtimestamp(folder.last_written(), UTC).isoformat(" ", "seconds")


def differing_settings(statuses: Sequence[RunFolderStatus]) -> dict[str, list[Any]]:
    """Settings that differ between run folders, by dotted names.

    Returns:
        Each setting's value in each folder; None where a folder does not have it.
    """
    names = sorted({name for status in statuses for name in status.settings})
    values = {name: [status.settings.get(name) for status in statuses] for name in names}
    return {name: of_all for name, of_all in values.items() if any(v != of_all[0] for v in of_all)}


def check_picture(picture: Path) -> None:
    """Raise InputError where `picture` exists, or where its format cannot be drawn."""
    refuse_existing(picture, "give another name")
    if not picture.absolute().parent.is_dir():
        raise InputError(f"{str(picture)!r} cannot be written: there is no folder to hold it")
    formats = Figure().canvas.get_supported_filetypes()
    if picture.suffix[1:] not in formats:
        raise InputError(f"{str(picture)!r} must end in one of: {', '.join(sorted(formats))}")


def draw_comparison(statuses: Sequence[RunFolderStatus], picture: Path) -> None:
    """Draw the learning curves of several run folders, one colour each, one line for each seed.

    Each folder's first method is drawn: its own, or the supervised baseline without a teacher. The
    curves are accuracies, or losses where one of the folders has no accuracies.

    Raises:
        InputError: there is nothing to draw, or the picture cannot be written.
    """
    check_picture(picture)
    entries = {
        s.folder: _read_lines(RunFolder(Path(s.folder)).metrics, read_metrics, []) for s in statuses
    }
    drawn = [status for status in statuses if entries[status.folder]]
    if not drawn:
        raise InputError("none of these folders has a line in metrics.jsonl yet: nothing to draw")
    accuracies = all(has_accuracy(entries[status.folder]) for status in drawn)
    colours = matplotlib.colormaps["tab10" if len(drawn) <= 10 else "turbo"]
    curves = []
    for index, status in enumerate(drawn):
        teacher = None
        if accuracies and status.teacher and status.teacher_top1 is not None:
            teacher = (status.teacher, status.teacher_top1)
        of_folder = entries[status.folder]
        method = status.methods[0] if status.methods else of_folder[0]["method"]
        lines = lines_by_run(of_folder, method, accuracies)
        colour = colours(index if len(drawn) <= 10 else index / (len(drawn) - 1))
        curves.append(Curves(status.folder, colour, lines, teacher))
    try:
        create_atomically(picture, draw(curves, accuracies, picture.suffix[1:]))
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{str(picture)!r} cannot be written: {reason}") from error


def _read_mapping(file: Path, problems: list[str]) -> dict[str, Any]:
    try:
        return read_mapping(file)
    except InputError as error:
        problems.append(str(error))
        return {}


def _read_lines(
    file: Path, read: Callable[[Path], tuple[list[T], int]], problems: list[str]
) -> list[T]:
    try:
        lines, broken = read(file)
    except InputError as error:
        problems.append(str(error))
        return []
    if broken:
        problems.append(f"{file.name} has broken lines: {broken}")
    return lines


def _is_recipe(settings: dict[str, Any]) -> bool:
    """Whether what a table shows of settings is of the kind that a recipe has."""
    teacher, compare, seeds = (settings.get(name) for name in ("teacher", "compare", "seeds"))
    return (
        (teacher is None or isinstance(teacher, str))
        and isinstance(settings.get("student"), str)
        and isinstance(settings.get("data"), dict)
        and isinstance(compare, list)
        and all(
            isinstance(method, str) and method in METHOD_NAMES
            for method in [settings.get("method", "scalekd"), *compare]
        )
        and isinstance(seeds, list)
        and all(map(is_whole, seeds))
    )


def _by_method(
    results: list[Result], value_of: Callable[[Result], float | None]
) -> dict[Method, dict[int, float]]:
    """A value of each result, by method and seed, where it is not None."""
    values: dict[Method, dict[int, float]] = {}
    for method in METHOD_NAMES:
        by_seed = {r.run.seed: value_of(r) for r in results if r.run.method == method}
        if known := {seed: value for seed, value in by_seed.items() if value is not None}:
            values[method] = known
    return values
