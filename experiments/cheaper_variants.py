"""What cheaper forms of the method cost and give, beside the exact one; see docs/speed.md.

    python experiments/cheaper_variants.py accuracy          # digits default, ScaleKD, its three seeds
    python experiments/cheaper_variants.py cost --pair swin_small-resnet50 --batch_size 8 --threads 2

A form is put into a method that was built as always. The first, separable stems, is also an
option of the package (separable_stem), which draws its first weights otherwise.
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
from scalekd.training import run as training

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from step import Measured, Pair, by_turns, gflop, options

EVERY = 2
"""One step in so many has TPP."""

MOMENTUM = 0.9
"""Of the mean of what the tail gave, which asks in its place in the other steps."""

Form = Callable[[ScaleKD], None]


def exact(method: ScaleKD) -> None:
    """As it is."""


def projectors(method: ScaleKD) -> Iterator[dict[str, CrossAttentionProjector]]:
    """Of each stage, by view."""
    for stage in (method.criterion.penultimate, method.criterion.final):
        found: Any = dict(stage.items())
        yield found


def separable_stem(method: ScaleKD) -> None:
    """What the package offers as separable_stem."""
    for stage in projectors(method):
        for projector in stage.values():
            projector.stem[0] = separable_convolution(projector.position.shape[1])


class Remembered(nn.Module):
    """What another module last returned."""

    def __init__(self, other: nn.Module) -> None:
        super().__init__()
        self.last: Tensor
        other.register_forward_hook(self._keep)

    def _keep(self, _: nn.Module, __: Any, output: Tensor) -> None:
        self.last = output

    def forward(self, features: Tensor) -> Tensor:
        return self.last.to(features.dtype)


def shared_stem(method: ScaleKD) -> None:
    """The alternative view's projectors see through the original's stems."""
    for stage in projectors(method):
        if len(stage) == 2:
            stage["alternative"].stem = Remembered(stage["original"].stem)  # type: ignore[assignment]


class NowAndThen(ScaleKDLoss):
    """TPP in one of `EVERY` steps; in the others the mean of earlier tokens asks."""

    steps: int
    means: dict[str, Tensor]

    def forward(self, student: Features, teacher: Features, tail: Tail) -> dict[str, Tensor]:
        self.steps += 1
        if self.steps % EVERY == 1:
            views = iter(self.penultimate)

            def remembering(tokens: Tensor) -> Tensor:
                z = tail(tokens)
                view, mean = next(views), z.detach().mean(0)
                before = self.means.get(view, mean)
                self.means[view] = MOMENTUM * before + (1 - MOMENTUM) * mean
                return z

            return super().forward(student, teacher, remembering)
        penultimate, self.penultimate = self.penultimate, nn.ModuleDict()
        hooks = [
            module.register_forward_pre_hook(self._ask(view)) for view, module in self.final.items()
        ]
        try:
            without = {f"tpp_{view}": teacher.final.new_zeros(()) for view in penultimate}
            return without | super().forward(student, teacher, tail)
        finally:
            self.penultimate = penultimate
            for hook in hooks:
                hook.remove()

    def _ask(self, view: str) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
        def ask(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
            mean = self.means[view].to(given[0].dtype)
            return given[0], mean.expand(len(given[0]), -1, -1)

        return ask


def tpp_now_and_then(method: ScaleKD) -> None:
    """See `NowAndThen`."""
    loss: Any = method.criterion
    loss.__class__ = NowAndThen
    loss.steps, loss.means = 0, {}


class Skipped(nn.Module):
    """A block that can be left out."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block, self.skip = block, False

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x if self.skip else self.block(x)
        return out


def smaller_tail(method: ScaleKD) -> None:
    """Of a Swin's last stage the tail keeps the merging of patches and the last block."""
    teacher: Any = method.teacher
    blocks = teacher.model.layers[-1].blocks
    skipped = [Skipped(block) for block in blocks[:-1]]
    teacher.model.layers[-1].blocks = nn.Sequential(*skipped, blocks[-1])
    whole = teacher.tail

    def shorter(tokens: Tensor) -> Tensor:
        for block in skipped:
            block.skip = True
        try:
            out: Tensor = whole(tokens)
        finally:
            for block in skipped:
                block.skip = False
        return out

    teacher.tail = shorter


FORMS: dict[str, Form] = {
    "exact": exact,
    "separable stem": separable_stem,
    "shared stem": shared_stem,
    "TPP in half of the steps": tpp_now_and_then,
    "smaller tail": smaller_tail,
}


@contextmanager
def built_as(form: Form) -> Iterator[None]:
    """What a run trains is of this form."""
    pair_of = training.pair_of

    def formed(*given: Any) -> ScaleKD:
        method = pair_of(*given)
        form(method)
        return method

    training.pair_of = formed
    try:
        yield
    finally:
        training.pair_of = pair_of


def digits() -> Recipe:
    """The packaged default."""
    plain = yaml.safe_load(find_recipe("digits").read_text())
    plain["data"] = Data(**plain["data"])
    plain["optim"] = Optim(**plain["optim"])
    plain["weights"] = LossWeights(**plain["weights"])
    return replace(Recipe(**plain), compare=[])


def trained(name: str, seed: int, epochs: int) -> tuple[str, int, float]:
    """The accuracy of the digits default in one form."""
    torch.set_num_threads(1)
    recipe = replace(digits(), epochs=epochs)
    run = training.Run("scalekd", seed)
    with tempfile.TemporaryDirectory() as folder, built_as(FORMS[name]):
        result = training.train(
            recipe,
            run,
            Path(folder) / "out",
            lambda _: None,
            threading.Event(),
        )
    assert result.top1 is not None
    return name, seed, 100 * result.top1


def accuracy(arguments: list[str]) -> None:
    """A line for each form, and its differences to the exact one by seed."""
    parser = argparse.ArgumentParser(prog="cheaper_variants.py accuracy")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--forms", nargs="+", choices=list(FORMS), default=list(FORMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=digits().seeds)
    parser.add_argument("--epochs", type=int, default=digits().epochs)
    chosen = parser.parse_args(arguments)
    seeds = chosen.seeds
    found: dict[str, dict[int, float]] = {name: {} for name in chosen.forms}
    with ProcessPoolExecutor(chosen.jobs, get_context("spawn")) as pool:
        pending = [
            pool.submit(trained, name, seed, chosen.epochs)
            for seed in seeds
            for name in chosen.forms
        ]
        for future in pending:
            name, seed, top1 = future.result()
            found[name][seed] = top1
            print(f"{name:26} seed {seed} {top1:.2f}", file=sys.stderr, flush=True)
    for name, by_seed in found.items():
        values = [by_seed[seed] for seed in seeds]
        listed = " ".join(f"{v:.2f}" for v in values)
        mean, spread = statistics.mean(values), statistics.stdev(values)
        line = f"{name:26} {listed}  mean {mean:.2f} ({spread:.2f})"
        if "exact" in found and name != "exact":
            apart = [by_seed[seed] - found["exact"][seed] for seed in seeds]
            line += f"  to exact {statistics.mean(apart):+.2f} ({statistics.stdev(apart):.2f})"
        print(line)


class Formed(Pair):
    """A pair in one form."""

    def __init__(self, recipe: Recipe, form: Form, device: torch.device) -> None:
        super().__init__(recipe, recipe.batch_size, device)
        form(self.method)
        self.method.to(device)


def cost(arguments: list[str]) -> None:
    """Each form's step beside the exact one's, in the turns of one run."""
    sys.argv[1:] = arguments
    recipe, chosen = options("What cheaper forms cost", repetitions=5)
    device = torch.device(chosen.device)
    pairs = {n: Formed(replace(recipe, accumulate=1), f, device) for n, f in FORMS.items()}
    random.seed(0)
    # Two steps at a time: of TPP in half of the steps, one with it and one without.
    parts = {n: lambda p=p: (p.learn(), p.learn()) for n, p in pairs.items()}
    taken = by_turns(parts, chosen.repetitions, device)  # type: ignore[arg-type]
    for name, pair in pairs.items():
        work = statistics.mean(gflop(pair) for _ in range(EVERY))
        ratios = [t / e for t, e in zip(taken[name], taken["exact"], strict=True)]
        seconds = Measured.of([t / 2 for t in taken[name]])
        line = {"seconds": str(seconds), "ratio": str(Measured.of(ratios)), "gflop": round(work, 1)}
        print(f"{name:26} {json.dumps(line)}", flush=True)


if __name__ == "__main__":
    {"accuracy": accuracy, "cost": cost}[sys.argv[1]](sys.argv[2:])
