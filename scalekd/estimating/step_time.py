"""How long one device takes for its share of a step: measured here, or modelled for a GPU."""

import statistics
from dataclasses import dataclass

from scalekd.compatibility.check import StepFlops
from scalekd.estimating.device_memory import Memory
from scalekd.estimating.gpus import Gpu
from scalekd.estimating.step_benchmark import Probe
from scalekd.recipe import Recipe

Shares = tuple[float, float, float]
"""Of a GPU's peak, that a step's matrix products and convolutions come to, the time of all else
included: much, some, little."""

FLOAT, HALF, HALF_COMPILED = (0.9, 0.75, 0.5), (0.13, 0.09, 0.05), (0.25, 0.17, 0.1)
"""Around what one H200 reached at 128 images (benchmarks/results/2026-11-26-h200.json): 0.80 in
float32 for Swin-S -> ResNet-50, whose convolutions torch computes in TF32; 0.10 in bf16, and 0.09
with the optimizer; compiled, with channels last, 0.17, and 0.19 for Swin-L -> ResNet-50."""


@dataclass(frozen=True)
class Pace:
    """Seconds of one device for its share of a step.

    measured: or modelled.
    low, middle, high: measured the fastest step, the median and the slowest; modelled by `Shares`.
    parts: the middle by part: teacher, student, projectors (with tail and losses), optimizer.
    said: how this is known.
    """

    measured: bool
    low: float
    middle: float
    high: float
    parts: dict[str, float]
    said: str


def measured(probe: Probe, recipe: Recipe, at_once: int) -> Pace:
    """From steps of `probe.batch` images. Forward and backward take as many times as long as there
    are images; the optimizer's part is once a step."""
    times = at_once * recipe.accumulate / probe.batch
    low, middle, high = (
        times * (seconds - probe.optimizer) + probe.optimizer
        for seconds in (min(probe.seconds), statistics.median(probe.seconds), max(probe.seconds))
    )
    parts = {"teacher": times * probe.teacher, "student": times * probe.student}
    rest = max(0.0, middle - sum(parts.values()) - probe.optimizer)
    said = f"{len(probe.seconds)} steps of {probe.batch} images on this machine ({probe.device})"
    return Pace(
        True, low, middle, high, {**parts, "projectors": rest, "optimizer": probe.optimizer}, said
    )


def modelled(gpu: Gpu, recipe: Recipe, gflop: StepFlops, at_once: int, memory: Memory) -> Pace:
    """From the GPU's peak, of which a share is assumed; the optimizer's part from its bandwidth."""
    peak, images = 1e3 * gpu.peak(recipe.precision), at_once * recipe.accumulate
    shares = _shares(recipe)
    # Read and written: weights, state and average; read: gradients.
    kept = memory.student + memory.projectors + memory.optimizer + memory.average
    change = (2 * kept + memory.gradients) / (1e9 * gpu.bandwidth)
    each = {"teacher": gflop.teacher, "student": gflop.student, "projectors": gflop.rest}
    low, middle, high = (images * sum(each.values()) / (peak * share) + change for share in shares)
    parts = {name: images * one / (peak * shares[1]) for name, one in each.items()}
    said = (
        f"modelled for {gpu.label}: its peak of {peak / 1e3:g} TFLOP/s in {recipe.precision}, of "
        f"which {', '.join(f'{share:.0%}' for share in shares)} are assumed to be reached; nothing "
        "was run"
    )
    return Pace(False, low, middle, high, {**parts, "optimizer": change}, said)


def _shares(recipe: Recipe) -> Shares:
    if recipe.precision == "32-true":
        return FLOAT
    return HALF_COMPILED if recipe.compile else HALF
