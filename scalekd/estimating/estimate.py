"""What a recipe will cost, before anyone pays for it: time, memory, days."""

from dataclasses import dataclass

import torch

from scalekd.compatibility.check import StepFlops, count_flops
from scalekd.errors import InputError
from scalekd.estimating.device_memory import Memory, Needs, largest
from scalekd.estimating.gpus import find
from scalekd.estimating.meta_pair import build_on_meta, count_training_images, tail_gflop
from scalekd.estimating.savings import Saving, estimate_savings
from scalekd.estimating.step_benchmark import probe
from scalekd.estimating.step_time import Pace, measured, modelled
from scalekd.recipe import Recipe
from scalekd.runs.result import methods_to_train

TOGETHER = 0.9
"""Assumed: the share of their speed that several devices keep while they exchange gradients."""

AT_MOST = 64 if torch.cuda.is_available() else 8
"""Images that are measured at once; more take as much longer."""


@dataclass(frozen=True)
class Estimate:
    """What one run of a recipe takes.

    together: the share of their speed that the devices keep; assumed.
    at_once: images that a device computes at once: batch_size / devices / accumulate.
    images, steps: of an epoch.
    runs: that the recipe makes.
    gflop: an image.
    pace: of one device.
    step: seconds, with all devices: low, middle, high.
    images_per_second: of all devices, middle.
    days: low, middle, high; of one run, without loading, measuring and start-up.
    memory: of one device.
    limit: bytes that a device has.
    largest: images at once that fit; 0 where not one does.
    needed_accumulate: the least whose parts fit; None where none does.
    gains: of settings that are not on.
    """

    teacher: str
    student: str
    precision: str
    devices: int
    together: float
    batch_size: int
    accumulate: int
    at_once: int
    images: int
    steps: int
    epochs: int
    runs: int
    gflop: StepFlops
    pace: Pace
    step: tuple[float, float, float]
    images_per_second: float
    days: tuple[float, float, float]
    memory: Memory
    limit: float
    largest: int
    needed_accumulate: int | None
    gains: list[Saving]


def estimate(
    recipe: Recipe,
    devices: int = 1,
    gpu: str | None = None,
    memory: float | None = None,
    images: int | None = None,
) -> Estimate:
    """Time and memory of a recipe's first run. Nothing is downloaded and no image is read.

    Without `gpu` a few steps are run here, in a process of their own, with random weights on noise;
    with it nothing is run.

    Args:
        recipe: what would be trained; batch_size is that of all devices together.
        devices: that share each batch.
        gpu: the kind of GPU to model; one of `GPUS`.
        memory: GB of one device; default what it has.
        images: how many there are to train on; default as many as data.root has, or ImageNet-1K
            where that is `imagenet` and there is no such folder.

    Raises:
        InputError: an unknown GPU; devices that cannot share the batch; a pair that cannot work.
    """
    if recipe.cache is not None:
        raise InputError(
            f"cache is {recipe.cache!r}, and what is estimated is the live teacher: leave it out; "
            "what a cache saves is told among the rest"
        )
    if recipe.more_students:
        raise InputError(
            f"more_students has {len(recipe.more_students)}, and one student at a time is "
            "estimated: leave it out, and name each as the student"
        )
    at_once = _at_once(recipe, devices)
    if memory is not None and not memory > 0:
        raise InputError(f"memory is {memory}: it must be more than 0, in GB")
    kind = None if gpu is None else find(gpu, recipe.precision)
    seen = count_training_images(recipe, images)
    if seen.count < recipe.batch_size:
        raise InputError(
            f"an epoch has {seen.count} images and batch_size is {recipe.batch_size}: not one "
            "batch; make the batch smaller"
        )
    pair = build_on_meta(recipe, seen)
    with torch.device("meta"):
        gflop, tail = count_flops(pair), tail_gflop(pair)
    needs = Needs(pair, recipe, devices)
    if kind is None:
        probed = probe(recipe, seen, min(at_once, AT_MOST))
        needs.learn_from(probed.batch, probed.peak, probed.runtime)
        needed, there = needs.of(at_once), float(probed.memory)
        pace = measured(probed, recipe, at_once)
    else:
        needed, there = needs.of(at_once), 1e9 * kind.memory
        pace = modelled(kind, recipe, gflop, at_once, needed)
    limit = there if memory is None else 1e9 * memory
    fits = largest(lambda number: needs.of(number).total, limit)
    together = 1.0 if devices == 1 else TOGETHER
    step = pace.low / together, pace.middle / together, pace.high / together
    steps = seen.count // recipe.batch_size
    low, middle, high = (recipe.epochs * steps * seconds / 86_400 for seconds in step)
    assert recipe.teacher is not None
    return Estimate(
        teacher=recipe.teacher,
        student=recipe.student,
        precision=recipe.precision,
        devices=devices,
        together=together,
        batch_size=recipe.batch_size,
        accumulate=recipe.accumulate,
        at_once=at_once,
        images=seen.count,
        steps=steps,
        epochs=recipe.epochs,
        runs=len(recipe.seeds) * len(methods_to_train(recipe.teacher, recipe.compare)),
        gflop=gflop,
        pace=pace,
        step=step,
        images_per_second=recipe.batch_size / step[1],
        days=(low, middle, high),
        memory=needed,
        limit=limit,
        largest=fits,
        needed_accumulate=_needed(recipe.batch_size // devices, fits),
        gains=list(estimate_savings(recipe, needs, needed, pace, gflop, tail, at_once, kind)),
    )


def _at_once(recipe: Recipe, devices: int) -> int:
    """Images that a device computes at once."""
    if devices < 1:
        raise InputError(f"devices is {devices}: it must be 1 or more")
    shares = devices * recipe.accumulate
    if recipe.batch_size % shares:
        near = max(recipe.batch_size // shares, 1) * shares
        raise InputError(
            f"batch_size is {recipe.batch_size}, for {devices} devices in {recipe.accumulate} "
            f"parts each: it must be a multiple of {shares}, for example {near}"
        )
    return recipe.batch_size // shares


def _needed(share: int, fits: int) -> int | None:
    """The least number of equal parts of a device's share of which each fits."""
    return next((n for n in range(1, share + 1) if share % n == 0 and share // n <= fits), None)
