"""Seconds that one device takes for its part of a step: measured here, or modelled for a GPU."""

import statistics
from dataclasses import dataclass
from typing import NamedTuple

from scalekd.compatibility.check import StepFlops
from scalekd.estimating.device_memory import DeviceMemory
from scalekd.estimating.gpus import Gpu
from scalekd.estimating.step_benchmark import StepBenchmark
from scalekd.recipe import Recipe

PeakShares = tuple[float, float, float]
"""Shares of a GPU's peak FLOP/s that a step reaches: high, middle, low.

The FLOP are those of matrix products and convolutions; the time is that of the complete step."""

FLOAT32_SHARES: PeakShares = (0.9, 0.75, 0.5)
HALF_SHARES: PeakShares = (0.13, 0.09, 0.05)
COMPILED_HALF_SHARES: PeakShares = (0.25, 0.17, 0.1)
"""Assumed: around what one H200 reached at 128 images (benchmarks/results/2026-11-26-h200.json).

That was 0.80 in float32 for Swin-S -> ResNet-50, whose convolutions torch computes in TF32; 0.10 in
bf16, and 0.09 with the optimizer; compiled, with channels_last, 0.17, and 0.19 for
Swin-L -> ResNet-50."""


class Range(NamedTuple):
    """An estimate and its bounds."""

    low: float
    middle: float
    high: float


@dataclass(frozen=True)
class StepTime:
    """What one device takes for its part of a step.

    Attributes:
        measured: Whether steps were run; otherwise the time is modelled.
        seconds: Of measured steps the fastest, the median and the slowest; of a modelled step the
            times at the three `PeakShares`.
        parts: The middle of `seconds` by part: teacher, student, projectors (with tail and
            losses), optimizer.
        basis: In words, what the time is based on.
    """

    measured: bool
    seconds: Range
    parts: dict[str, float]
    basis: str


def step_time_from_benchmark(
    benchmark: StepBenchmark, recipe: Recipe, micro_batch: int
) -> StepTime:
    """Scale measured steps to the recipe's batch.

    Forward and backward are taken to grow linearly with the images; the optimizer runs once a step.

    Args:
        benchmark: The measured steps, of `benchmark.micro_batch` images.
        recipe: The recipe that would be trained.
        micro_batch: Images that the device computes at once in it.
    """
    scale = micro_batch * recipe.accumulate / benchmark.micro_batch
    steps, optimizer = benchmark.step_seconds, benchmark.optimizer_seconds
    fastest_median_slowest = min(steps), statistics.median(steps), max(steps)
    seconds = Range(*(scale * (step - optimizer) + optimizer for step in fastest_median_slowest))
    teacher, student = scale * benchmark.teacher_seconds, scale * benchmark.student_seconds
    projectors = max(0.0, seconds.middle - teacher - student - optimizer)
    return StepTime(
        True,
        seconds,
        {"teacher": teacher, "student": student, "projectors": projectors, "optimizer": optimizer},
        f"measured: {len(steps)} steps of {benchmark.micro_batch} images on this machine "
        f"({benchmark.device})",
    )


def step_time_from_flops(
    gpu: Gpu, recipe: Recipe, gflop: StepFlops, micro_batch: int, memory: DeviceMemory
) -> StepTime:
    """Model a step: FLOP / (share of the GPU's peak) + bytes of the update / memory bandwidth.

    Args:
        gpu: The GPU that is modelled.
        recipe: The recipe that would be trained.
        gflop: GFLOP an image.
        micro_batch: Images that the device computes at once.
        memory: What the device's memory holds.
    """
    peak, images = 1e3 * gpu.peak_tflops(recipe.precision), micro_batch * recipe.accumulate
    shares = _assumed_shares(recipe)
    # The optimizer reads and writes weights, its state and the average, and reads the gradients.
    weights = memory.student_weights + memory.projector_weights + memory.average_weights
    traffic = 2 * (weights + memory.optimizer_state) + memory.gradients
    optimizer = traffic / (1e9 * gpu.bandwidth)
    work = {"teacher": gflop.teacher, "student": gflop.student, "projectors": gflop.rest}
    total = images * sum(work.values())
    parts = {name: images * part / (peak * shares[1]) for name, part in work.items()}
    return StepTime(
        False,
        Range(*(total / (peak * share) + optimizer for share in shares)),
        {**parts, "optimizer": optimizer},
        f"modelled for {gpu.label}, nothing was run: a step is assumed to reach {shares[1]:.0%} "
        f"({shares[0]:.0%} to {shares[2]:.0%}) of the GPU's peak of {peak / 1e3:g} TFLOP/s in "
        f"{recipe.precision}",
    )


def _assumed_shares(recipe: Recipe) -> PeakShares:
    if recipe.precision == "32-true":
        return FLOAT32_SHARES
    return COMPILED_HALF_SHARES if recipe.compile else HALF_SHARES
