"""What runs are called, where they stand, and what came of them, as data."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from scalekd.networks import InputConfig
from scalekd.recipe import Baseline, Recipe

AVERAGED = 50
"""Over how many of a run's last steps its final loss is the mean: one step's alone is noise."""

Method = Literal["scalekd", "supervised", "logit_kd"]
LABELS: dict[Method, str] = {
    "supervised": "student alone",
    "logit_kd": "logit KD",
    "scalekd": "ScaleKD",
}


@dataclass(frozen=True)
class Run:
    """Which method with which seed."""

    method: Method
    seed: int

    def __str__(self) -> str:
        return f"{self.method} seed {self.seed}"

    def checkpoint(self, out: Path) -> Path:
        """The run's checkpoint in the run folder."""
        return out / "checkpoints" / f"{self.method}-seed{self.seed}.ckpt"


def methods_to_train(teacher: str | None, compare: Sequence[Baseline]) -> list[Method]:
    """What a recipe trains for each seed, the longest first; the first one's student is kept."""
    return ["supervised"] if teacher is None else ["scalekd", *reversed(compare)]


def main_run(recipe: Recipe) -> Run:
    """The run whose student is kept."""
    return Run(methods_to_train(recipe.teacher, recipe.compare)[0], recipe.seeds[0])


@dataclass(frozen=True)
class Result:
    """What a run gave.

    top1: share of validation images right at the end; None without labels.
    seconds: of training, without measuring and without start-up.
    terms: of the loss, weighted, by name: means over the last steps.
    broken: how many images could not be read, since it was last begun or resumed.
    """

    run: Run
    top1: float | None
    seconds: float
    steps: int
    images_per_second: float
    terms: dict[str, float] = field(default_factory=dict)
    broken: int = 0

    @classmethod
    def of(cls, plain: dict[str, Any]) -> "Result":
        """Out of what `asdict` made of one; TypeError or KeyError where that is none."""
        return cls(**{**plain, "run": Run(**plain["run"])})

    @property
    def loss(self) -> float:
        """Sum of the terms."""
        return sum(self.terms.values())


@dataclass(frozen=True)
class Progress:
    """Where a run stands. `top1` (a share) only when it was just measured, which takes labels;
    `terms` are weighted; `kept` where it belongs in the record, which is a matter of steps alone;
    `gradients` are the norms of the student's and the projectors', before clipping; `waiting` is
    the share of the training's time, since this process began it, that was spent waiting for
    images; `memory` is the most that this process has held, in bytes: the GPU's where it trains on
    one; `broken` is how many images could not be read.
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
    kept: bool = False
    gradients: dict[str, float] = field(default_factory=dict)
    waiting: float = 0.0
    memory: int = 0
    broken: int = 0


@dataclass(frozen=True)
class PairSummary:
    """What is known before training: who teaches whom, and how good the teacher is here.

    images: channels, size and normalisation of the student's.
    labels: whether the images have any; without them nothing is measured.
    fit: what is projected to what, in one line.
    gflop: of a training step, for an image.
    workers: processes that load images, for each device.
    Of a student alone the teacher's and the projectors' parameters are 0.
    """

    teacher_top1: float | None
    teacher_parameters: int
    student_parameters: int
    projector_parameters: int
    notes: list[str]
    labels: bool = True
    fit: str = ""
    gflop: float = 0.0
    workers: int = 0
    images: InputConfig | None = None


def results_of_method(results: list[Result], method: str) -> list[Result]:
    """The results of one method, by seed."""
    return sorted((r for r in results if r.run.method == method), key=lambda r: r.run.seed)


def mean_of_known(values: Sequence[float | None]) -> float | None:
    """The mean of what is known, or None of nothing."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def mean_terms(results: list[Result]) -> dict[str, float]:
    """The loss's terms at the end of one method's runs, by name."""
    return {name: statistics.fmean(r.terms[name] for r in results) for name in results[0].terms}


def all_have_accuracy(results: list[Result]) -> bool:
    """Whether there were labels to measure with."""
    return all(r.top1 is not None for r in results)


def accuracy_gains(results: list[Result], method: str) -> list[float]:
    """By how many points ScaleKD is above another method, for each seed that both have finished."""
    others = {r.run.seed: r.top1 for r in results_of_method(results, method) if r.top1 is not None}
    return [
        100 * (r.top1 - others[r.run.seed])
        for r in results_of_method(results, "scalekd")
        if r.top1 is not None and r.run.seed in others
    ]


def seconds_per_step(results: list[Result]) -> float:
    """Mean over runs."""
    return statistics.fmean(r.seconds / r.steps for r in results)


def format_duration(seconds: float) -> str:
    """In two units at most."""
    minutes, hours = seconds / 60, seconds / 3600
    if minutes < 2:
        return f"{seconds:.0f} s"
    if hours < 2:
        return f"{minutes:.0f} min"
    return f"{hours:.0f} h" if hours < 48 else f"{hours / 24:.1f} days"
