"""Time what recomputing costs a step, beside the memory that it saves.

    python benchmarks/recomputing.py --pair swin_small-resnet50 --batch_size 8 --threads 2
    python benchmarks/recomputing.py --pair swin_large-resnet50 --batch_size 128 --json

Takes every option of a recipe but `checkpoint_projectors` and `checkpoint_tail`: a step without
them, with the first and with both are timed in one process, interleaved, forward and backward on
noise. All three must give the same loss.
"""

import json
from dataclasses import replace
from typing import Any

import torch
from step import (
    Quartiles,
    RecipeStep,
    describe_setup,
    measure_peak_bytes,
    parse_options,
    relative_difference,
    time_interleaved,
)

from scalekd.recipe import Recipe
from scalekd.training.performance import compile_repeated_blocks

SETTINGS = {
    "neither": (False, False),
    "checkpoint_projectors": (True, False),
    "both": (True, True),
}
"""Whether projectors and tail are checkpointed."""


def benchmark(recipe: Recipe, repetitions: int, device: torch.device) -> dict[str, Any]:
    """By setting the peak of live tensors in bytes, seconds, and their ratio to a plain step's."""
    steps: dict[str, RecipeStep] = {}
    for name, (projectors, tail) in SETTINGS.items():
        changed = replace(recipe, checkpoint_projectors=projectors, checkpoint_tail=tail)
        steps[name] = RecipeStep(changed, recipe.batch_size, device)
    plain = steps["neither"]
    for step in steps.values():
        step.distiller.load_state_dict(plain.distiller.state_dict())
    losses = {name: step.forward_backward() for name, step in steps.items()}
    for loss in losses.values():
        relative_difference(loss, losses["neither"], recipe.precision)
    peaks = {name: measure_peak_bytes(step) for name, step in steps.items()}
    if recipe.compile:
        for step in steps.values():
            compile_repeated_blocks(step.distiller)
    functions = {name: step.forward_backward for name, step in steps.items()}
    seconds = time_interleaved(functions, repetitions, device)
    return {
        name: {
            "peak_bytes": peaks[name],
            "seconds": Quartiles.from_values(seconds[name]),
            "ratio_to_neither": Quartiles.from_values(
                [s / plain for s, plain in zip(seconds[name], seconds["neither"], strict=True)]
            ),
        }
        for name in SETTINGS
    }


def main() -> None:
    """Run the benchmark and print its results."""
    recipe, options = parse_options((__doc__ or "").partition("\n")[0], repetitions=5)
    results = benchmark(recipe, options.repetitions, torch.device(options.device))
    if options.json:
        print(json.dumps(describe_setup(recipe, options) | results, default=vars, indent=1))
        return
    for name, result in results.items():
        print(
            f"{name:22} {result['peak_bytes'] / 1e9:.2f} GB, {result['seconds']} s, "
            f"{result['ratio_to_neither']} of a step with neither"
        )


if __name__ == "__main__":
    main()
