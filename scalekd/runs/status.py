"""Run folders: where each of them stands, and how several compare."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import matplotlib
import yaml
from matplotlib.figure import Figure

from scalekd.errors import InputError
from scalekd.recipe import flatten_settings
from scalekd.runs import lock
from scalekd.runs.atomic_io import read_jsonl
from scalekd.runs.curves import Curves, draw, has_accuracy, lines_by_run
from scalekd.runs.folder import HALF_MADE, RunFolder
from scalekd.runs.result import LABELS, Method, Result, Run, accuracy_gains, methods_to_train

FolderState = Literal["running", "perhaps running", "stopped", "finished"]


@dataclass(frozen=True)
class RunFolderStatus:
    """Where a run folder stands, as far as what is in it can be read.

    step, steps: of all its runs together; steps is None before the first report.
    trainer: who trains in it, where its state is one of running.
    top1: shares, of the runs that are finished, by method and seed; without labels the loss.
    gain: points that ScaleKD is above an method, for each seed that both have finished.
    so_far: the newest measurement of the first method (a share), while no run is finished.
    seconds: of training, all runs together.
    date: of the last that was written to it, in UTC.
    settings: by dotted names.
    wrong: what could not be read, and why.
    """

    folder: str
    state: FolderState
    step: int = 0
    steps: int | None = None
    trainer: lock.TrainingProcess | None = None
    teacher: str | None = None
    student: str | None = None
    methods: list[Method] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    teacher_top1: float | None = None
    top1: dict[Method, dict[int, float]] = field(default_factory=dict)
    loss: dict[Method, dict[int, float]] = field(default_factory=dict)
    gain: dict[Method, list[float]] = field(default_factory=dict)
    so_far: float | None = None
    seconds: float = 0.0
    date: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


def read_run_folders(roots: Sequence[Path]) -> list[RunFolderStatus]:
    """Of every run folder at or below `roots`, the newest first.

    Raises:
        InputError: one of the roots is no folder.
    """
    for root in roots:
        if not root.is_dir():
            raise InputError(f"there is no folder {str(root)!r}")
    found = {folder.resolve(): folder for root in roots for folder in _below(root)}
    read = [standing(folder) for folder in found.values()]
    return sorted(read, key=lambda s: s.date or "", reverse=True)


def standing(folder: Path) -> RunFolderStatus:
    """Where one run folder stands."""
    wrong: list[str] = []
    settings = _mapping(folder / "settings.yaml", wrong)
    data = settings.get("data")
    if settings and not ("student" in settings and isinstance(data, dict)):
        wrong.append("settings.yaml is no recipe")
    trained = methods_to_train(settings.get("teacher") or None, _listed(settings, "compare"))
    runs = [Run(method, seed) for seed in _listed(settings, "seeds") for method in trained]
    of = RunFolder(folder)
    entries = _entries(of.metrics, wrong)
    results = _results(of.results, wrong)
    newest = {Run(entry["method"], entry["seed"]): entry for entry in entries}
    summary = _mapping(of.summary, wrong) if of.summary.exists() else {}
    everything = bool(runs) and {result.run for result in results} >= set(runs)
    if everything and not summary:
        wrong.append("summary.json is missing, which --resume writes")
    there = lock.find_trainer(folder)
    state: FolderState = "finished" if everything else "stopped"
    if there is not None:
        state = "running" if there.certain else "perhaps running"
    distilled = [e["top1"] for e in entries if e["method"] == trained[0] and e["top1"] is not None]
    steps = [entry["steps"] for entry in newest.values()]
    return RunFolderStatus(
        folder=str(folder),
        state=state,
        step=sum(entry["step"] for entry in newest.values()),
        steps=max(steps) * len(runs) if steps else None,
        trainer=there,
        teacher=settings.get("teacher"),
        student=settings.get("student"),
        methods=trained if settings else [],
        seeds=_listed(settings, "seeds"),
        teacher_top1=summary.get("teacher_top1"),
        top1=_by_arm(results, lambda result: result.top1),
        loss=_by_arm(results, lambda result: result.loss if result.top1 is None else None),
        gain={method: gain for method in trained[1:] if (gain := accuracy_gains(results, method))},
        so_far=distilled[-1] if distilled and not results else None,
        seconds=sum(entry["seconds"] for entry in newest.values()),
        date=_last_written(folder),
        settings=flatten_settings(settings),
        wrong=wrong,
    )


def differing_settings(compared: Sequence[RunFolderStatus]) -> dict[str, list[Any]]:
    """Settings that are not the same in all, by dotted names: the value in each, or None."""
    names = sorted({name for each in compared for name in each.settings})
    values = {name: [each.settings.get(name) for each in compared] for name in names}
    return {name: each for name, each in values.items() if any(v != each[0] for v in each)}


def check_picture(picture: Path) -> None:
    """InputError where `picture` is there, or of no format that can be drawn."""
    if picture.exists():
        raise InputError(f"{str(picture)!r} exists and is not overwritten: give another name")
    formats = Figure().canvas.get_supported_filetypes()
    if picture.suffix[1:] not in formats:
        raise InputError(f"{str(picture)!r} must end in one of: {', '.join(sorted(formats))}")


def draw_comparison(compared: Sequence[RunFolderStatus], picture: Path) -> None:
    """The learning curves of several run folders: a colour each, a line for each seed.

    ScaleKD's are drawn, or of a folder without a teacher the student's. Accuracies, unless a folder
    has none: then losses.

    Raises:
        InputError: there is nothing to draw, or no way to write it.
    """
    check_picture(picture)
    entries = {each.folder: _entries(RunFolder(Path(each.folder)).metrics, []) for each in compared}
    entries = {folder: lines for folder, lines in entries.items() if lines}
    if not entries:
        raise InputError("none of these folders has a line in metrics.jsonl yet: nothing to draw")
    accuracies = all(has_accuracy(lines) for lines in entries.values())
    colours = matplotlib.colormaps["tab10" if len(entries) <= 10 else "turbo"]
    curves = []
    for index, each in enumerate(each for each in compared if each.folder in entries):
        colour = colours(index if len(entries) <= 10 else index / (len(entries) - 1))
        teacher = None
        if accuracies and each.teacher and each.teacher_top1 is not None:
            teacher = (each.teacher, each.teacher_top1)
        method = each.methods[0] if each.methods else entries[each.folder][0]["method"]
        lines = lines_by_run(entries[each.folder], method, accuracies)
        curves.append(Curves(each.folder, colour, lines, teacher))
    try:
        draw(curves, accuracies, picture)
    except OSError as error:
        raise InputError(f"{str(picture)!r} cannot be written: {error}") from error


def _below(root: Path) -> Iterator[Path]:
    for folder, inner, files in os.walk(root):
        if {"settings.yaml", *HALF_MADE} & set(files):
            inner.clear()
            yield Path(folder)


def _mapping(file: Path, wrong: list[str]) -> dict[str, Any]:
    """What a YAML (or JSON) file says; nothing, and why, where that is no mapping."""
    try:
        plain = yaml.safe_load(file.read_text())
    except FileNotFoundError:
        wrong.append(f"{file.name} is missing")
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        wrong.append(f"{file.name} cannot be read")
    else:
        if isinstance(plain, dict):
            return plain
        wrong.append(f"{file.name} is empty or no mapping")
    return {}


def _listed(settings: dict[str, Any], name: str) -> list[Any]:
    value = settings.get(name)
    return value if isinstance(value, list) else []


def _entries(metrics: Path, wrong: list[str]) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl that are whole."""
    lines, broken = read_jsonl(metrics)
    needed = {"method", "seed", "step", "steps", "seconds", "loss", "top1"}
    entries = [line for line in lines if line.keys() >= needed]
    broken += len(lines) - len(entries)
    if broken:
        wrong.append(f"metrics.jsonl has broken lines: {broken}")
    return entries


def _results(file: Path, wrong: list[str]) -> list[Result]:
    lines, broken = read_jsonl(file)
    results = []
    for plain in lines:
        try:
            results.append(Result.of(plain))
        except (TypeError, KeyError):
            broken += 1
    if broken:
        wrong.append(f"{file.name} has broken lines: {broken}")
    return results


def _by_arm(results: list[Result], number: Any) -> dict[Method, dict[int, float]]:
    numbers: dict[Method, dict[int, float]] = {}
    for method in LABELS:
        by_seed = {r.run.seed: number(r) for r in results if r.run.method == method}
        known = {seed: value for seed, value in by_seed.items() if value is not None}
        if known:
            numbers[method] = known
    return numbers


def _last_written(folder: Path) -> str | None:
    names = ("metrics.jsonl", "results.jsonl", "settings.yaml")
    files = [file for file in map(folder.joinpath, names) if file.exists()] or [folder]
    last = max(file.stat().st_mtime for file in files)
    return datetime.fromtimestamp(last, UTC).isoformat(" ", "seconds")
