"""Time a training step beside the released structure, its parts, and a large matrix product.

    python benchmarks/step.py --pair swin_small-resnet50 --batch_size 8 --threads 2
    python benchmarks/step.py --teacher NAME --student NAME --precision bf16-mixed --json

Takes every option of a recipe. A step is forward and backward, without the optimizer, on noise and
with random weights. Six things are timed in one process, interleaved, in an order that is drawn
again for each repetition: our step; a step of the released structure; our step with the teacher's
outputs read from cached outputs in place of its forward pass; the teacher's forward pass; the
student's forward and backward passes; a large matrix product. Ratios compare two times of the same
repetition. Before that, all structures must give the same loss.
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
from released_structure import ReleasedStructure, disable_fused_attention
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from scalekd import ScaleKD, StepOutput
from scalekd.cache.encoding import decode, encode
from scalekd.device import best_device
from scalekd.estimating.memory_simulation import LiveMemory
from scalekd.estimating.meta_pair import TrainingImages
from scalekd.estimating.synthetic_step import SyntheticStep, time_call
from scalekd.flops import FLOP_FORMULAS
from scalekd.method import LossWeights
from scalekd.recipe import Recipe, find_recipe
from scalekd.runs.result import Run
from scalekd.runs.system_info import processor_name
from scalekd.training.performance import (
    apply_performance_settings,
    autocast_dtype,
    compile_repeated_blocks,
)
from scalekd.training.prepare import PreparedTeacher, prepare

WARM_UP_REPETITIONS = 2
"""Repetitions that run before the first one that is counted."""

CLASSES = 1000


class RecipeStep(SyntheticStep):
    """A synthetic step of a recipe's pair, which is built here with random teacher weights.

    The random weights are the same each time that the same recipe is built.

    Args:
        recipe: The recipe of the pair.
        batch: Images in the batch of noise.
        device: Where the step is computed.
        built_teacher: A teacher that another step has built already, to share it.
    """

    def __init__(
        self,
        recipe: Recipe,
        batch: int,
        device: torch.device,
        built_teacher: PreparedTeacher | None = None,
    ) -> None:
        recipe = replace(recipe, teacher_weights="random")
        source = TrainingImages(1, CLASSES).source()
        prepared = prepare(recipe, teacher=built_teacher, source=source)
        distiller = prepared.build_learner(Run("scalekd", recipe.seeds[0]))
        assert isinstance(distiller, ScaleKD)
        apply_performance_settings(distiller, recipe)
        super().__init__(distiller.to(device).train(), recipe, device, batch)

    def tensors(self) -> list[Tensor]:
        """The batch, and the weights and buffers of teacher, student and projectors."""
        models = self.distiller, self.distiller.teacher.model
        return [
            self.images,
            self.targets,
            *(t for m in models for t in (*m.parameters(), *m.buffers())),
        ]


class CachedStep(RecipeStep):
    """The step of `ours` with the teacher's outputs decoded from a cache's float16 encoding."""

    def __init__(self, ours: RecipeStep) -> None:
        super().__init__(ours.recipe, len(ours.images), ours.images.device)
        distiller = self.distiller
        distiller.load_state_dict(ours.distiller.state_dict())
        teacher_images = self.images * distiller.teacher_scale + distiller.teacher_shift
        with self.autocast():
            outputs = distiller.teacher.to_cache(teacher_images)
            self.cached_outputs = decode(encode(outputs, "float16"))
        distiller.teacher.drop_trunk()

    def compute_loss(self) -> Tensor:
        """Run the student and the losses on the cached teacher outputs."""
        teacher = self.distiller.teacher.from_cache(self.cached_outputs)
        output: StepOutput = self.distiller(self.images, self.targets, teacher_outputs=teacher)
        return output.loss


class ReleasedStep(RecipeStep):
    """The step of `ours`, with the same weights, in the structure of the released code."""

    def __init__(self, ours: RecipeStep) -> None:
        weights = ours.distiller.criterion.weights
        tpp = 1.0 if ours.distiller.criterion.penultimate else 0.0
        all_terms = LossWeights(tpp, tpp, 1.0, 1.0, weights.logits)
        recipe = replace(ours.recipe, weights=all_terms, compile=False, channels_last=False)
        # Built in float32: in the released code autocast casts the teacher's weights at each use.
        float32_recipe = replace(recipe, precision="32-true")
        super().__init__(float32_recipe, len(ours.images), ours.images.device)
        self.recipe = recipe
        distiller = self.distiller
        distiller.load_state_dict(ours.distiller.state_dict(), strict=False)
        disable_fused_attention(distiller.teacher.model)
        disable_fused_attention(distiller.student)
        grid = distiller.teacher.shapes.final[1:]
        self.released = ReleasedStructure(distiller.criterion, weights, grid).to(self.device)

    def compute_loss(self) -> Tensor:
        """Run the forward pass in the released structure."""
        distiller = self.distiller
        student = distiller.student_extractor(self.images)
        teacher = distiller.run_teacher(self.images)
        terms = self.released(student, teacher, distiller.teacher.tail)
        task = (1 - self.released.weights.logits) * distiller.task(student.logits, self.targets)
        return task + torch.stack(list(terms.values())).sum()


@dataclass(frozen=True)
class Quartiles:
    """The quartiles of repeated measurements.

    Attributes:
        median: The second quartile.
        low, high: The first and the third quartile.
    """

    median: float
    low: float
    high: float

    @classmethod
    def from_values(cls, values: list[float]) -> "Quartiles":
        """The quartiles of `values`."""
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)

    def __str__(self) -> str:
        return f"{self.median:.4g} ({self.low:.4g} to {self.high:.4g})"


def measure_peak_bytes(step: RecipeStep) -> int:
    """Bytes of live tensors at the peak of a step."""
    step.distiller.zero_grad()
    if step.images.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step.forward_backward()
        return torch.cuda.max_memory_allocated() - before + sum(t.nbytes for t in step.tensors())
    with LiveMemory() as live:
        live.track(step.tensors())
        step.forward_backward()
    return live.peak


def count_gflop_per_image(step: RecipeStep) -> float:
    """GFLOP of a step for each image, 2 FLOP for each multiply-add."""
    with FlopCounterMode(display=False, custom_mapping=FLOP_FORMULAS) as counter:
        step.forward_backward()
    return float(counter.get_total_flops()) / len(step.images) / 1e9


def build_matrix_product(step: RecipeStep) -> tuple[Callable[[], Tensor], float]:
    """A large matrix product in the step's precision and on its device, and its GFLOP."""
    side = 8192 if step.device.type == "cuda" else 2048
    dtype = autocast_dtype(step.recipe.precision, step.device) or torch.float32
    a, b = (torch.randn(side, side, device=step.device).to(dtype) for _ in range(2))
    return lambda: a @ b, 2 * side**3 / 1e9


def relative_difference(ours: Tensor, reference: Tensor, precision: str) -> float:
    """The relative difference of two losses; exits where it is more than rounding explains."""
    difference = abs(ours.item() - reference.item()) / abs(reference.item())
    allowed = 1e-4 if precision == "32-true" else 2e-2
    if not difference <= allowed:
        raise SystemExit(
            f"the losses are {ours.item()} and, in the reference, {reference.item()}: they differ "
            f"by {difference:.2g}, more than {allowed:g}"
        )
    return difference


def time_interleaved(
    functions: dict[str, Callable[[], object]], repetitions: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each function in each repetition; each repetition draws another order."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for repetition in range(WARM_UP_REPETITIONS + repetitions):
        for name in random.sample(list(functions), len(functions)):
            duration = time_call(functions[name], device)
            if repetition >= WARM_UP_REPETITIONS:
                seconds[name].append(duration)
    return seconds


def benchmark(recipe: Recipe, batch: int, repetitions: int, device: torch.device) -> dict[str, Any]:
    """The results by name; those of benchmarks/results/ have the same names."""
    ours = RecipeStep(recipe, batch, device)
    released, cached = ReleasedStep(ours), CachedStep(ours)
    gflop = count_gflop_per_image(ours)
    peaks = [measure_peak_bytes(step) for step in (ours, released, cached)]
    our_loss, released_loss = ours.forward_backward(), released.forward_backward()
    difference = relative_difference(our_loss, released_loss, recipe.precision)
    cached_loss, our_loss = cached.forward_backward(), ours.forward_backward()
    difference_of_cached = relative_difference(cached_loss, our_loss, "16-mixed")
    if recipe.compile:
        compile_repeated_blocks(ours.distiller)
        compile_repeated_blocks(cached.distiller)
    matrix_product, matrix_product_gflop = build_matrix_product(ours)
    functions: dict[str, Callable[[], object]] = {
        "step": ours.forward_backward,
        "reference": released.forward_backward,
        "cached": cached.forward_backward,
        "teacher": ours.run_teacher,
        "student": ours.run_student,
        "matmul": matrix_product,
    }
    seconds = time_interleaved(functions, repetitions, device)
    steps = seconds["step"]
    to_reference = [s / r for s, r in zip(steps, seconds["reference"], strict=True)]
    of_cached = [c / s for c, s in zip(seconds["cached"], steps, strict=True)]
    rates = [matrix_product_gflop / duration for duration in seconds["matmul"]]
    shares = [gflop * batch / s / r for s, r in zip(steps, rates, strict=True)]
    return {
        "step_seconds": Quartiles.from_values(steps),
        "reference_seconds": Quartiles.from_values(seconds["reference"]),
        "ratio_to_reference": Quartiles.from_values(to_reference),
        "cached_seconds": Quartiles.from_values(seconds["cached"]),
        "ratio_of_cached": Quartiles.from_values(of_cached),
        "teacher_seconds": Quartiles.from_values(seconds["teacher"]),
        "student_seconds": Quartiles.from_values(seconds["student"]),
        "images_per_second": Quartiles.from_values([batch / s for s in steps]),
        "gflop_per_image": gflop,
        "matmul_gflops": Quartiles.from_values(rates),
        "matmul_share": Quartiles.from_values(shares),
        "peak_bytes": peaks[0],
        "reference_peak_bytes": peaks[1],
        "cached_peak_bytes": peaks[2],
        "memory_ratio": peaks[0] / peaks[1],
        "difference_of_losses": difference,
        "difference_of_cached_losses": difference_of_cached,
    }


def parse_options(
    description: str,
    repetitions: int,
    add_options: Callable[[jsonargparse.ArgumentParser], None] = lambda _: None,
) -> tuple[Recipe, Any]:
    """Read the command line.

    Args:
        description: What `--help` prints.
        repetitions: Default of `--repetitions`.
        add_options: Adds a script's own options.

    Returns:
        The recipe, and all options.
    """
    parser = jsonargparse.ArgumentParser(description=description, allow_abbrev=False)
    parser.add_class_arguments(Recipe)
    parser.add_argument("--pair", type=str | None, help="Name of a packaged recipe.")
    parser.add_argument("--config", action="config", help="YAML file of a recipe.")
    parser.set_defaults({"data.root": "imagenet"})  # no image is read
    threads = torch.get_num_threads()
    parser.add_argument("--threads", type=int, default=threads, help="Number of CPU threads.")
    device = str(best_device())
    parser.add_argument("--device", type=str, default=device, help="Device to compute on.")
    repetitions_help = f"Timed repetitions, after {WARM_UP_REPETITIONS} that are not counted."
    parser.add_argument("--repetitions", type=int, default=repetitions, help=repetitions_help)
    parser.add_argument("--json", action="store_true", help="Print the results as JSON.")
    add_options(parser)
    words = sys.argv[1:]
    if "--pair" in words[:-1]:
        at = words.index("--pair")
        words[at : at + 2] = ["--config", str(find_recipe(words[at + 1]))]
    options = parser.instantiate(parser.parse_args(words))
    torch.set_num_threads(options.threads)
    return Recipe(**{field.name: options[field.name] for field in fields(Recipe)}), options


def describe_setup(recipe: Recipe, options: Any) -> dict[str, Any]:
    """What was measured, on which machine, and with which versions."""
    on_gpu = options.device.startswith("cuda")
    return {
        "teacher": recipe.teacher,
        "student": recipe.student,
        "batch": recipe.batch_size,
        "precision": recipe.precision,
        "compile": recipe.compile,
        "channels_last": recipe.channels_last,
        "repetitions": options.repetitions,
        "machine": torch.cuda.get_device_name() if on_gpu else processor_name(),
        "threads": None if on_gpu else options.threads,
        "torch": version("torch"),
        "timm": version("timm"),
        "date": datetime.now(UTC).date().isoformat(),
    }


def main() -> None:
    """Run the benchmark and print its results."""
    recipe, options = parse_options(__doc__.partition("\n")[0], repetitions=7)
    device = torch.device(options.device)
    results = benchmark(recipe, recipe.batch_size, options.repetitions, device)
    results |= describe_setup(recipe, options)
    if options.json:
        print(json.dumps(results, default=vars, indent=1))
        return
    for name, value in results.items():
        print(f"{name:22} {value if not isinstance(value, float) else f'{value:.4g}'}")


if __name__ == "__main__":
    main()
