"""How a step grows with the batch, the image, the teacher, and the number of students.

    python benchmarks/scaling.py --pair swin_small-resnet50 --batch_size 8 --threads 2

Takes what step.py takes. One thing is changed at a time; a step is as there. All that is compared
is measured by turns, in an order drawn anew each time. Students together learn from one pass of
their teacher, one after another; beside them is each alone, and the ratio is of one turn's.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from step import Measured, Pair, by_turns, circumstances, gflop, options, peak
from torch import Tensor

from scalekd import InputError
from scalekd.recipe import Recipe
from scalekd.training.module import Lesson, learn
from scalekd.training.performance import compile_repeated_blocks
from scalekd.training.run import build_teacher

BATCHES = 0.25, 0.5, 1, 2
"""Of the recipe's."""

SIDES = 160, 192, 224, 288
"""Of the student's image; the teacher sees it at its own size."""

TEACHERS = tuple(f"swin_{size}_patch4_window7_224" for size in ("tiny", "small", "base", "large"))

STUDENTS = "resnet18", "mobilenetv1_100", "mixer_s16_224"


@dataclass(frozen=True)
class Point:
    """A step of one setting.

    ratio: of its seconds to the sum of the separate students', where it is of several.
    """

    setting: str
    value: str
    step_seconds: Measured
    images_per_second: float
    gflop_per_image: float
    peak_bytes: int
    ratio: Measured | None = None


class Together(Pair):
    """The first of several pairs, with the others under its teacher."""

    def __init__(self, recipes: list[Recipe], device: torch.device) -> None:
        first, *others = recipes
        built = build_teacher(replace(first, teacher_weights="random"))
        super().__init__(first, first.batch_size, device, built)
        self.others = [Pair(other, other.batch_size, device, built) for other in others]

    def learn(self) -> Tensor:
        """A step of each."""
        lesson, losses = Lesson(), []
        for pair in (self, *self.others):
            with pair.precision():
                batch = pair.images, pair.targets, lesson
                loss = learn(pair.method, batch).loss
            pair.method.zero_grad()
            torch.autograd.backward(loss)
            losses.append(loss.detach())
        return torch.stack(losses)

    def tensors(self) -> list[Tensor]:
        """Of all; the others' gradients are there while one works."""
        weights = [p for pair in self.others for p in pair.method.parameters()]
        buffers = [b for pair in self.others for b in pair.method.buffers()]
        gradients = [p.grad for p in weights if p.grad is not None]
        return [*super().tensors(), *weights, *buffers, *gradients]


def compare_students(
    recipe: Recipe, students: Sequence[str], repetitions: int, device: torch.device
) -> list[Point]:
    """A point for each student alone, and for all together."""
    recipe = replace(recipe, accumulate=1, student_args={}, student_features=None)
    recipes = [replace(recipe, student=name) for name in students]
    pairs = {r.student: Pair(r, r.batch_size, device) for r in recipes}
    pairs["all of them"] = together = Together(recipes, device)
    if recipe.compile:
        for pair in (*pairs.values(), *together.others):
            compile_repeated_blocks(pair.method)
    taken = by_turns({name: pair.learn for name, pair in pairs.items()}, repetitions, device)
    apart = [sum(turn) for turn in zip(*(taken[name] for name in students), strict=True)]
    ratio = [t / a for t, a in zip(taken["all of them"], apart, strict=True)]
    points = [point("students", name, pair, taken[name]) for name, pair in pairs.items()]
    return [*points[:-1], replace(points[-1], ratio=Measured.of(ratio))]


def point(setting: str, value: str, pair: Pair, taken: list[float]) -> Point:
    """Of a pair whose step took so many seconds."""
    measured = Measured.of(taken)
    rate = len(pair.images) / measured.median
    return Point(setting, value, measured, rate, gflop(pair), peak(pair))


def variants(recipe: Recipe) -> dict[str, list[tuple[str, Recipe]]]:
    """The recipe with one thing changed, by what that is."""
    batches = [max(2, int(share * recipe.batch_size)) for share in BATCHES]
    return {
        "batch": [(str(n), replace(recipe, batch_size=n)) for n in dict.fromkeys(batches)],
        "image side": [
            (str(n), replace(recipe, data=replace(recipe.data, image_size=n))) for n in SIDES
        ],
        "teacher": [(name, replace(recipe, teacher=name)) for name in TEACHERS],
    }


def compare(
    setting: str, recipes: list[tuple[str, Recipe]], repetitions: int, device: torch.device
) -> list[Point]:
    """A point for each; one that does not fit is left out, out loud."""
    pairs: dict[str, Pair] = {}
    for value, recipe in recipes:
        try:
            pairs[value] = Pair(replace(recipe, accumulate=1), recipe.batch_size, device)
        except InputError as error:
            print(f"{setting} {value} is left out: {error}", file=sys.stderr)
    taken = by_turns({value: pair.learn for value, pair in pairs.items()}, repetitions, device)
    return [point(setting, value, pair, taken[value]) for value, pair in pairs.items()]


def main() -> None:
    """The command."""
    recipe, chosen = options(__doc__.partition("\n")[0], repetitions=5)
    device = torch.device(chosen.device)
    points = [
        p
        for setting, recipes in variants(recipe).items()
        for p in compare(setting, recipes, chosen.repetitions, device)
    ]
    points += compare_students(recipe, STUDENTS, chosen.repetitions, device)
    if chosen.json:
        report: dict[str, Any] = {"points": points, **circumstances(recipe, chosen)}
        print(json.dumps(report, default=vars, indent=1))
        return
    heads = f"{'images/s':>10}{'GFLOP':>8}{'peak GB':>9}  of each alone"
    print(f"{'':12}{'':32}{'seconds a step':28}{heads}")
    for p in points:
        print(
            f"{p.setting:12}{p.value:32}{p.step_seconds!s:28}{p.images_per_second:10.4g}"
            f"{p.gflop_per_image:8.4g}{p.peak_bytes / 1e9:9.3g}  {p.ratio or ''}"
        )
    for name, value in circumstances(recipe, chosen).items():
        print(f"{name:14} {value}")


if __name__ == "__main__":
    main()
