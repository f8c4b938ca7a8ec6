"""How long one device takes for its share of a step: measured here, or modelled for a GPU."""

import statistics
from dataclasses import dataclass

from scalekd.check import Cost
from scalekd.estimating.gpus import Gpu, Precision
from scalekd.estimating.memory import Memory
from scalekd.estimating.probe import Probe
from scalekd.training.recipe import Recipe

SHARES: dict[Precision, tuple[float, float, float]] = {
    "32-true": (0.8, 0.6, 0.4),
    "16-mixed": (0.35, 0.2, 0.1),
    "bf16-mixed": (0.35, 0.2, 0.1),
}
"""Assumed, from no measurement of ours: the share of a GPU's peak that a step's matrix products and
convolutions come to, the time of all else included: much, some, little."""


@dataclass(frozen=True)
class Pace:
    """Seconds of one device for its share of a step.

    measured: or modelled.
    low, middle, high: measured the fastest step, the median and the slowest; modelled as `SHARES`.
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


def modelled(gpu: Gpu, recipe: Recipe, gflop: Cost, at_once: int, memory: Memory) -> Pace:
    """From the GPU's peak, of which a share is assumed; the optimizer's part from its bandwidth."""
    precision = recipe.precision
    peak, images = 1e3 * gpu.peak(precision), at_once * recipe.accumulate
    # Read and written: weights, state and average; read: gradients.
    kept = memory.student + memory.projectors + memory.optimizer + memory.average
    change = (2 * kept + memory.gradients) / (1e9 * gpu.bandwidth)
    each = {"teacher": gflop.teacher, "student": gflop.student, "projectors": gflop.rest}
    low, middle, high = (
        images * sum(each.values()) / (peak * share) + change for share in SHARES[precision]
    )
    parts = {name: images * one / (peak * SHARES[precision][1]) for name, one in each.items()}
    shares = ", ".join(f"{share:.0%}" for share in SHARES[precision])
    said = (
        f"modelled for {gpu.label}: its peak of {peak / 1e3:g} TFLOP/s in {precision}, of which "
        f"{shares} are assumed to be reached; nothing was run"
    )
    return Pace(False, low, middle, high, {**parts, "optimizer": change}, said)
