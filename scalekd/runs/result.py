"""Runs, their progress and their results as plain data, and the numbers computed from results.

A `Run` is one method with one seed. While it trains it gives a `Progress` after each step, some of
which metrics.jsonl records; at the end it gives a `Result`, one line of results.jsonl.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from scalekd.data.source import Split
from scalekd.networks import InputConfig
from scalekd.notes import Note
from scalekd.reading import is_number, is_whole, read_jsonl
from scalekd.recipe import Method, Recipe

AVERAGED_STEPS = 50
"""Last steps over which a run's final loss is the mean: the loss of a single step is noise."""

METHOD_NAMES: dict[Method, str] = {
    "supervised": "supervised",
    "logit_kd": "logit KD",
    "fd": "FD",
    "dist": "DIST",
    "ofa": "OFA-KD",
    "rsd": "RSD",
    "relations": "relations",
    "vkd": "VkD",
    "scalekd": "ScaleKD",
}
"""How tables, curves and sentences call the methods, in the order in which they list them."""


TRANSFERS = {"segment": "segmentation", "detect": "detection"}
"""What a student is trained for after its distillation, by the name in a run, and in words."""


class AnyRun(Protocol):
    """What is one training of a run folder: a method, or a transfer, with a seed."""

    @property
    def method(self) -> str:
        """One of `METHOD_NAMES` or of `TRANSFERS`."""

    @property
    def seed(self) -> int:
        """The seed."""


@dataclass(frozen=True)
class Run:
    """One training of one student: a method with a seed."""

    method: Method
    seed: int

    def __str__(self) -> str:
        return f"{self.method} seed {self.seed}"


def methods_to_train(
    teacher: str | None, compare: Sequence[Method], method: Method = "scalekd"
) -> list[Method]:
    """Methods that a recipe trains for each seed, its own first; see also `main_run`.

    Args:
        teacher: the recipe's; without one only the supervised baseline is trained.
        compare: the methods that the recipe compares its own with.
        method: the recipe's own.
    """
    return ["supervised"] if teacher is None else [method, *reversed(compare)]


def main_run(recipe: Recipe) -> Run:
    """The run whose student is exported: the first method with the first seed."""
    return Run(methods_to_train(recipe.teacher, recipe.compare, recipe.method)[0], recipe.seeds[0])


@dataclass(frozen=True)
class Progress:
    """Where a run is after a step.

    Attributes:
        step: optimizer steps so far.
        steps: optimizer steps of the complete run.
        epoch: epochs so far, with the fraction of the current one.
        seconds: training time so far, over all processes that resumed the run.
        images_per_second: mean over the run.
        learning_rate: of this step.
        loss: of this step, the sum of `terms`.
        terms: weighted terms of the loss, by name.
        top1: accuracy on the validation images (a share), only where it was just measured, which
            takes labels.
        recorded: whether metrics.jsonl records it, which depends only on the step.
        gradients: gradient norms of student and projectors before clipping.
        waiting: share of the training time spent waiting for images, since this process began.
        memory: peak memory of this process in bytes: the GPU's where it trains on one.
        corrupt_images: images that could not be read.
        scores: of the validation images where a transfer just measured them, by name, such as the
            mean IoU of a segmentation.
    """

    step: int
    steps: int
    epoch: float
    seconds: float
    images_per_second: float
    learning_rate: float
    loss: float
    terms: dict[str, float]
    top1: float | None = None
    recorded: bool = False
    gradients: dict[str, float] = field(default_factory=dict)
    waiting: float = 0.0
    memory: int = 0
    corrupt_images: int = 0
    scores: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """The outcome of a finished run.

    Attributes:
        run: which one.
        top1: accuracy on the validation images at the end (a share); None without labels.
        seconds: training time, without validation and start-up.
        steps: optimizer steps.
        images_per_second: mean over the run.
        terms: weighted terms of the loss by name, means over the last `AVERAGED_STEPS` steps.
        corrupt_images: images that could not be read, since the run was last started or resumed.
    """

    run: Run
    top1: float | None
    seconds: float
    steps: int
    images_per_second: float
    terms: dict[str, float] = field(default_factory=dict)
    corrupt_images: int = 0

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> "Result":
        """The result that `dataclasses.asdict` made `plain` from.

        Raises:
            TypeError, KeyError, ValueError: fields are missing, unknown or of another kind.
        """
        result = cls(**{**plain, "run": Run(**plain["run"])})
        numbers = [result.seconds, result.images_per_second]
        if (
            not _is_run(result.run.method, result.run.seed)
            or not (result.top1 is None or _is_share(result.top1))
            or not all(is_number(number, least=0) for number in numbers)
            or not (is_whole(result.steps, least=1) and is_whole(result.corrupt_images))
            or not all(isinstance(value, int | float) for value in result.terms.values())
        ):
            raise ValueError(f"{plain} is no result")
        return result

    @property
    def loss(self) -> float:
        """Final loss, the sum of the terms."""
        return sum(self.terms.values())


@dataclass(frozen=True)
class PairSummary:
    """Teacher and student as they are before training.

    Attributes:
        teacher_top1: the teacher's accuracy on the validation images (a share); None where it was
            not measured, and without a teacher.
        teacher_parameters: their number; 0 without a teacher.
        student_parameters: their number.
        projector_parameters: their number; 0 without a teacher.
        notes: remarks for the person who trains.
        labels: whether the images have labels; without them there is no accuracy.
        fit: which features are projected to which, in one line.
        gflop: of a training step, for each image.
        workers: processes that load images, for each device.
        images: the student's images.
        teacher_images: the teacher's images; None without a teacher.
        splits: what the training and the validation split hold.
    """

    teacher_top1: float | None
    teacher_parameters: int
    student_parameters: int
    projector_parameters: int
    notes: list[Note]
    labels: bool = True
    fit: str = ""
    gflop: float = 0.0
    workers: int = 0
    images: InputConfig | None = None
    teacher_images: InputConfig | None = None
    splits: tuple[Split, ...] = ()


def read_metrics(file: Path) -> tuple[list[dict[str, Any]], int]:
    """Read metrics.jsonl: its entries, and how many of its lines are broken."""
    lines, broken = read_jsonl(file)
    entries = list(filter(_is_entry, lines))
    return entries, broken + len(lines) - len(entries)


def _is_entry(line: dict[str, Any]) -> bool:
    """Whether a line of metrics.jsonl has what every line has; there is more in it."""
    return (
        _is_run(line.get("method"), line.get("seed"))
        and is_whole(line.get("step"))
        and is_whole(line.get("steps"), least=1)
        and is_number(line.get("seconds"), least=0)
        and isinstance(line.get("loss"), int | float)
        and "top1" in line
        and (line["top1"] is None or _is_share(line["top1"]))
    )


def _is_run(method: object, seed: object) -> bool:
    known = isinstance(method, str) and (method in METHOD_NAMES or method in TRANSFERS)
    return known and is_whole(seed)


def _is_share(value: object) -> bool:
    return is_number(value, least=0, most=1)


def read_results(file: Path) -> tuple[list[Result], int]:
    """Read results.jsonl: its results, and how many of its lines are broken."""
    lines, broken = read_jsonl(file)
    results = []
    for line in lines:
        try:
            results.append(Result.from_dict(line))
        except (TypeError, KeyError, ValueError, AttributeError):
            broken += 1
    return results, broken


def results_of_method(results: list[Result], method: str) -> list[Result]:
    """The results of one method, sorted by seed."""
    return sorted((r for r in results if r.run.method == method), key=lambda r: r.run.seed)


def all_have_accuracy(results: list[Result]) -> bool:
    """Whether every run was measured, which takes labels."""
    return all(result.top1 is not None for result in results)


def accuracy_gains(results: list[Result], method: Method, main: Method = "scalekd") -> list[float]:
    """Percentage points by which `main` exceeds `method`, for each seed that both finished."""
    baseline = {r.run.seed: r.top1 for r in results if r.run.method == method}
    pairs = [(r.top1, baseline.get(r.run.seed)) for r in results_of_method(results, main)]
    return [100 * (one - other) for one, other in pairs if one is not None and other is not None]


def mean_of_known(values: Sequence[float | None]) -> float | None:
    """The mean of the values that are not None; None where there are none."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def mean_terms(results: list[Result]) -> dict[str, float]:
    """Final terms of the loss by name, means over one method's results."""
    return {name: statistics.fmean(r.terms[name] for r in results) for name in results[0].terms}


def seconds_per_step(results: list[Result]) -> float:
    """Training time of a step, the mean over results."""
    return statistics.fmean(r.seconds / r.steps for r in results)


def format_duration(seconds: float) -> str:
    """A duration in its natural unit: "90 s", "45 min", "20 h", "3.5 days"."""
    minutes, hours = seconds / 60, seconds / 3600
    if minutes < 2:
        return f"{seconds:.0f} s"
    if hours < 2:
        return f"{minutes:.0f} min"
    return f"{hours:.0f} h" if hours < 48 else f"{hours / 24:.1f} days"
