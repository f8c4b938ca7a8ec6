"""How long a step takes, beside the released structure, its parts, and what the machine could do.

    python benchmarks/step.py --pair swin_small-resnet50 --batch_size 8 --threads 2
    python benchmarks/step.py --teacher NAME --student NAME --precision bf16-mixed --json

Takes every option of a recipe. A step is forward and backward, without the optimizer, on noise and
with random weights. By turns, in an order drawn anew each time, in one process: our step; one
of the released structure; our step with what a cache keeps in place of the teacher's pass; that
pass; the student's two; a large matrix product. Ratios are of the two steps of one turn. Before
that, all structures must give the same loss.
"""

import json
import random
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import jsonargparse
import torch
from released_structure import ReleasedStructure, unfused
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from scalekd import ScaleKD, StepOutput
from scalekd.cache.encoding import decode, encode
from scalekd.device import best_device
from scalekd.estimating.memory_simulation import Alive
from scalekd.estimating.meta_pair import TrainingImages
from scalekd.estimating.synthetic_step import Passes, seconds
from scalekd.flops import GROUPED
from scalekd.method import LossWeights
from scalekd.networks import FrozenTeacher
from scalekd.networks.pretrained import LoadedWeights
from scalekd.recipe import Recipe, find_recipe
from scalekd.runs.result import Run
from scalekd.runs.system_info import processor_name
from scalekd.training.performance import (
    apply_performance_settings,
    autocast_dtype,
    compile_repeated_blocks,
)
from scalekd.training.run import build_method

WARM_UP = 2
"""Turns that are not counted."""

CLASSES = 1000


class Pair(Passes):
    """A recipe's pair and a batch of noise.

    Args:
        recipe: whose teacher has random weights here, the same each time.
        batch: images.
        device: to compute on.
        built: the teacher, where another pair has it already.
    """

    def __init__(
        self,
        recipe: Recipe,
        batch: int,
        device: torch.device,
        built: tuple[FrozenTeacher, LoadedWeights] | None = None,
    ) -> None:
        recipe = replace(recipe, teacher_weights="random")
        source = TrainingImages(1, CLASSES).source()
        method, _ = build_method(recipe, Run("scalekd", recipe.seeds[0]), source, built)
        assert isinstance(method, ScaleKD)
        apply_performance_settings(method, recipe)
        super().__init__(method.to(device).train(), recipe, device, batch)

    def tensors(self) -> list[Tensor]:
        """Weights, buffers and the batch."""
        models = self.method, self.method.teacher.model
        return [
            self.images,
            self.targets,
            *(t for m in models for t in (*m.parameters(), *m.buffers())),
        ]


class Cached(Pair):
    """The same pair, whose teacher's pass was kept as a cache keeps it."""

    def __init__(self, ours: Pair) -> None:
        super().__init__(ours.recipe, len(ours.images), ours.images.device)
        method = self.method
        method.load_state_dict(ours.method.state_dict())
        seen = self.images * method.teacher_scale + method.teacher_shift
        with self.precision():
            self.kept = decode(encode(method.teacher.to_cache(seen), "float16"))
        method.teacher.drop_trunk()

    def loss(self) -> Tensor:
        """With the teacher's features as they were kept."""
        known = self.method.teacher.from_cache(self.kept)
        step: StepOutput = self.method(self.images, self.targets, teacher_outputs=known)
        return step.loss


class Reference(Pair):
    """The same pair with the same weights in the released structure."""

    def __init__(self, ours: Pair) -> None:
        weights = ours.method.criterion.weights
        tpp = 1.0 if ours.method.criterion.penultimate else 0.0
        everything = LossWeights(tpp, tpp, 1.0, 1.0, weights.logits)
        recipe = replace(ours.recipe, weights=everything, compile=False, channels_last=False)
        # Its teacher's weights are cast by autocast at each use.
        whole = replace(recipe, precision="32-true")
        super().__init__(whole, len(ours.images), ours.images.device)
        self.recipe = recipe
        self.method.load_state_dict(ours.method.state_dict(), strict=False)
        unfused(self.method.teacher.model)
        unfused(self.method.student)
        grid = self.method.teacher.shapes.final[1:]
        self.released = ReleasedStructure(self.method.criterion, weights, grid).to(
            ours.images.device
        )

    def loss(self) -> Tensor:
        """Of the released structure."""
        method = self.method
        seen = method.student_extractor(self.images)
        known = method.run_teacher(self.images)
        terms = self.released(seen, known, method.teacher.tail)
        task = (1 - self.released.weights.logits) * method.task(seen.logits, self.targets)
        return task + torch.stack(list(terms.values())).sum()


@dataclass(frozen=True)
class Measured:
    """The middle of several, and the quarters beside it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> "Measured":
        """These."""
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)

    def __str__(self) -> str:
        return f"{self.median:.4g} ({self.low:.4g} to {self.high:.4g})"


def peak(pair: Pair) -> int:
    """Bytes of the pair's tensors at the peak of a step."""
    pair.method.zero_grad()
    if pair.images.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        pair.learn()
        return torch.cuda.max_memory_allocated() - before + sum(t.nbytes for t in pair.tensors())
    with Alive() as alive:
        alive.hold(pair.tensors())
        pair.learn()
    return alive.peak


def gflop(pair: Pair) -> float:
    """An image's, 2 for each multiply-add."""
    with FlopCounterMode(display=False, custom_mapping=GROUPED) as counter:
        pair.learn()
    return float(counter.get_total_flops()) / len(pair.images) / 1e9


def multiply(pair: Pair) -> tuple[Callable[[], Tensor], float]:
    """A matrix product in the pair's precision, and its GFLOP."""
    device = pair.images.device
    side = 8192 if device.type == "cuda" else 2048
    dtype = autocast_dtype(pair.recipe.precision, device) or torch.float32
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return lambda: a @ b, 2 * side**3 / 1e9


def same(ours: Tensor, reference: Tensor, precision: str) -> float:
    """How far apart they are, relatively; an error where that is more than rounding."""
    difference = abs(ours.item() - reference.item()) / abs(reference.item())
    allowed = 1e-4 if precision == "32-true" else 2e-2
    if not difference <= allowed:
        raise SystemExit(f"our loss is {ours.item()}, the released structure's {reference.item()}")
    return difference


def by_turns(
    parts: dict[str, Callable[[], object]], repetitions: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each, `repetitions` times, in an order drawn anew each time."""
    taken: dict[str, list[float]] = {name: [] for name in parts}
    for turn in range(WARM_UP + repetitions):
        for name in random.sample(list(parts), len(parts)):
            passed = seconds(parts[name], device)
            if turn >= WARM_UP:
                taken[name].append(passed)
    return taken


def measure(recipe: Recipe, batch: int, repetitions: int, device: torch.device) -> dict[str, Any]:
    """The report as data."""
    ours = Pair(recipe, batch, device)
    reference, cached = Reference(ours), Cached(ours)
    work = gflop(ours)
    peaks = peak(ours), peak(reference), peak(cached)
    difference = same(ours.learn(), reference.learn(), recipe.precision)
    difference_of_cached = same(cached.learn(), ours.learn(), "16-mixed")
    if recipe.compile:
        compile_repeated_blocks(ours.method)
        compile_repeated_blocks(cached.method)
    product, product_gflop = multiply(ours)
    parts: dict[str, Callable[[], object]] = {
        "step": ours.learn,
        "reference": reference.learn,
        "cached": cached.learn,
        "teacher": ours.teach,
        "student": ours.study,
        "matmul": product,
    }
    taken = by_turns(parts, repetitions, device)
    ratios = [s / r for s, r in zip(taken["step"], taken["reference"], strict=True)]
    savings = [c / s for c, s in zip(taken["cached"], taken["step"], strict=True)]
    rates = [product_gflop / passed for passed in taken["matmul"]]
    shares = [work * batch / s / r for s, r in zip(taken["step"], rates, strict=True)]
    return {
        "step_seconds": Measured.of(taken["step"]),
        "reference_seconds": Measured.of(taken["reference"]),
        "ratio_to_reference": Measured.of(ratios),
        "cached_seconds": Measured.of(taken["cached"]),
        "ratio_of_cached": Measured.of(savings),
        "teacher_seconds": Measured.of(taken["teacher"]),
        "student_seconds": Measured.of(taken["student"]),
        "images_per_second": Measured.of([batch / s for s in taken["step"]]),
        "gflop_per_image": work,
        "matmul_gflops": Measured.of(rates),
        "matmul_share": Measured.of(shares),
        "peak_bytes": peaks[0],
        "reference_peak_bytes": peaks[1],
        "cached_peak_bytes": peaks[2],
        "memory_ratio": peaks[0] / peaks[1],
        "difference_of_losses": difference,
        "difference_of_cached_losses": difference_of_cached,
    }


def options(description: str, repetitions: int) -> tuple[Recipe, Any]:
    """What the command line says: a recipe, and how to measure it."""
    parser = jsonargparse.ArgumentParser(description=description, allow_abbrev=False)
    parser.add_class_arguments(Recipe)
    parser.add_argument("--pair", type=str | None, help="a packaged recipe, by its name")
    parser.add_argument("--config", action="config")
    parser.set_defaults({"data.root": "imagenet"})  # no image is read
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", type=str, default=str(best_device()))
    parser.add_argument("--repetitions", type=int, default=repetitions)
    parser.add_argument("--json", action="store_true", help="the same as data")
    words = sys.argv[1:]
    if "--pair" in words[:-1]:
        at = words.index("--pair")
        words[at : at + 2] = ["--config", str(find_recipe(words[at + 1]))]
    chosen = parser.instantiate(parser.parse_args(words))
    torch.set_num_threads(chosen.threads)
    return Recipe(**{field.name: chosen[field.name] for field in fields(Recipe)}), chosen


def circumstances(recipe: Recipe, chosen: Any) -> dict[str, Any]:
    """What was measured, and with what."""
    on_gpu = chosen.device.startswith("cuda")
    return {
        "teacher": recipe.teacher,
        "student": recipe.student,
        "batch": recipe.batch_size,
        "precision": recipe.precision,
        "compile": recipe.compile,
        "channels_last": recipe.channels_last,
        "repetitions": chosen.repetitions,
        "machine": torch.cuda.get_device_name() if on_gpu else processor_name(),
        "threads": None if on_gpu else chosen.threads,
        "torch": version("torch"),
        "timm": version("timm"),
        "date": datetime.now(UTC).date().isoformat(),
    }


def main() -> None:
    """The command."""
    recipe, chosen = options(__doc__.partition("\n")[0], repetitions=7)
    device = torch.device(chosen.device)
    result = measure(recipe, recipe.batch_size, chosen.repetitions, device)
    result |= circumstances(recipe, chosen)
    if chosen.json:
        print(json.dumps(result, default=vars, indent=1))
        return
    for name, value in result.items():
        print(f"{name:22} {value if not isinstance(value, float) else f'{value:.4g}'}")


if __name__ == "__main__":
    main()
