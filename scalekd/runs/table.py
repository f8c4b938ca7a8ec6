"""Run folders as a table, and what differs between them as another."""

import statistics
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Column, Table

from scalekd.runs.result import LABELS, format_duration
from scalekd.runs.status import RunFolderStatus


def status_table(standings: Sequence[RunFolderStatus]) -> Table:
    """A row for each run folder."""
    listing = Table(
        Column("run", overflow="fold", ratio=1),
        Column("state", no_wrap=True),
        Column("top-1, mean (sd)", no_wrap=True),
        Column("gain (sd)", no_wrap=True, justify="right"),
        box=box.SIMPLE,
        expand=True,
        pad_edge=False,
    )
    for each in standings:
        listing.add_row(_what(each), _state(each), _numbers(each), _gains(each))
    return listing


def settings_table(
    standings: Sequence[RunFolderStatus], differences: dict[str, list[Any]]
) -> Table:
    """A row for each setting that differs, a column for each run folder."""
    columns = [Column(escape(each.folder), overflow="fold") for each in standings]
    listing = Table(Column("setting", no_wrap=True), *columns, box=box.SIMPLE, pad_edge=False)
    for name, values in differences.items():
        listing.add_row(name, *(escape(str(value)) for value in values))
    return listing


def _what(each: RunFolderStatus) -> str:
    lines = [f"[bold]{escape(each.folder)}[/]"]
    if each.student:
        who = f"{each.teacher} -> {each.student}" if each.teacher else f"{each.student} alone"
        lines.append(escape(who))
        methods, seeds = len(each.methods), len(each.seeds)
        lines.append(f"{_count(methods, 'method')} x {_count(seeds, 'seed')}")
    lines += [f"[red]{escape(wrong)}[/]" for wrong in each.wrong]
    return "\n".join(lines)


def _state(each: RunFolderStatus) -> str:
    of = "?" if each.steps is None else each.steps
    if each.state == "finished":
        lines = [f"[green]finished[/], {each.step} steps"]
    elif each.state == "stopped":
        lines = [f"stopped at {each.step} of {of}"]
    else:
        lines = [f"[bold yellow]{each.state}[/]", f"at {each.step} of {of}"]
        if each.trainer is not None:
            lines.append(escape(f"{each.trainer.host}, {each.trainer.pid}"))
    if each.seconds:
        lines.append(f"{format_duration(each.seconds)} of training")
    if each.date:
        lines.append(f"{datetime.fromisoformat(each.date).astimezone():%Y-%m-%d %H:%M}")
    return "\n".join(lines)


def _numbers(each: RunFolderStatus) -> str:
    lines = []
    for method in each.methods:
        if method in each.top1:
            values = [100 * value for value in each.top1[method].values()]
            lines.append(f"{LABELS[method]} {_mean(values, 2)}")
        elif method in each.loss:
            lines.append(f"{LABELS[method]}: loss {_mean(each.loss[method].values(), 3)}")
        else:
            lines.append(f"{LABELS[method]} -")
    if each.so_far is not None:
        lines[0] = f"{LABELS[each.methods[0]]} {100 * each.so_far:.2f} so far"
    if each.teacher_top1 is not None:
        lines.append(f"teacher {100 * each.teacher_top1:.2f}")
    return "\n".join(lines)


def _gains(each: RunFolderStatus) -> str:
    gains = [each.gain.get(method) for method in each.methods]
    return "\n".join(_mean(gain, 2, "+") if gain else "" for gain in gains)


def _mean(values: Collection[float], digits: int, sign: str = "") -> str:
    spread = f" ({statistics.stdev(values):.{digits}f})" if len(values) > 1 else ""
    return f"{statistics.fmean(values):{sign}.{digits}f}{spread}"


def _count(number: int, of: str) -> str:
    return f"{number} {of}" if number == 1 else f"{number} {of}s"
