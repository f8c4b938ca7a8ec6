"""How a step grows with the batch, the image and the teacher.

    python benchmarks/scaling.py --pair swin_small-resnet50 --batch_size 8 --threads 2

Takes what step.py takes. One thing is changed at a time; a step is as there. All that is compared
is measured by turns, in an order drawn anew each time.
"""

import json
import sys
from dataclasses import dataclass, replace
from typing import Any

import torch
from step import Measured, Pair, by_turns, circumstances, gflop, options, peak

from scalekd import InputError
from scalekd.training.recipe import Recipe

BATCHES = 0.25, 0.5, 1, 2
"""Of the recipe's."""

SIDES = 160, 192, 224, 288
"""Of the student's image; the teacher sees it at its own size."""

TEACHERS = tuple(f"swin_{size}_patch4_window7_224" for size in ("tiny", "small", "base", "large"))


@dataclass(frozen=True)
class Point:
    """A step of one setting."""

    setting: str
    value: str
    step_seconds: Measured
    images_per_second: float
    gflop_per_image: float
    peak_bytes: int


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
    points = []
    for value, pair in pairs.items():
        measured = Measured.of(taken[value])
        rate = len(pair.images) / measured.median
        points.append(Point(setting, value, measured, rate, gflop(pair), peak(pair)))
    return points


def main() -> None:
    """The command."""
    recipe, chosen = options(__doc__.partition("\n")[0], repetitions=5)
    device = torch.device(chosen.device)
    points = [
        point
        for setting, recipes in variants(recipe).items()
        for point in compare(setting, recipes, chosen.repetitions, device)
    ]
    if chosen.json:
        report: dict[str, Any] = {"points": points, **circumstances(recipe, chosen)}
        print(json.dumps(report, default=vars, indent=1))
        return
    print(f"{'':12}{'':32}{'seconds a step':28}{'images/s':>10}{'GFLOP':>8}{'peak GB':>9}")
    for p in points:
        print(
            f"{p.setting:12}{p.value:32}{p.step_seconds!s:28}{p.images_per_second:10.4g}"
            f"{p.gflop_per_image:8.4g}{p.peak_bytes / 1e9:9.3g}"
        )
    for name, value in circumstances(recipe, chosen).items():
        print(f"{name:14} {value}")


if __name__ == "__main__":
    main()
