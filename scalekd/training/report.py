"""What a person sees of a job: progress while it runs, then a table, a picture and plain words."""

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import matplotlib
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Column, Table

from scalekd.training.loop import Progress as News
from scalekd.training.recipe import Recipe
from scalekd.training.run import Arm, Result, Run

LABELS: dict[Arm, str] = {"alone": "student alone", "logits": "logit KD", "scalekd": "ScaleKD"}
SHORT = {
    "tpp_original": "tpp",
    "tpp_alternative": "tpp'",
    "final_original": "final",
    "final_alternative": "final'",
    "logits": "kd",
}
"""Terms on the progress line; a prime marks the alternative view."""
COLOURS: dict[Arm, str] = {"alone": "#8a8a8a", "logits": "#d98c21", "scalekd": "#2166ac"}


@dataclass(frozen=True)
class Pair:
    """What is known before training: who teaches whom, and how good the teacher is here."""

    teacher_top1: float | None
    teacher_parameters: int
    student_parameters: int
    projector_parameters: int
    notes: list[str]


def of_arm(results: list[Result], arm: str) -> list[Result]:
    """The results of one arm, by seed."""
    return sorted((r for r in results if r.run.arm == arm), key=lambda r: r.run.seed)


def mean(values: list[float]) -> float | None:
    """The mean, or None of nothing."""
    return statistics.fmean(values) if values else None


class Display:
    """Live bars on a terminal; in a log file one line for each measurement."""

    def __init__(self, recipe: Recipe, pair: Pair, out: Path) -> None:
        self.console = Console(highlight=False, soft_wrap=True)
        known = "" if pair.teacher_top1 is None else f", {pair.teacher_top1:.2%} on these images"
        self.console.print(
            f"[bold]{recipe.teacher}[/] ({pair.teacher_parameters / 1e6:.2f} M parameters{known}) "
            f"teaches [bold]{recipe.student}[/] ({pair.student_parameters / 1e6:.2f} M; projectors "
            f"{pair.projector_parameters / 1e6:.2f} M, thrown away afterwards)"
        )
        for note in pair.notes:
            self.console.print(f"[yellow]note:[/] {note}")
        self.console.print(f"writing to {out}/")
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=10),
            MofNCompleteColumn(),
            # Two lines that alone give way on a narrow terminal.
            TextColumn("{task.fields[state]}", table_column=Column(ratio=1, no_wrap=True)),
            console=self.console,
            expand=True,
        )
        self.tasks: dict[Run, TaskID] = {}

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

    def progress(self, run: Run, news: News) -> None:
        """Move a run's bar."""
        if run not in self.tasks:
            self.tasks[run] = self.bars.add_task(str(run), total=news.steps, state="")
        terms = " + ".join(f"{SHORT.get(n, n)} {value:.2f}" for n, value in news.terms.items())
        left = (news.steps - news.step) * news.seconds / max(news.step, 1)
        pace = f"{news.images_per_second:.0f} images/s, {left:.0f} s left"
        loss = f"loss {news.loss:.2f} = {terms}"
        self.bars.update(self.tasks[run], completed=news.step, state=f"{pace}\n{loss}")
        if news.top1 is not None and not self.console.is_terminal:
            self.console.print(
                f"{run}: step {news.step}/{news.steps}, top-1 {news.top1:.2%}, {pace}, {loss}"
            )

    def finished(self, result: Result) -> None:
        """Say a run's result, once and for good."""
        self.bars.update(self.tasks[result.run], visible=False)
        self.console.print(
            f"[bold]{result.run}[/]: top-1 [bold]{result.top1:.2%}[/] after {result.steps} steps, "
            f"{result.seconds:.0f} s of training"
        )


def conclude(recipe: Recipe, pair: Pair, results: list[Result], out: Path) -> None:
    """Print the table, and in words what it says and does not say."""
    console = Console(highlight=False)
    table = Table(title=f"top-1 (%) on the validation images, {results[0].steps} steps each")
    table.add_column("")
    for column in ("mean", "sd", *(f"seed {s}" for s in recipe.seeds), "M params", "s/step"):
        table.add_column(column, justify="right")
    if pair.teacher_top1 is not None:
        empty = [""] * len(recipe.seeds)
        size = f"{pair.teacher_parameters / 1e6:.3f}"
        table.add_row("teacher", f"{pair.teacher_top1:.2%}"[:-1], "", *empty, size, "")
    for arm, label in LABELS.items():
        runs = of_arm(results, arm)
        if not runs:
            continue
        tops = [100 * r.top1 for r in runs]
        spread = f"{statistics.stdev(tops):.2f}" if len(tops) > 1 else "-"
        by_seed = {r.run.seed: f"{100 * r.top1:.2f}" for r in runs}
        table.add_row(
            label,
            f"{statistics.fmean(tops):.2f}",
            spread,
            *(by_seed[s] for s in recipe.seeds),
            f"{pair.student_parameters / 1e6:.3f}",
            f"{seconds_per_step(runs):.4f}",
        )
    console.print(table)
    for sentence in in_words(results):
        console.print(sentence, soft_wrap=True)
    console.print(
        f"{out}/: summary.json, curves.png, metrics.jsonl, settings.yaml, and student/ "
        f"(ScaleKD, seed {recipe.seeds[0]}), which plain timm loads:",
        soft_wrap=True,
    )
    console.print(
        f'  timm.create_model("local-dir:{out}/student", pretrained=True)', soft_wrap=True
    )


def in_words(results: list[Result]) -> list[str]:
    """One sentence for each comparison: the paired gain, its spread, and what it cost in time."""
    sentences = []
    distilled = of_arm(results, "scalekd")
    for arm in ("alone", "logits"):
        others = of_arm(results, arm)
        if not others:
            continue
        gains = [100 * (s.top1 - o.top1) for s, o in zip(distilled, others, strict=True)]
        cost = seconds_per_step(distilled) / seconds_per_step(others)
        sentences.append(
            f"ScaleKD against {LABELS[arm]}, the same steps: {_verdict(gains)}; "
            f"a step took {cost:.1f} times as long."
        )
    if of_arm(results, "logits"):
        sentences.append(
            "At equal time instead of equal steps logit KD would train that much longer; this "
            "table does not show how far it would then come."
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


def seconds_per_step(results: list[Result]) -> float:
    """Mean over runs."""
    return statistics.fmean(r.seconds / r.steps for r in results)


def draw_curves(metrics: Path, teacher_top1: float | None, file: Path) -> None:
    """Accuracy over steps and over time, a line for each run, by arm, from metrics.jsonl."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    lines: dict[tuple[Arm, int], list[tuple[float, float, float]]] = {}
    for text in metrics.read_text().splitlines():
        entry = json.loads(text)
        if entry["top1"] is not None:
            point = entry["step"], entry["seconds"], 100 * entry["top1"]
            lines.setdefault((entry["arm"], entry["seed"]), []).append(point)
    figure, (by_step, by_time) = plt.subplots(
        1, 2, figsize=(10, 4.2), sharey=True, layout="constrained"
    )
    for arm, label in LABELS.items():
        of_this = [points for (a, _), points in sorted(lines.items()) if a == arm]
        for index, points in enumerate(of_this):
            steps, seconds, tops = zip(*points, strict=True)
            name = label if index == 0 else None
            for axes, x in ((by_step, steps), (by_time, seconds)):
                axes.plot(x, tops, color=COLOURS[arm], label=name, marker=".", alpha=0.8)
    for axes in (by_step, by_time):
        if teacher_top1 is not None:
            axes.axhline(100 * teacher_top1, color="black", linestyle=":", label="teacher")
        axes.grid(alpha=0.3)
    by_step.set(xlabel="step", ylabel="top-1 on the validation images (%)")
    by_time.set(xlabel="seconds of training")
    by_step.legend(loc="lower right")
    figure.savefig(file, dpi=150)
    plt.close(figure)
