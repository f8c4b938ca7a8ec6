"""What a person sees of a job: progress while it runs, then a table, a picture and plain words."""

import math
import statistics
import time
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Column, Table

from scalekd.distributed import ranks
from scalekd.notes import Note
from scalekd.recipe import Recipe
from scalekd.runs.folder import RunFolder
from scalekd.runs.result import (
    AVERAGED_STEPS,
    METHOD_NAMES,
    PairSummary,
    Result,
    accuracy_gains,
    all_have_accuracy,
    format_duration,
    main_run,
    mean_terms,
    results_of_method,
    seconds_per_step,
)
from scalekd.runs.result import Progress as News
from scalekd.text import printable

SHORT = {
    "tpp_original": "tpp",
    "tpp_alternative": "tpp'",
    "final_original": "final",
    "final_alternative": "final'",
    "logits": "kd",
}
"""Terms on the progress line; a prime marks the alternative view."""
LONG_WAIT = 0.2
"""Share of a run's time spent waiting for images above which that is said."""
QUIET = 60.0
"""Seconds without a line in a log file after which a run gets one."""


class Display:
    """Live bars on a terminal. In a log file a line for each measurement, without labels, where
    nothing is measured, for each tenth of a run, and for whatever trains `QUIET` seconds unsaid."""

    def __init__(self) -> None:
        # Of several ranks the first speaks for all.
        self.console = Console(highlight=False, soft_wrap=True, quiet=ranks.rank() > 0)
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=10),
            MofNCompleteColumn(),
            # Three lines that alone give way on a narrow terminal.
            TextColumn("{task.fields[state]}", table_column=Column(ratio=1, no_wrap=True)),
            console=self.console,
            expand=True,
        )
        self.tasks: dict[str, TaskID] = {}
        self.labels = True
        self.tenths: dict[str, int] = {}
        self.remarked: set[str] = set()
        self.said: dict[str, float] = {}

    def introduce(self, recipe: Recipe, pair: PairSummary, out: Path) -> None:
        """Say who teaches whom, what a step costs, and what was decided by nobody."""
        self.labels = pair.labels
        self.console.print(_who(recipe, pair))
        if pair.fit:
            self.console.print("projected:", printable(pair.fit))
        devices = ranks.world_size()
        self.console.print(
            f"a step takes {pair.gflop:.4g} GFLOP an image; {recipe.batch_size} images a step, "
            f"{recipe.batch_size // devices // recipe.accumulate} at a time on "
            f"{'one device' if devices == 1 else f'each of {devices} devices'}, loaded by "
            f"{pair.workers or 'no'} other process{'es' * (pair.workers != 1)}"
        )
        for note in pair.notes:
            print_note(self.console, note)
        self.console.print(f"writing to {out}/")

    def __enter__(self) -> "Display":
        self.bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bars.stop()

    def progress(self, run: str, news: News) -> None:
        """Move a run's bar."""
        if run not in self.tasks:
            self.tasks[run] = self.bars.add_task(run, total=news.steps, state="")
        terms = " + ".join(f"{SHORT.get(n, n)} {value:.2f}" for n, value in news.terms.items())
        left = (news.steps - news.step) * news.seconds / max(news.step, 1)
        pace = (
            f"epoch {news.epoch:.3g}, {news.images_per_second:.0f} images/s, "
            f"{format_duration(left)} left"
        )
        gradient = math.hypot(*news.gradients.values())
        state = (
            f"rate {news.learning_rate:.2g}, gradient {gradient:.2g}, "
            f"{news.memory / 2**30:.1f} GiB, data wait {news.waiting:.0%}"
            + f", {news.corrupt_images} corrupt images"
            * (news.corrupt_images > 0)
        )
        loss = f"loss {news.loss:.2f} = {terms}"
        self.bars.update(self.tasks[run], completed=news.step, state=f"{pace}\n{state}\n{loss}")
        self._remark_on_waiting(run, news)
        if self.console.is_terminal:
            return
        if self._is_due(run, news):
            accuracy = "" if news.top1 is None else f"top-1 {news.top1:.2%}, "
            self.console.print(
                f"{run}: step {news.step}/{news.steps}, {accuracy}{pace}, {state}, {loss}"
            )

    def _is_due(self, run: str, news: News) -> bool:
        """Whether a log file wants a line now."""
        now, tenth = time.monotonic(), 10 * news.step // news.steps
        due = (
            news.top1 is not None
            or (not self.labels and tenth > self.tenths.get(run, 0))
            or now - self.said.setdefault(run, now) > QUIET
        )
        if due:
            self.said[run], self.tenths[run] = now, tenth
        return due

    def _remark_on_waiting(self, run: str, news: News) -> None:
        if news.waiting > LONG_WAIT and news.seconds > 30 and run not in self.remarked:
            self.remarked.add(run)
            text = (
                f"{run} spends {news.waiting:.0%} of its time waiting for images: more processes "
                "load faster (--data.workers), and smaller files do"
            )
            print_note(self.console, Note("info", text))

    def finished(self, run: str, result: Result) -> None:
        """Say a run's result, once and for good."""
        if run in self.tasks:  # of another rank than the first nothing was told
            self.bars.update(self.tasks[run], visible=False)
        if result.top1 is None:
            came_to = f"loss [bold]{result.loss:.4f}[/]"
        else:
            came_to = f"top-1 [bold]{result.top1:.2%}[/]"
        self.console.print(
            f"[bold]{run}[/]: {came_to} after {result.steps} steps, "
            f"{result.seconds:.0f} s of training"
        )


def print_note(console: Console, note: Note) -> None:
    """Print a note after its level: "note:", or "WARNING:" in red."""
    label = "[bold red]WARNING:[/]" if note.level == "warning" else "[yellow]note:[/]"
    console.print(label, printable(note.text))


def _who(recipe: Recipe, pair: PairSummary) -> str:
    student = f"[bold]{recipe.student}[/] ({pair.student_parameters / 1e6:.2f} M"
    if recipe.teacher is None:
        return f"{student} parameters) learns alone, without a teacher"
    known = "" if pair.teacher_top1 is None else f", {pair.teacher_top1:.2%} on these images"
    return (
        f"[bold]{recipe.teacher}[/] ({pair.teacher_parameters / 1e6:.2f} M parameters{known}) "
        f"teaches {student}; projectors {pair.projector_parameters / 1e6:.2f} M, thrown away "
        "afterwards)"
    )


def conclude(recipe: Recipe, pair: PairSummary, results: list[Result], out: Path) -> None:
    """Print the table, and in words what it says and does not say."""
    console = Console(highlight=False)
    table = _accuracies if all_have_accuracy(results) else _losses
    console.print(table(recipe, pair, results))
    for sentence in in_words(results):
        console.print(sentence, soft_wrap=True)
    console.print(
        f"{out}/: summary.json, curves.png, metrics.jsonl, settings.yaml, and student/ "
        f"({METHOD_NAMES[main_run(recipe).method]}, seed {recipe.seeds[0]}), which plain timm "
        "loads:",
        soft_wrap=True,
    )
    student = RunFolder(out).student
    console.print(f'  timm.create_model("local-dir:{student}", pretrained=True)', soft_wrap=True)


def _accuracies(recipe: Recipe, pair: PairSummary, results: list[Result]) -> Table:
    table = Table(title=f"top-1 (%) on the validation images, {results[0].steps} steps each")
    table.add_column("")
    for column in ("mean", "sd", *(f"seed {s}" for s in recipe.seeds), "M params", "s/step"):
        table.add_column(column, justify="right")
    if pair.teacher_top1 is not None:
        empty = [""] * len(recipe.seeds)
        size = f"{pair.teacher_parameters / 1e6:.3f}"
        table.add_row("teacher", f"{pair.teacher_top1:.2%}"[:-1], "", *empty, size, "")
    for method, label in METHOD_NAMES.items():
        if runs := results_of_method(results, method):
            tops = {r.run.seed: 100 * r.top1 for r in runs if r.top1 is not None}
            table.add_row(label, *_numbers(tops, recipe.seeds, 2), *_costs(pair, runs))
    return table


def _losses(recipe: Recipe, pair: PairSummary, results: list[Result]) -> Table:
    steps = results[0].steps
    last = min(AVERAGED_STEPS, steps)
    table = Table(title=f"loss on the training images, mean of the last {last} of {steps} steps")
    table.add_column("")
    for column in ("mean", "sd", *(f"seed {s}" for s in recipe.seeds), "M params", "s/step"):
        table.add_column(column, justify="right")
    for method, label in METHOD_NAMES.items():
        if runs := results_of_method(results, method):
            losses = {r.run.seed: r.loss for r in runs}
            table.add_row(label, *_numbers(losses, recipe.seeds, 3), *_costs(pair, runs))
    return table


def _numbers(by_seed: dict[int, float], seeds: list[int], digits: int) -> list[str]:
    """Mean, standard deviation and each seed's."""
    values = list(by_seed.values())
    spread = f"{statistics.stdev(values):.{digits}f}" if len(values) > 1 else "-"
    each = [f"{by_seed[s]:.{digits}f}" for s in seeds]
    return [f"{statistics.fmean(values):.{digits}f}", spread, *each]


def _costs(pair: PairSummary, runs: list[Result]) -> list[str]:
    return [f"{pair.student_parameters / 1e6:.3f}", f"{seconds_per_step(runs):.4f}"]


def in_words(results: list[Result]) -> list[str]:
    """One sentence for each comparison: the paired gain, its spread, and what it cost in time."""
    if not all_have_accuracy(results):
        return _words_without_labels(results)
    sentences: list[str] = []
    distilled = results_of_method(results, "scalekd")
    if not distilled:
        return sentences
    for method in ("supervised", "logit_kd"):
        others = results_of_method(results, method)
        if not others:
            continue
        cost = seconds_per_step(distilled) / seconds_per_step(others)
        sentences.append(
            f"ScaleKD against {METHOD_NAMES[method]}, the same steps: "
            f"{_verdict(accuracy_gains(results, method))}; "
            f"a step took {cost:.1f} times as long."
        )
    if results_of_method(results, "logit_kd"):
        sentences.append(
            "At equal time instead of equal steps logit KD would train that much longer; this "
            "table does not show how far it would then come."
        )
    return sentences


def _words_without_labels(results: list[Result]) -> list[str]:
    sentences = []
    for method, label in METHOD_NAMES.items():
        if runs := results_of_method(results, method):
            terms = [f"{SHORT.get(n, n)} {value:.3f}" for n, value in mean_terms(runs).items()]
            sentences.append(f"{label}: {' + '.join(terms)}.")
    sentences.append("How good a student is these losses do not say: that takes a task's labels.")
    distilled, others = (
        results_of_method(results, "scalekd"),
        results_of_method(results, "logit_kd"),
    )
    if others:
        kd, alone = (mean_terms(runs)["logits"] for runs in (distilled, others))
        cost = seconds_per_step(distilled) / seconds_per_step(others)
        sentences.append(
            f"The logits' term alone can be compared: {kd:.3f} beside the features', {alone:.3f} "
            f"without them; a step of ScaleKD took {cost:.1f} times as long."
        )
    return sentences


def _verdict(gains: list[float]) -> str:
    gain = statistics.fmean(gains)
    if len(gains) == 1:
        return f"{gain:+.2f} points with one seed, so nothing is known of the spread"
    spread = statistics.stdev(gains)
    listed = ", ".join(f"{g:+.2f}" for g in gains)
    said = f"{gain:+.2f} points (seed by seed {listed}; spread {spread:.2f})"
    if abs(gain) <= spread:
        return f"{said}, NOT larger than the spread"
    return f"{said}, {'larger' if gain > 0 else 'a LOSS larger'} than the spread"
