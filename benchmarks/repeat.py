"""Tell whether a pair's step gives the same gradients twice, and which kernels are to blame.

    python benchmarks/repeat.py --pair swin_large-resnet50 --batch_size 32 --precision bf16-mixed
    python benchmarks/repeat.py --pair digits --data.root digits --json

Takes every option of a recipe but `deterministic`: both are tried in one process. A step is forward
and backward on noise from the same weights, statistics and random numbers. Where the setting says
so, operations that have no deterministic form are named, and its cost is timed, interleaved.
"""

import copy
import json
import warnings
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from step import Quartiles, RecipeStep, describe_setup, parse_options, time_interleaved
from torch import Tensor

from scalekd.data.seeding import seed_all
from scalekd.recipe import Recipe
from scalekd.training.performance import compile_repeated_blocks

PASSES = 4
"""Each is compared with the first."""

NAMES = 12
"""At most so many parameters whose gradients differ are named, the ones that differ most."""


@dataclass(frozen=True)
class Repetition:
    """What repeated passes of one step gave.

    Attributes:
        deterministic: Whether only deterministic kernels were asked for.
        same_loss: Whether all losses are bit-identical.
        gradients: How many gradients there are.
        different: Names of parameters whose gradient differs in a pass, with the largest difference
            relative to the gradient's norm; at most `NAMES`.
        number_different: How many gradients differ.
        operations: torch's warnings of operations without a deterministic form.
    """

    deterministic: bool
    same_loss: bool
    gradients: int
    different: dict[str, float]
    number_different: int
    operations: list[str]


def gradients_of(step: RecipeStep, state: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of one pass from `state`."""
    step.distiller.load_state_dict(state)  # the statistics of BatchNorm have moved
    seed_all(0, 0, 0)
    loss = step.forward_backward()
    named = step.distiller.named_parameters()
    return loss, {name: p.grad.clone() for name, p in named if p.grad is not None}


def repeat(step: RecipeStep, deterministic: bool) -> Repetition:
    """Compare passes of the same step."""
    state = copy.deepcopy(step.distiller.state_dict())
    different: dict[str, float] = {}
    same_loss = True
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            loss, first = gradients_of(step, state)
            for _ in range(PASSES - 1):
                other_loss, other = gradients_of(step, state)
                same_loss &= torch.equal(loss, other_loss)
                for name, gradient in other.items():
                    difference = (gradient - first[name]).norm() / first[name].norm()
                    if not torch.equal(gradient, first[name]):
                        different[name] = max(float(difference), different.get(name, 0.0))
    finally:
        torch.use_deterministic_algorithms(False)
    said = {str(warning.message).split(" does not")[0] for warning in caught}
    largest = sorted(different, key=lambda name: -different[name])[:NAMES]
    return Repetition(
        deterministic=deterministic,
        same_loss=same_loss,
        gradients=len(first),
        different={name: different[name] for name in largest},
        number_different=len(different),
        operations=sorted(text for text in said if len(text.split()) == 1),
    )


def benchmark(recipe: Recipe, repetitions: int, device: torch.device) -> dict[str, Any]:
    """Both settings' repetitions, and the ratio of their times."""
    # With it the kernels' workspace is chosen as a training chooses it, before the first product.
    step = RecipeStep(replace(recipe, deterministic=True), recipe.batch_size, device)
    torch.use_deterministic_algorithms(False)
    if recipe.compile:
        compile_repeated_blocks(step.distiller)
    repeated = [repeat(step, deterministic) for deterministic in (False, True)]

    def timed(deterministic: bool) -> None:
        torch.use_deterministic_algorithms(deterministic, warn_only=True)
        step.forward_backward()

    functions = {"plain": lambda: timed(False), "deterministic": lambda: timed(True)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seconds = time_interleaved(functions, repetitions, device)
    torch.use_deterministic_algorithms(False)
    ratios = [d / p for d, p in zip(seconds["deterministic"], seconds["plain"], strict=True)]
    return {
        "repeated": [asdict(each) for each in repeated],
        "ratio_of_deterministic": Quartiles.from_values(ratios),
    }


def describe(result: dict[str, Any]) -> str:
    """The results as text."""
    lines = []
    for each in (Repetition(**values) for values in result["repeated"]):
        kind = "deterministic kernels" if each.deterministic else "any kernels"
        lines.append(
            f"{kind}: {each.number_different} of {each.gradients} gradients differ between passes; "
            f"the loss is {'the same' if each.same_loss else 'not the same'}"
        )
        lines += [f"  {value:.1e}  {name}" for name, value in each.different.items()]
        lines += [f"  no deterministic form: {name}" for name in each.operations]
    lines.append(f"a deterministic step takes {result['ratio_of_deterministic']} of a plain one")
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark and print its results."""
    recipe, options = parse_options((__doc__ or "").partition("\n")[0], repetitions=5)
    result = benchmark(recipe, options.repetitions, torch.device(options.device))
    if options.json:
        print(json.dumps(describe_setup(recipe, options) | result, default=vars, indent=1))
        return
    print(describe(result))


if __name__ == "__main__":
    main()
