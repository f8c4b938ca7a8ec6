"""What a step of each method costs on this machine, with a live teacher and from a cache.

    python experiments/evidence/cost.py       # writes cost.json, which equal times follow from

The steps of all methods are timed interleaved in one process with one thread, in an order that is
drawn again for each repetition. A step is the training loop's on one real batch: forward, backward,
clipping and optimizer. From a cache the teacher's outputs are given, as if reading them cost
nothing.
"""

import json
import statistics
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from recorded import HERE, Recorded, provenance, write_json
from step import time_interleaved
from trials import Trial, merge, read_settings

from scalekd.data.sampler import ResumableBatchSampler
from scalekd.recipe import Method, recipe_from_settings
from scalekd.runs.result import Run
from scalekd.training.batch import Batch, SharedTeacherOutputs
from scalekd.training.loop import TrainingLoop
from scalekd.training.performance import build_fabric
from scalekd.training.prepare import Prepared, PreparedTeacher, prepare
from scalekd.training.train import open_loaders

COST = HERE / "cost.json"
METHODS: tuple[Method, ...] = ("supervised", "logit_kd", "fd", "dist", "ofa", "rsd", "scalekd")
REPETITIONS = 20


class TimedStep:
    """A step of the training loop, by one method on one batch.

    Args:
        prepared: the pair and its images.
        method: what is timed.
        from_cache: whether the teacher's outputs are there: the first step computes them for all.
    """

    def __init__(self, prepared: Prepared, method: Method, from_cache: bool) -> None:
        recipe = prepared.recipe
        learner = prepared.build_learner(Run(method, 0)).train()
        loader, _ = open_loaders(prepared, learner, seed=0)
        assert isinstance(loader.batch_sampler, ResumableBatchSampler)
        self.loop = TrainingLoop(
            learner,
            build_fabric(recipe.precision),
            loader.batch_sampler,
            optim=recipe.optim,
            learning_rate=recipe.learning_rate,
        )
        self.batch = Batch.from_loader(next(iter(loader)), torch.device("cpu"), prepared.input)
        self.batch.shared = SharedTeacherOutputs() if from_cache else None

    def __call__(self) -> None:
        self.loop.micro_step(self.batch)


def measure() -> dict[str, dict[str, float]]:
    """Seconds of a step, medians, by regime and then by method; "METHOD, cache" from a cache."""
    settings = read_settings()
    seconds: dict[str, dict[str, float]] = {}
    teacher: PreparedTeacher | None = None
    for name, regime in settings["regimes"].items():
        recipe = recipe_from_settings(merge(settings["shared"], regime))
        prepared = prepare(recipe, teacher=teacher)
        teacher = prepared.teacher
        steps: dict[str, Callable[[], object]] = {}
        for method in METHODS:
            steps |= timed_steps(method, prepared, method)
        seconds[name] = time_medians(steps)
    return seconds


def timed_steps(arm: str, prepared: Prepared, method: Method) -> dict[str, TimedStep]:
    """The steps of an arm, with a live teacher and, where the method has one, from a cache."""
    steps = {arm: TimedStep(prepared, method, from_cache=False)}
    if method != "supervised":
        steps[f"{arm}, cache"] = TimedStep(prepared, method, from_cache=True)
    return steps


def time_medians(
    steps: dict[str, Callable[[], object]], repetitions: int = REPETITIONS
) -> dict[str, float]:
    """Median seconds of each step, timed interleaved."""
    seconds = time_interleaved(steps, repetitions, torch.device("cpu"))
    return {name: statistics.median(values) for name, values in seconds.items()}


@cache
def read_cost(file: Path = COST) -> dict[str, dict[str, float]]:
    """Seconds of a step by regime and arm, as a file that `write_cost` wrote has them."""
    seconds: dict[str, dict[str, float]] = json.loads(file.read_text())["seconds_per_step"]
    return seconds


def write_cost(file: Path, seconds: dict[str, dict[str, float]], command: str) -> None:
    """Write and print seconds of a step by regime and arm, which a command measured."""
    write_json(file, {"seconds_per_step": seconds, **provenance(command)})
    print(json.dumps(seconds, indent=1))


def seconds_of_step(by_arm: dict[str, float], method: str, suffix: str) -> float:
    """Of a method's steps with a live teacher, or from a cache if the suffix says so; a method
    without a teacher has one kind."""
    return by_arm.get(method + suffix, by_arm[method])


def steps_of(settings: dict[str, Any]) -> int:
    """Steps of a run."""
    data = settings["data"]
    images = data.get("epoch_images") or data.get("train_images") or read_settings()["images"]
    return int(settings["epochs"] * (images // settings["batch_size"]))


def expected(trial: Trial) -> float:
    """Training time of a run in seconds, by the timed steps of its method, or of logit KD where it
    is not among the timed ones; 0 if there are none."""
    if not COST.exists():
        return 0.0
    by_method = read_cost()[trial.regime]
    method = trial.settings.get("method") or "supervised"
    live = by_method.get(method, by_method["logit_kd"])
    step = live if trial.views is None else by_method.get(f"{method}, cache", live)
    return steps_of(trial.settings) * step


def seconds_of(trial: Recorded) -> float:
    """Training time of a finished run."""
    return float(json.loads(trial.record.read_text())["seconds"])


def main() -> None:
    torch.set_num_threads(1)
    write_cost(COST, measure(), "python experiments/evidence/cost.py")


if __name__ == "__main__":
    main()
