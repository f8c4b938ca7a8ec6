"""Run folders as a table, and the settings in which they differ as another."""

import statistics
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

from rich import box
from rich.table import Column, Table

from scalekd.runs.result import METHOD_NAMES, format_duration
from scalekd.runs.status import RunFolderStatus
from scalekd.text import printable


def status_table(statuses: Sequence[RunFolderStatus]) -> Table:
    """A table with one row for each run folder."""
    table = Table(
        Column("run", overflow="fold", ratio=1),
        Column("state", no_wrap=True),
        Column("top-1, mean (sd)", no_wrap=True),
        Column("gain (sd)", no_wrap=True, justify="right"),
        box=box.SIMPLE,
        expand=True,
        pad_edge=False,
    )
    for status in statuses:
        table.add_row(_models(status), _state(status), _accuracies(status), _gains(status))
    return table


def settings_table(statuses: Sequence[RunFolderStatus], differences: dict[str, list[Any]]) -> Table:
    """A table with one row for each setting that differs and one column for each run folder.

    Args:
        statuses: of the run folders.
        differences: as `differing_settings` gives them for the same run folders.
    """
    columns = [Column(printable(status.folder), overflow="fold") for status in statuses]
    table = Table(Column("setting", no_wrap=True), *columns, box=box.SIMPLE, pad_edge=False)
    for name, values in differences.items():
        table.add_row(name, *(printable(value) for value in values))
    return table


def _models(status: RunFolderStatus) -> str:
    lines = [f"[bold]{printable(status.folder)}[/]"]
    if status.transfer:
        lines.append(printable(f"{status.student}, {status.transfer}"))
    elif status.student:
        student = status.student
        models = f"{status.teacher} -> {student}" if status.teacher else f"{student}, supervised"
        methods, seeds = len(status.methods), len(status.seeds)
        lines += [printable(models), f"{_count(methods, 'method')} x {_count(seeds, 'seed')}"]
    lines += [f"[red]{printable(problem)}[/]" for problem in status.problems]
    return "\n".join(lines)


def _state(status: RunFolderStatus) -> str:
    steps = "?" if status.steps is None else status.steps
    if status.state == "finished":
        lines = [f"[green]finished[/], {status.step} steps"]
    elif status.state == "stopped":
        lines = [f"stopped at {status.step} of {steps}"]
    else:
        lines = [f"[bold yellow]{status.state}[/]", f"at {status.step} of {steps}"]
        if status.process is not None:
            lines.append(printable(f"{status.process.host}, {status.process.pid}"))
    if status.seconds:
        lines.append(f"{format_duration(status.seconds)} of training")
    if status.date:
        lines.append(f"{datetime.fromisoformat(status.date).astimezone():%Y-%m-%d %H:%M}")
    return "\n".join(lines)


def _accuracies(status: RunFolderStatus) -> str:
    lines = [f"{printable(name)} {100 * share:.2f}" for name, share in status.scores.items()]
    for method in status.methods:
        if method in status.top1:
            percent = [100 * top1 for top1 in status.top1[method].values()]
            lines.append(f"{METHOD_NAMES[method]} {_mean(percent, 2)}")
        elif method in status.loss:
            lines.append(f"{METHOD_NAMES[method]}: loss {_mean(status.loss[method].values(), 3)}")
        else:
            lines.append(f"{METHOD_NAMES[method]} -")
    if status.current_top1 is not None:
        lines[0] = f"{METHOD_NAMES[status.methods[0]]} {100 * status.current_top1:.2f} so far"
    if status.teacher_top1 is not None:
        lines.append(f"teacher {100 * status.teacher_top1:.2f}")
    return "\n".join(lines)


def _gains(status: RunFolderStatus) -> str:
    gains = [status.gain.get(method) for method in status.methods]
    return "\n".join(_mean(by_seed, 2, "+") if by_seed else "" for by_seed in gains)


def _mean(values: Collection[float], digits: int, sign: str = "") -> str:
    """The mean, and in parentheses the standard deviation where there are several values."""
    spread = f" ({statistics.stdev(values):.{digits}f})" if len(values) > 1 else ""
    return f"{statistics.fmean(values):{sign}.{digits}f}{spread}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
