"""Time a step for several batch sizes, image sizes and teachers, and for several students at once.

    python benchmarks/scaling.py --pair swin_small-resnet50 --batch_size 8 --threads 2

Takes the options of step.py; a step is what it is there. One setting is changed at a time. All
values of a setting are timed interleaved, in an order that is drawn again for each repetition.
Several students learn from one forward pass of their teacher, one after another; beside them each
student is timed by itself, and the ratio compares times of the same repetition.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from step import (
    Quartiles,
    RecipeStep,
    count_gflop_per_image,
    describe_setup,
    measure_peak_bytes,
    parse_options,
    time_interleaved,
)
from torch import Tensor

from scalekd import InputError
from scalekd.networks import FeatureSelection
from scalekd.recipe import Recipe
from scalekd.training.batch import Batch, SharedTeacherOutputs
from scalekd.training.performance import compile_repeated_blocks
from scalekd.training.prepare import build_teacher

BATCH_FACTORS = 0.25, 0.5, 1, 2
"""Batch sizes, as multiples of the recipe's."""

IMAGE_SIDES = 160, 192, 224, 288
"""Sides of the student's images in pixels; the teacher sees them at its own size."""

TEACHERS = tuple(f"swin_{size}_patch4_window7_224" for size in ("tiny", "small", "base", "large"))

STUDENTS = "resnet18", "mobilenetv1_100", "mixer_s16_224"


@dataclass(frozen=True)
class Point:
    """The measurements of one value of one setting.

    Attributes:
        setting, value: What was changed, and to what.
        step_seconds: Seconds a step.
        images_per_second: At the median of `step_seconds`.
        gflop_per_image: GFLOP of a step for each image.
        peak_bytes: Bytes of live tensors at the peak of a step.
        ratio: Of several students at once, their step's seconds over the sum of the seconds of
            the same students by themselves; None for a single student.
    """

    setting: str
    value: str
    step_seconds: Quartiles
    images_per_second: float
    gflop_per_image: float
    peak_bytes: int
    ratio: Quartiles | None = None


class MultiStudentStep(RecipeStep):
    """The steps of several recipes, whose students learn from one forward pass of a teacher."""

    def __init__(self, recipes: list[Recipe], device: torch.device) -> None:
        first, *others = recipes
        teacher = build_teacher(replace(first, teacher_weights="random"))
        super().__init__(first, first.batch_size, device, teacher)
        self.others = [RecipeStep(other, other.batch_size, device, teacher) for other in others]

    def forward_backward(self) -> Tensor:
        """Run a step of each student, and return their losses."""
        shared_outputs, losses = SharedTeacherOutputs(), []
        for step in (self, *self.others):
            with step.autocast():
                batch = Batch(step.images, step.targets, shared=shared_outputs)
                loss = batch.loss(step.distiller).loss
            step.distiller.zero_grad()
            torch.autograd.backward(loss)
            losses.append(loss.detach())
        return torch.stack(losses)

    def tensors(self) -> list[Tensor]:
        """Tensors of all students, and gradients that are live while another student learns."""
        weights = [p for step in self.others for p in step.distiller.parameters()]
        buffers = [b for step in self.others for b in step.distiller.buffers()]
        gradients = [p.grad for p in weights if p.grad is not None]
        return [*super().tensors(), *weights, *buffers, *gradients]


def benchmark_students(
    recipe: Recipe, students: Sequence[str], repetitions: int, device: torch.device
) -> list[Point]:
    """A point for each student by itself, and one for all of them at once."""
    recipe = replace(recipe, accumulate=1, student_args={}, student_features=FeatureSelection())
    recipes = [replace(recipe, student=name) for name in students]
    steps = {r.student: RecipeStep(r, r.batch_size, device) for r in recipes}
    steps["all of them"] = multi_student = MultiStudentStep(recipes, device)
    if recipe.compile:
        for step in (*steps.values(), *multi_student.others):
            compile_repeated_blocks(step.distiller)
    functions = {name: step.forward_backward for name, step in steps.items()}
    seconds = time_interleaved(functions, repetitions, device)
    separate = [sum(times) for times in zip(*(seconds[name] for name in students), strict=True)]
    ratio = [s / sum_ for s, sum_ in zip(seconds["all of them"], separate, strict=True)]
    points = [build_point("students", name, steps[name], seconds[name]) for name in steps]
    return [*points[:-1], replace(points[-1], ratio=Quartiles.from_values(ratio))]


def build_point(setting: str, value: str, step: RecipeStep, seconds: list[float]) -> Point:
    """The point of a step that took `seconds` in each repetition."""
    quartiles = Quartiles.from_values(seconds)
    images_per_second = len(step.images) / quartiles.median
    gflop, peak = count_gflop_per_image(step), measure_peak_bytes(step)
    return Point(setting, value, quartiles, images_per_second, gflop, peak)


def recipes_by_setting(recipe: Recipe) -> dict[str, list[tuple[str, Recipe]]]:
    """By setting, its values and the recipe with each of them."""
    batches = [max(2, int(factor * recipe.batch_size)) for factor in BATCH_FACTORS]
    return {
        "batch": [(str(n), replace(recipe, batch_size=n)) for n in dict.fromkeys(batches)],
        "image side": [
            (str(side), replace(recipe, data=replace(recipe.data, image_size=side)))
            for side in IMAGE_SIDES
        ],
        "teacher": [(name, replace(recipe, teacher=name)) for name in TEACHERS],
    }


def benchmark_setting(
    setting: str, recipes: list[tuple[str, Recipe]], repetitions: int, device: torch.device
) -> list[Point]:
    """A point for each value; a pair that cannot work is skipped with a line on stderr."""
    steps: dict[str, RecipeStep] = {}
    for value, recipe in recipes:
        try:
            steps[value] = RecipeStep(replace(recipe, accumulate=1), recipe.batch_size, device)
        except InputError as error:
            print(f"{setting} {value} is skipped: {error}", file=sys.stderr)
    functions = {value: step.forward_backward for value, step in steps.items()}
    seconds = time_interleaved(functions, repetitions, device)
    return [build_point(setting, value, step, seconds[value]) for value, step in steps.items()]


def main() -> None:
    """Run the benchmark and print a line for each point."""
    recipe, options = parse_options(__doc__.partition("\n")[0], repetitions=5)
    device = torch.device(options.device)
    points = [
        point
        for setting, recipes in recipes_by_setting(recipe).items()
        for point in benchmark_setting(setting, recipes, options.repetitions, device)
    ]
    points += benchmark_students(recipe, STUDENTS, options.repetitions, device)
    if options.json:
        report: dict[str, Any] = {"points": points, **describe_setup(recipe, options)}
        print(json.dumps(report, default=vars, indent=1))
        return
    columns = f"{'images/s':>10}{'GFLOP':>8}{'peak GB':>9}  of separate students"
    print(f"{'':12}{'':32}{'seconds a step':28}{columns}")
    for p in points:
        print(
            f"{p.setting:12}{p.value:32}{p.step_seconds!s:28}{p.images_per_second:10.4g}"
            f"{p.gflop_per_image:8.4g}{p.peak_bytes / 1e9:9.3g}  {p.ratio or ''}"
        )
    for name, value in describe_setup(recipe, options).items():
        print(f"{name:14} {value}")


if __name__ == "__main__":
    main()
