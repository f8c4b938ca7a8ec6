"""The report at the end of a job: a table of its runs, and what can be concluded in sentences."""

import statistics
from collections.abc import Mapping
from pathlib import Path

from rich.table import Table

from scalekd.networks.student import loading_code
from scalekd.recipe import Method, Recipe
from scalekd.runs.folder import RunFolder
from scalekd.runs.result import (
    AVERAGED_STEPS,
    METHOD_NAMES,
    PairSummary,
    Result,
    accuracy_gains,
    all_have_accuracy,
    main_run,
    mean_terms,
    results_of_method,
    seconds_per_step,
)
from scalekd.text import build_console, printable

SHORT_TERM_NAMES = {
    "tpp_original": "tpp",
    "tpp_alternative": "tpp'",
    "final_original": "final",
    "final_alternative": "final'",
    "logits": "kd",
}
"""Short names of the loss's terms; a prime marks the alternative view."""


EQUAL_COST = 1.05
"""A method whose step costs up to this many times another's counts as equally fast."""


def format_terms(terms: Mapping[str, float], digits: int) -> str:
    """The terms of a loss as a sum, for example "final 2.50 + kd 0.50"."""
    return " + ".join(
        f"{SHORT_TERM_NAMES.get(name, name)} {value:.{digits}f}" for name, value in terms.items()
    )


def print_report(recipe: Recipe, pair: PairSummary, results: list[Result], out: Path) -> None:
    """Print the table of a job's runs, the comparisons in sentences, and what the folder has."""
    console = build_console()
    build_table = build_accuracy_table if all_have_accuracy(results) else build_loss_table
    console.print(build_table(recipe, pair, results))
    for sentence in compare_in_sentences(results, recipe.method):
        console.print(sentence, soft_wrap=True)
    exported = f"{METHOD_NAMES[main_run(recipe).method]}, seed {recipe.seeds[0]}"
    console.print(
        f"The run folder {printable(out)}/ has summary.json, curves.png, metrics.jsonl, "
        f"settings.yaml, and student/ ({exported}), which timm loads:",
        soft_wrap=True,
    )
    code = loading_code(recipe.student, RunFolder(out).student)
    console.print(f"  {printable(code)}", soft_wrap=True)


def build_accuracy_table(recipe: Recipe, pair: PairSummary, results: list[Result]) -> Table:
    """A row of accuracies (in %) for the teacher and for each method."""
    table = _table(f"top-1 (%) on the validation images, {results[0].steps} steps each", recipe)
    if pair.teacher_top1 is not None:
        no_seeds = [""] * len(recipe.seeds)
        size = f"{pair.teacher_parameters / 1e6:.3f}"
        table.add_row("teacher", f"{pair.teacher_top1:.2%}"[:-1], "", *no_seeds, size, "")
    for method, label in METHOD_NAMES.items():
        if runs := results_of_method(results, method):
            percent = {r.run.seed: 100 * r.top1 for r in runs if r.top1 is not None}
            table.add_row(label, *_statistics(percent, recipe.seeds, 2), *_costs(pair, runs))
    return table


def build_loss_table(recipe: Recipe, pair: PairSummary, results: list[Result]) -> Table:
    """A row of final losses for each method: what a job without labels can show."""
    steps = results[0].steps
    averaged = min(AVERAGED_STEPS, steps)
    title = f"loss on the training images, mean of the last {averaged} of {steps} steps"
    table = _table(title, recipe)
    for method, label in METHOD_NAMES.items():
        if runs := results_of_method(results, method):
            losses = {r.run.seed: r.loss for r in runs}
            table.add_row(label, *_statistics(losses, recipe.seeds, 3), *_costs(pair, runs))
    return table


def _table(title: str, recipe: Recipe) -> Table:
    table = Table(title=title)
    table.add_column("")
    for column in ("mean", "sd", *(f"seed {s}" for s in recipe.seeds), "M params", "s/step"):
        table.add_column(column, justify="right")
    return table


def _statistics(value_by_seed: dict[int, float], seeds: list[int], digits: int) -> list[str]:
    """Mean and standard deviation over the seeds, then the value of each seed."""
    values = list(value_by_seed.values())
    deviation = f"{statistics.stdev(values):.{digits}f}" if len(values) > 1 else "-"
    by_seed = [f"{value_by_seed[seed]:.{digits}f}" for seed in seeds]
    return [f"{statistics.fmean(values):.{digits}f}", deviation, *by_seed]


def _costs(pair: PairSummary, runs: list[Result]) -> list[str]:
    return [f"{pair.student_parameters / 1e6:.3f}", f"{seconds_per_step(runs):.4f}"]


def compare_in_sentences(results: list[Result], main: Method = "scalekd") -> list[str]:
    """A sentence for each comparison of the method `main` with another: the gain paired by seed,
    its spread, and the cost in time."""
    if not all_have_accuracy(results):
        return _compare_losses(results, main)
    sentences: list[str] = []
    name, distilled = METHOD_NAMES[main], results_of_method(results, main)
    if not distilled:
        return sentences
    faster = []
    for method, other in METHOD_NAMES.items():
        baseline = results_of_method(results, method)
        if not baseline or method == main:
            continue
        cost = seconds_per_step(distilled) / seconds_per_step(baseline)
        sentences.append(
            f"{name} against {other} after the same number of steps: "
            f"{_describe_gains(accuracy_gains(results, method, main))}; a step of {name} took "
            f"{cost:.1f} times as long."
        )
        if cost > EQUAL_COST and method != "supervised":
            faster.append(other)
    if faster:
        sentences.append(
            f"In the same training time {' or '.join(faster)} would take more steps than {name}; "
            "this comparison does not show the accuracy that it would reach."
        )
    return sentences


def _compare_losses(results: list[Result], main: Method) -> list[str]:
    sentences = []
    for method, label in METHOD_NAMES.items():
        if runs := results_of_method(results, method):
            sentences.append(f"{label}: loss = {format_terms(mean_terms(runs), 3)}.")
    sentences.append("These losses do not show how good a student is: that takes a task's labels.")
    distilled = results_of_method(results, main)
    baseline = results_of_method(results, "logit_kd")
    if baseline and distilled and "logits" in distilled[0].terms and main != "logit_kd":
        with_features, logits_only = (mean_terms(r)["logits"] for r in (distilled, baseline))
        cost = seconds_per_step(distilled) / seconds_per_step(baseline)
        sentences.append(
            f"Only the logits' term can be compared: {with_features:.3f} with feature "
            f"distillation, {logits_only:.3f} without; a step of {METHOD_NAMES[main]} took "
            f"{cost:.1f} times as long."
        )
    return sentences


def _describe_gains(gains: list[float]) -> str:
    """The mean of gains in percentage points, one for each seed, compared with their spread."""
    gain = statistics.fmean(gains)
    if len(gains) == 1:
        return f"{gain:+.2f} points with one seed, so the spread between seeds is unknown"
    spread = statistics.stdev(gains)
    by_seed = ", ".join(f"{g:+.2f}" for g in gains)
    mean_and_spread = f"{gain:+.2f} points (by seed {by_seed}; spread {spread:.2f})"
    if abs(gain) <= spread:
        return f"{mean_and_spread}, NOT larger than the spread"
    return f"{mean_and_spread}, {'larger' if gain > 0 else 'a LOSS larger'} than the spread"
