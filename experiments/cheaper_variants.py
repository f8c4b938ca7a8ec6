"""Cost and accuracy of cheaper variants of the method, beside the exact one; see docs/speed.md.

    python experiments/cheaper_variants.py accuracy   # digits default, ScaleKD, its three seeds
    python experiments/cheaper_variants.py cost --pair swin_small-resnet50 --batch_size 8

A variant changes a pair that was built as always. The first variant, separable stems, is also an
option of the package (separable_stem), which initialises the weights of the stems differently.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from scalekd import ScaleKD
from scalekd.features import Features
from scalekd.method import CrossAttentionProjector, LossWeights, ScaleKDLoss
from scalekd.method.perception import Tail
from scalekd.method.projector import separable_convolution
from scalekd.recipe import Data, Optim, Recipe, find_recipe
from scalekd.runs.folder import RunFolder
from scalekd.runs.result import Run
from scalekd.training.prepare import Prepared, prepare
from scalekd.training.train import train

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from step import Quartiles, RecipeStep, count_gflop_per_image, parse_options, time_interleaved

TPP_INTERVAL = 2
"""One step in this many computes TPP."""

MOMENTUM = 0.9
"""Momentum of the running mean of the tail's outputs, the query in the steps without TPP."""

Variant = Callable[[ScaleKD], None]


def exact(distiller: ScaleKD) -> None:
    """Change nothing."""


def projectors_by_view(distiller: ScaleKD) -> Iterator[dict[str, CrossAttentionProjector]]:
    """The projectors of each stage, by view."""
    for stage in (distiller.criterion.penultimate, distiller.criterion.final):
        projectors: Any = dict(stage.items())
        yield projectors


def separable_stem(distiller: ScaleKD) -> None:
    """Give the projectors the stems that the package offers as separable_stem."""
    for projectors in projectors_by_view(distiller):
        for projector in projectors.values():
            projector.stem[0] = separable_convolution(projector.position.shape[1])


class LastOutput(nn.Module):
    """Returns what another module returned last."""

    def __init__(self, other: nn.Module) -> None:
        super().__init__()
        self.last: Tensor
        other.register_forward_hook(self._store)

    def _store(self, _: nn.Module, __: Any, output: Tensor) -> None:
        self.last = output

    def forward(self, features: Tensor) -> Tensor:
        return self.last.to(features.dtype)


def shared_stem(distiller: ScaleKD) -> None:
    """Let the projectors of the alternative view use the stem outputs of the original view."""
    for projectors in projectors_by_view(distiller):
        if len(projectors) == 2:
            normed = LastOutput(projectors["original"].stem[1])
            projectors["alternative"].stem = nn.Sequential(nn.Identity(), normed, nn.ReLU())


class IntermittentTPPLoss(ScaleKDLoss):
    """Computes TPP in one of `TPP_INTERVAL` steps.

    In the other steps the query is a running mean of the tail's earlier outputs.
    """

    steps: int
    means: dict[str, Tensor]

    def forward(self, student: Features, teacher: Features, tail: Tail) -> dict[str, Tensor]:
        self.steps += 1
        if self.steps % TPP_INTERVAL == 1:
            views = iter(self.penultimate)

            def averaging_tail(tokens: Tensor) -> Tensor:
                z = tail(tokens)
                view, mean = next(views), z.detach().mean(0)
                previous = self.means.get(view, mean)
                self.means[view] = MOMENTUM * previous + (1 - MOMENTUM) * mean
                return z

            return super().forward(student, teacher, averaging_tail)
        penultimate, self.penultimate = self.penultimate, nn.ModuleDict()
        hooks = [
            projector.register_forward_pre_hook(self._query_with_mean(view))
            for view, projector in self.final.items()
        ]
        try:
            zeros = {f"tpp_{view}": teacher.final.new_zeros(()) for view in penultimate}
            return zeros | super().forward(student, teacher, tail)
        finally:
            self.penultimate = penultimate
            for hook in hooks:
                hook.remove()

    def _query_with_mean(
        self, view: str
    ) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
        def hook(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            features = inputs[0]
            mean = self.means[view].to(features.dtype)
            return features, mean.expand(len(features), -1, -1)

        return hook


def intermittent_tpp(distiller: ScaleKD) -> None:
    """Replace the loss by `IntermittentTPPLoss`."""
    loss: Any = distiller.criterion
    loss.__class__ = IntermittentTPPLoss
    loss.steps, loss.means = 0, {}


class SkippableBlock(nn.Module):
    """A block that returns its input while `skip` is true."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block, self.skip = block, False

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x if self.skip else self.block(x)
        return out


def smaller_tail(distiller: ScaleKD) -> None:
    """Shorten the tail of a Swin to the patch merging and the last block of its last stage."""
    teacher: Any = distiller.teacher
    blocks = teacher.model.layers[-1].blocks
    skippable = [SkippableBlock(block) for block in blocks[:-1]]
    teacher.model.layers[-1].blocks = nn.Sequential(*skippable, blocks[-1])
    complete_tail = teacher.tail

    def shortened_tail(tokens: Tensor) -> Tensor:
        for block in skippable:
            block.skip = True
        try:
            out: Tensor = complete_tail(tokens)
        finally:
            for block in skippable:
                block.skip = False
        return out

    teacher.tail = shortened_tail


VARIANTS: dict[str, Variant] = {
    "exact": exact,
    "separable stem": separable_stem,
    "shared stem": shared_stem,
    "TPP in half of the steps": intermittent_tpp,
    "smaller tail": smaller_tail,
}


@contextmanager
def pairs_built_as(variant: Variant) -> Iterator[None]:
    """Let training runs inside of this context train `variant`."""
    build = Prepared.build_distiller

    def build_variant(*arguments: Any) -> ScaleKD:
        distiller = build(*arguments)
        variant(distiller)
        return distiller

    Prepared.build_distiller = build_variant  # type: ignore[method-assign]
    try:
        yield
    finally:
        Prepared.build_distiller = build  # type: ignore[method-assign]


def digits_recipe() -> Recipe:
    """The packaged default recipe, without its baselines."""
    settings = yaml.safe_load(find_recipe("digits").read_text())
    settings["data"] = Data(**settings["data"])
    settings["optim"] = Optim(**settings["optim"])
    settings["weights"] = LossWeights(**settings["weights"])
    return replace(Recipe(**settings), compare=[])


def train_variant(name: str, seed: int, epochs: int) -> tuple[str, int, float]:
    """Train the digits default as one variant.

    Returns:
        The variant's name, the seed, and top-1 in percent.
    """
    torch.set_num_threads(1)
    recipe, run = replace(digits_recipe(), epochs=epochs), Run("scalekd", seed)
    with tempfile.TemporaryDirectory() as folder, pairs_built_as(VARIANTS[name]):
        out = RunFolder(Path(folder) / "out")
        result = train(prepare(recipe), run, out, lambda _: None, threading.Event())
    assert result.top1 is not None
    return name, seed, 100 * result.top1


def accuracy(arguments: list[str]) -> None:
    """Print a line for each variant: top-1 of each seed, and the difference to the exact method."""
    parser = argparse.ArgumentParser(prog="cheaper_variants.py accuracy")
    parser.add_argument("--jobs", type=int, default=2, help="Trainings that run in parallel.")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=digits_recipe().seeds)
    parser.add_argument("--epochs", type=int, default=digits_recipe().epochs)
    options = parser.parse_args(arguments)
    seeds = options.seeds
    results: dict[str, dict[int, float]] = {name: {} for name in options.variants}
    with ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
        futures = [
            pool.submit(train_variant, name, seed, options.epochs)
            for seed in seeds
            for name in options.variants
        ]
        for future in futures:
            name, seed, top1 = future.result()
            results[name][seed] = top1
            print(f"{name:26} seed {seed} {top1:.2f}", file=sys.stderr, flush=True)
    for name, by_seed in results.items():
        values = [by_seed[seed] for seed in seeds]
        listed = " ".join(f"{v:.2f}" for v in values)
        mean, deviation = statistics.mean(values), statistics.stdev(values)
        line = f"{name:26} {listed}  mean {mean:.2f} ({deviation:.2f})"
        if "exact" in results and name != "exact":
            gaps = [by_seed[seed] - results["exact"][seed] for seed in seeds]
            line += f"  to exact {statistics.mean(gaps):+.2f} ({statistics.stdev(gaps):.2f})"
        print(line)


class VariantStep(RecipeStep):
    """A synthetic step of a recipe's pair as one variant."""

    def __init__(self, recipe: Recipe, variant: Variant, device: torch.device) -> None:
        super().__init__(recipe, recipe.batch_size, device)
        variant(self.distiller)
        self.distiller.to(device)


def cost(arguments: list[str]) -> None:
    """Print the seconds and GFLOP of each variant's step, timed interleaved with the exact one."""
    sys.argv[1:] = arguments
    recipe, options = parse_options("Cost of cheaper variants", repetitions=5)
    recipe, device = replace(recipe, accumulate=1), torch.device(options.device)
    steps = {name: VariantStep(recipe, variant, device) for name, variant in VARIANTS.items()}
    random.seed(0)
    # Two steps at a time: where half of the steps have TPP, one with it and one without.
    functions = {
        name: lambda step=step: (step.forward_backward(), step.forward_backward())
        for name, step in steps.items()
    }
    times = time_interleaved(functions, options.repetitions, device)  # type: ignore[arg-type]
    for name, step in steps.items():
        gflop = statistics.mean(count_gflop_per_image(step) for _ in range(TPP_INTERVAL))
        seconds = Quartiles.from_values([t / 2 for t in times[name]])
        ratios = [t / exact for t, exact in zip(times[name], times["exact"], strict=True)]
        ratio = Quartiles.from_values(ratios)
        line = {"seconds": str(seconds), "ratio": str(ratio), "gflop": round(gflop, 1)}
        print(f"{name:26} {json.dumps(line)}", flush=True)


if __name__ == "__main__":
    {"accuracy": accuracy, "cost": cost}[sys.argv[1]](sys.argv[2:])
