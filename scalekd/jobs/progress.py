"""The live display while runs train: a bar for each on a terminal, lines in a log file."""

import math
import time
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as ProgressBars
from rich.table import Column

from scalekd.distributed import ranks
from scalekd.jobs.report import format_terms
from scalekd.networks import InputConfig
from scalekd.notes import Note
from scalekd.recipe import Recipe
from scalekd.runs.result import PairSummary, Progress, Result, format_duration
from scalekd.text import build_console, printable

LONG_DATA_WAIT = 0.2
"""A run that spends a larger share of its time waiting for images gets a note with the remedy."""

MAX_SECONDS_WITHOUT_LINE = 60.0
"""Seconds after which a log file gets a line of progress, even if nothing was measured."""


class ProgressDisplay:
    """Progress bars on a terminal; lines where the output is a log file.

    A log file gets a line for each validation; without labels, where nothing is validated, for each
    tenth of a run; and whenever `MAX_SECONDS_WITHOUT_LINE` pass without a line. Of several ranks
    only rank 0 prints.

    Example:
        with ProgressDisplay() as display:
            display.print_start(recipe, pair, folder)
            display.update("scalekd seed 1", progress)
            display.print_result("scalekd seed 1", result)
    """

    def __init__(self) -> None:
        self.console = build_console(soft_wrap=True, quiet=ranks.rank() > 0)
        self.bars = ProgressBars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=10),
            MofNCompleteColumn(),
            # On a narrow terminal only this column is cut off, and its three lines stay three.
            TextColumn("{task.fields[state]}", table_column=Column(ratio=1, no_wrap=True)),
            console=self.console,
            expand=True,
        )
        self.tasks: dict[str, TaskID] = {}
        self.has_labels = True
        self.printed_tenth: dict[str, int] = {}
        self.printed_at: dict[str, float] = {}
        self.runs_with_wait_note: set[str] = set()

    def __enter__(self) -> "ProgressDisplay":
        self.bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bars.stop()

    def print_start(self, recipe: Recipe, pair: PairSummary, out: Path) -> None:
        """Print what is trained on what, what a step costs, the notes and the run folder."""
        self.has_labels = pair.labels
        self.console.print(describe_pair(recipe, pair))
        for line in describe_images(pair, recipe.data.train_images):
            self.console.print(printable(line))
        if pair.fit:
            self.console.print("projected features:", printable(pair.fit))
        self.console.print(describe_step(recipe, pair))
        for note in pair.notes:
            print_note(self.console, note)
        self.console.print(f"the run folder is {printable(out)}/")

    def update(self, run: str, progress: Progress) -> None:
        """Move a run's bar, or print a line where one is due in a log file.

        Args:
            run: its name in the display.
            progress: where it is.
        """
        if run not in self.tasks:
            self.tasks[run] = self.bars.add_task(printable(run), total=progress.steps, state="")
        pace, state = _describe_pace(progress), _describe_state(progress)
        loss = f"loss {progress.loss:.2f} = {format_terms(progress.terms, 2)}"
        self.bars.update(self.tasks[run], completed=progress.step, state=f"{pace}\n{state}\n{loss}")
        self._note_long_wait(run, progress)
        if not self.console.is_terminal and self._line_is_due(run, progress):
            measured = "".join(f"{score}, " for score in _describe_scores(progress))
            self.console.print(
                f"{printable(run)}: step {progress.step}/{progress.steps}, {measured}{pace}, "
                f"{state}, {loss}"
            )

    def print_result(self, run: str, result: Result) -> None:
        """Remove the bar of a run that is finished, and print the run's result."""
        self.print_outcome(run, describe_result(result))

    def print_outcome(self, run: str, text: str) -> None:
        """Remove the bar of a run that is finished, and print in one line what it gave."""
        if run in self.tasks:  # only rank 0 has bars
            self.bars.update(self.tasks[run], visible=False)
        self.console.print(f"[bold]{printable(run)}[/]: {text}")

    def _line_is_due(self, run: str, progress: Progress) -> bool:
        now, tenth = time.monotonic(), 10 * progress.step // progress.steps
        due = (
            progress.top1 is not None
            or bool(progress.scores)
            or (not self.has_labels and tenth > self.printed_tenth.get(run, 0))
            or now - self.printed_at.setdefault(run, now) > MAX_SECONDS_WITHOUT_LINE
        )
        if due:
            self.printed_at[run], self.printed_tenth[run] = now, tenth
        return due

    def _note_long_wait(self, run: str, progress: Progress) -> None:
        """Print, once for each run, that it waits for images, and what makes loading faster."""
        waits_long = progress.waiting > LONG_DATA_WAIT and progress.seconds > 30
        if waits_long and run not in self.runs_with_wait_note:
            self.runs_with_wait_note.add(run)
            text = (
                f"{run} spends {progress.waiting:.0%} of its time waiting for images: more worker "
                "processes (--data.workers) or smaller image files make loading faster"
            )
            print_note(self.console, Note("info", text))


def print_note(console: Console, note: Note) -> None:
    """Print a note after its level: "note:", or "WARNING:" in red."""
    label = "[bold red]WARNING:[/]" if note.level == "warning" else "[yellow]note:[/]"
    console.print(label, printable(note.text))


def describe_pair(recipe: Recipe, pair: PairSummary) -> str:
    """Which student is trained under which teacher, with their sizes, as rich markup."""
    student = (
        f"student [bold]{printable(recipe.student)}[/] "
        f"({pair.student_parameters / 1e6:.2f} M parameters)"
    )
    if recipe.teacher is None:
        return f"{student} is trained without a teacher (supervised baseline)"
    accuracy = ""
    if pair.teacher_top1 is not None:
        accuracy = f", top-1 {pair.teacher_top1:.2%} on the validation images"
    return (
        f"teacher [bold]{printable(recipe.teacher)}[/] ({pair.teacher_parameters / 1e6:.2f} M "
        f"parameters{accuracy}) is distilled into {student}; the projectors "
        f"({pair.projector_parameters / 1e6:.2f} M parameters) are discarded after training"
    )


def describe_images(pair: PairSummary, train_images: int | None = None) -> list[str]:
    """What each split holds, and how the images of student and teacher are made.

    Args:
        pair: student and teacher with their images.
        train_images: how many of the images of the first split are trained on; None for all.
    """
    lines = []
    for number, split in enumerate(pair.splits):
        names = split.classes
        classes = f"{len(names)} classes, {names[0]} to {names[-1]}" if names else "no labels"
        used = f"; {train_images} of them are trained on" if train_images and number == 0 else ""
        lines.append(f"{split.name}: {split.images} images, {classes}{used}")
    if pair.images is not None:
        crop, how = pair.images.crop, pair.images.interpolation
        cut = "not cropped" if crop == 1 else f"cropped to {crop:g} of their sides"
        lines.append(
            f"student's images: {_describe_input(pair.images)}; validation images are resized "
            f"({how}) and {cut}"
        )
    if pair.teacher_images is not None:
        resized = pair.images is not None and pair.images.size != pair.teacher_images.size
        made = "resized (bicubic) from the student's" if resized else "the same pixels"
        lines.append(f"teacher's images: {_describe_input(pair.teacher_images)}; {made}")
    return lines


def _describe_input(images: InputConfig) -> str:
    height, width = images.size
    mean, std = (" ".join(f"{v:g}" for v in values) for values in (images.mean, images.std))
    return f"{height}x{width} pixels, mean {mean}, std {std}"


def describe_step(recipe: Recipe, pair: PairSummary) -> str:
    """What a training step costs, and how its batch is split and loaded."""
    devices = ranks.world_size()
    micro_batch = recipe.batch_size // devices // recipe.accumulate
    where = "on one device" if devices == 1 else f"on each of {devices} devices"
    if pair.workers == 0:
        loading = "the training process loads the images itself"
    elif pair.workers == 1:
        loading = "1 worker process per device loads the images"
    else:
        loading = f"{pair.workers} worker processes per device load the images"
    return (
        f"a training step costs {pair.gflop:.4g} GFLOP per image; its batch of "
        f"{recipe.batch_size} images is processed in micro-batches of {micro_batch} {where}; "
        f"{loading}"
    )


def describe_result(result: Result) -> str:
    """A finished run's accuracy, or without labels its final loss, its steps and its time."""
    reached = f"loss {result.loss:.4f}" if result.top1 is None else f"top-1 {result.top1:.2%}"
    return f"{reached} after {result.steps} steps and {result.seconds:.0f} s of training"


def _describe_pace(progress: Progress) -> str:
    left = (progress.steps - progress.step) * progress.seconds / max(progress.step, 1)
    return (
        f"epoch {progress.epoch:.3g}, {progress.images_per_second:.0f} images/s, "
        f"{format_duration(left)} left"
    )


def _describe_scores(progress: Progress) -> list[str]:
    """What was just measured on the validation images, in %."""
    scores = {} if progress.top1 is None else {"top-1": progress.top1}
    scores |= progress.scores
    return [f"{name.replace('_', ' ')} {score:.2%}" for name, score in scores.items()]


def _describe_state(progress: Progress) -> str:
    corrupt, gradients = progress.corrupt_images, progress.gradients
    norm = f"gradient norm {math.hypot(*gradients.values()):.2g}, " if gradients else ""
    return (
        f"learning rate {progress.learning_rate:.2g}, {norm}"
        f"memory {progress.memory / 2**30:.1f} GiB, waiting for data {progress.waiting:.0%}"
    ) + f", corrupt images: {corrupt}" * (corrupt > 0)
