"""Time whole training steps from image files, by part, beside the bare step of step.py.

    python benchmarks/loop.py --pair swin_small-resnet50 --batch_size 8 --threads 2
    python benchmarks/loop.py --teacher NAME --student NAME --data.root digits --loading '[0]'

Takes every option of a recipe. Unless data.root is given, JPEG files of the size and the
compression of ImageNet's are written first. A step is what `scalekd distill` runs: loading,
transfer, mixing, forward, backward, clipping, optimizer, average, metrics and what is checked after
each step; then comes one validation. After each step the same pair's bare step is timed (forward
and backward on noise), so that the two can be compared. All of it is repeated for each number of
loading processes. Parts of a step exclude the parts that are timed inside of them, so that their
sum is the step. On a GPU each part ends when its last kernel has, which hides what the GPU and the
host would do at the same time.
"""

import contextlib
import io
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import torch
from PIL import Image
from step import Quartiles, describe_setup, parse_options
from torch import nn

from scalekd.estimating.synthetic_step import SyntheticStep
from scalekd.recipe import Recipe
from scalekd.runs.folder import RunFolder
from scalekd.runs.result import main_run
from scalekd.scale_kd import ScaleKD
from scalekd.training.batch import Batch
from scalekd.training.performance import apply_performance_settings, compile_repeated_blocks
from scalekd.training.prepare import Prepared, prepare
from scalekd.training.run import TrainingRun
from scalekd.training.train import open_run

WARM_UP_STEPS = 3

CLASSES = 4
FILES_OF_CLASS = 64
OCTAVES = 9
WIDTH, HEIGHT, QUALITY = 500, 375, 94
"""ImageNet's images have about these sizes and 110 kB a file; `--json` tells what these have."""

COMPUTING = "forward", "backward", "optimizer"
"""Parts that a bare loop in a few lines of torch would have too; the rest is the loop's overhead,
but for loading."""


class Stopwatch:
    """Adds the seconds of nested parts, each without those of the parts inside of it.

    Args:
        device: Where the parts compute; a part ends with its last kernel.

    Attributes:
        seconds: By part, since the last `reset`.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}
        self._inside: list[float] = []

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what is inside of this context to `name`."""
        began = time.perf_counter()
        self._inside.append(0.0)
        try:
            yield
        finally:
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            total = time.perf_counter() - began
            self.seconds[name] = self.seconds.get(name, 0.0) + total - self._inside.pop()
            if self._inside:
                self._inside[-1] += total

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, whose calls are counted to `name`."""

        def call(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return function(*args, **kwargs)

        return call

    def reset(self) -> dict[str, float]:
        """Start again; returns what was counted."""
        counted, self.seconds = self.seconds, {}
        return counted


@dataclass(frozen=True)
class LoopTimes:
    """What steps took with one number of loading processes.

    Attributes:
        loading_processes: How many loaded images; 0 for the training process itself.
        step_seconds: Of whole steps.
        bare_seconds: Of forward and backward on noise, each after a whole step.
        ratio_to_bare: Whole over bare steps, of neighbours.
        parts: Seconds by part.
        overhead_seconds: Of all parts but loading, forward, backward and optimizer.
        images_per_second: At the median of `step_seconds`.
        validation_seconds: Of one validation, for each image.
    """

    loading_processes: int
    step_seconds: Quartiles
    bare_seconds: Quartiles
    ratio_to_bare: Quartiles
    parts: dict[str, Quartiles]
    overhead_seconds: Quartiles
    images_per_second: float
    validation_seconds: float


def write_images(root: Path, files: int = FILES_OF_CLASS) -> float:
    """Write train/ and val/ with folders of JPEG files; returns their mean bytes.

    The pictures are means of noise at doubling sizes: as photographs have, they have detail of all
    sizes.
    """
    generator = np.random.default_rng(0)
    sizes = []
    for split, count in (("train", files), ("val", max(1, files // 4))):
        for label in range(CLASSES):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = np.zeros((HEIGHT, WIDTH, 3))
                for octave in range(OCTAVES):
                    noise = generator.integers(0, 256, (HEIGHT >> octave, WIDTH >> octave, 3))
                    layer = Image.fromarray(noise.astype(np.uint8)).resize((WIDTH, HEIGHT))
                    pixels += np.asarray(layer, dtype=float) / OCTAVES
                content = io.BytesIO()
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(
                    content, "JPEG", quality=QUALITY
                )
                (folder / f"{index}.jpg").write_bytes(content.getvalue())
                sizes.append(len(content.getvalue()))
    return statistics.mean(sizes)


def instrument(training: TrainingRun, watch: Stopwatch) -> None:
    """Time the parts of a run's steps. Parts of `micro_step` are inside of it."""
    loop = training.loop
    loop.learner.forward = watch.timed("forward", loop.learner.forward)  # type: ignore[method-assign]
    loop.fabric.backward = watch.timed("backward", loop.fabric.backward)  # type: ignore[method-assign]
    loop.optimizer.step = watch.timed("optimizer", loop.optimizer.step)  # type: ignore[method-assign]
    loop.micro_step = watch.timed("loop", loop.micro_step)  # type: ignore[method-assign]
    mixup = loop.module.mixup  # of one process, whose module is not wrapped
    if isinstance(mixup, nn.Module):
        mixup.forward = watch.timed("mixing", mixup.forward)  # type: ignore[method-assign]
    if loop.average is not None:
        loop.average.update_parameters = watch.timed(  # type: ignore[method-assign]
            "average", loop.average.update_parameters
        )
    training.report = watch.timed("metrics", training.report)
    training._validate = watch.timed("validation", training._validate)  # type: ignore[method-assign]


@contextlib.contextmanager
def timed_clipping(watch: Stopwatch) -> Iterator[None]:
    """Time the clipping of gradients by torch; a fused optimizer scales them by itself."""
    norm, scale = nn.utils.get_total_norm, nn.utils.clip_grads_with_norm_
    nn.utils.get_total_norm = watch.timed("clipping", norm)
    nn.utils.clip_grads_with_norm_ = watch.timed("clipping", scale)
    try:
        yield
    finally:
        nn.utils.get_total_norm, nn.utils.clip_grads_with_norm_ = norm, scale


def time_loop(prepared: Prepared, folder: RunFolder, bare: SyntheticStep, steps: int) -> LoopTimes:
    """Train for so many steps after a warm-up, and time each beside a bare one."""
    recipe = prepared.recipe
    watch = Stopwatch(bare.device)
    parts: list[dict[str, float]] = []
    bare_seconds: list[float] = []
    run = main_run(recipe)
    with (
        open_run(prepared, run, folder, lambda _: None, Event()) as training,
        timed_clipping(watch),
    ):
        instrument(training, watch)
        batches = iter(training.batches)
        for index in range(WARM_UP_STEPS + steps):
            watch.reset()
            for _ in range(recipe.accumulate):
                with watch.part("loading"):
                    items = next(batches)
                with watch.part("transfer"):
                    batch = Batch.from_loader(items, bare.device, prepared.input)
                with watch.part("checks"):
                    training.train_on(batch)
            counted = watch.reset()
            with watch.part("bare"):
                bare.forward_backward()
            if index >= WARM_UP_STEPS:
                parts.append(counted)
                bare_seconds.append(watch.seconds["bare"])
        watch.reset()
        training._validate()
        validation = watch.seconds["validation"]
    validated = len(training.validation.batches.dataset)
    totals = [sum(counted.values()) for counted in parts]
    own = [
        sum(value for name, value in counted.items() if name not in ("loading", *COMPUTING))
        for counted in parts
    ]
    names = dict.fromkeys(name for counted in parts for name in counted)
    return LoopTimes(
        loading_processes=recipe.data.workers or 0,
        step_seconds=Quartiles.from_values(totals),
        bare_seconds=Quartiles.from_values(bare_seconds),
        ratio_to_bare=Quartiles.from_values(
            [total / other for total, other in zip(totals, bare_seconds, strict=True)]
        ),
        parts={name: Quartiles.from_values([c.get(name, 0.0) for c in parts]) for name in names},
        overhead_seconds=Quartiles.from_values(own),
        images_per_second=recipe.batch_size / statistics.median(totals),
        validation_seconds=validation / validated,
    )


def benchmark(
    recipe: Recipe, loading: list[int], steps: int, device: torch.device, folder: Path
) -> list[LoopTimes]:
    """Time the loop for each number of loading processes, in an order that is drawn."""
    prepared = prepare(recipe)
    distiller = prepared.build_learner(main_run(recipe))
    assert isinstance(distiller, ScaleKD)
    apply_performance_settings(distiller, recipe)
    distiller.to(device).train()
    if recipe.compile:
        compile_repeated_blocks(distiller)
    bare = SyntheticStep(distiller, recipe, device, recipe.batch_size // recipe.accumulate)
    results = []
    for number in random.Random(0).sample(loading, len(loading)):
        data = replace(recipe.data, workers=number)
        prepared = prepare(replace(recipe, data=data), teacher=prepared.teacher)
        run_folder = RunFolder(folder / f"run{number}")
        run_folder.path.mkdir()
        results.append(time_loop(prepared, run_folder, bare, steps))
    return sorted(results, key=lambda result: result.loading_processes)


def add_options(parser: Any) -> None:
    """Options of this script beside those of step.py."""
    parser.add_argument(
        "--loading", type=list[int], default=[0, 1, 2], help="Numbers of loading processes."
    )


def describe(result: LoopTimes) -> str:
    """One result as lines of text."""
    lines = [
        f"{result.loading_processes} loading processes: a step takes "
        f"{1e3 * result.step_seconds.median:.1f} ms ({result.images_per_second:.4g} images/s), "
        f"{result.ratio_to_bare.median:.2f} times a bare one "
        f"({result.ratio_to_bare.low:.2f} to {result.ratio_to_bare.high:.2f})"
    ]
    parts = {**result.parts, "overhead": result.overhead_seconds}
    lines += [
        f"  {name:12} {1e3 * part.median:9.2f} ms ({1e3 * part.low:.2f} to {1e3 * part.high:.2f})"
        for name, part in parts.items()
    ]
    lines.append(f"  {'validation':12} {1e3 * result.validation_seconds:9.2f} ms an image")
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark and print its results."""
    recipe, options = parse_options(__doc__.partition("\n")[0], 20, add_options)
    device = torch.device(options.device)
    setup = describe_setup(recipe, options)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if recipe.data.root == "imagenet":
            setup["mean_bytes_of_a_file"] = write_images(folder / "images")
            recipe = replace(recipe, data=replace(recipe.data, root=str(folder / "images")))
        recipe = replace(
            recipe,
            teacher_weights="random",
            seeds=[0],
            compare=[],
            epochs=max(recipe.epochs, options.repetitions + WARM_UP_STEPS + 1),
            validate_every=10**6,
            save_steps=None,
        )
        results = benchmark(recipe, options.loading, options.repetitions, device, folder)
    if options.json:
        print(json.dumps({**setup, "loops": results}, default=vars, indent=1))
        return
    print("\n".join(map(describe, results)))


if __name__ == "__main__":
    main()
