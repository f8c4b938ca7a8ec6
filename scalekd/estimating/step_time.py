"""Seconds that one device takes for its part of a step: measured here, or modelled for a GPU."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from scalekd.estimating.device_memory import DeviceMemory
from scalekd.estimating.gpus import Gpu
from scalekd.estimating.kernels import compiled_kernels, eager_kernels
from scalekd.estimating.measured_rates import Rate, expected_error, nearest_rates, read_rates
from scalekd.estimating.memory_simulation import MemorySimulation
from scalekd.estimating.operations import Operation
from scalekd.estimating.roofline import seconds
from scalekd.estimating.step_benchmark import StepBenchmark
from scalekd.estimating.step_operations import StepOperations, trace_step
from scalekd.recipe import Precision, Recipe


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
            modelled time in the middle, and the bounds that nine of ten modelled times keep.
        parts: The middle of `seconds` by part: teacher, student, projectors (with tail and
            losses), optimizer.
        basis: In words, what the time is based on.
        nearest: Measured speeds of the networks and pairs that are most like this one.
    """

    measured: bool
    seconds: Range
    parts: dict[str, float]
    basis: str
    nearest: tuple[Rate, ...] = ()


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


class StepModel:
    """Models a recipe's step on a GPU from its operations.

    Args:
        gpu: The GPU that is modelled.
        recipe: The recipe that would be trained.
        simulation: It has the recipe's pair on tensors without values.
        micro_batch: Images that the device computes at once.
    """

    def __init__(
        self, gpu: Gpu, recipe: Recipe, simulation: MemorySimulation, micro_batch: int
    ) -> None:
        self.gpu, self.recipe, self.micro_batch = gpu, recipe, micro_batch
        self._rates = read_rates()
        self._simulation = simulation
        self._traced: dict[Precision, StepOperations] = {}

    def step_time(
        self,
        memory: DeviceMemory,
        precision: Precision | None = None,
        compile: bool | None = None,
    ) -> StepTime:
        """Model a step: each kernel by its work and its traffic, and the bytes of the update.

        Args:
            memory: What the device's memory holds.
            precision: Default: the recipe's.
            compile: Default: the recipe's.
        """
        precision = precision or self.recipe.precision
        compile = self.recipe.compile if compile is None else compile
        operations = self._operations(precision)
        teacher, student, step = (
            self._seconds(part, precision, compile)
            for part in (operations.teacher, operations.student, operations.step)
        )
        if self.recipe.checkpoint_tail:
            step += self._seconds(operations.tail, precision, compile)
        if self.recipe.checkpoint_projectors:
            step += self._seconds(operations.projectors, precision, compile)
        update = _update_seconds(self.gpu, memory)
        parts = {
            "teacher": teacher,
            "student": student,
            "projectors": max(0.0, step - teacher - student),
            "optimizer": update,
        }
        middle, error = step + update, expected_error(self._rates, self.gpu.label)
        return StepTime(
            False,
            Range(middle / error.factor, middle, middle * error.factor),
            parts,
            f"modelled for {self.gpu.label}, nothing was run; {error}",
            nearest_rates(self._rates, self.recipe, self.gpu.label),
        )

    def tail_seconds(self) -> float:
        """Seconds of the forward passes of the teacher's tail in a step of the recipe."""
        precision = self.recipe.precision
        return self._seconds(self._operations(precision).tail, precision, self.recipe.compile)

    def projector_seconds(self) -> float:
        """Seconds of what checkpointed projectors compute once more in a step of the recipe."""
        precision = self.recipe.precision
        return self._seconds(self._operations(precision).projectors, precision, self.recipe.compile)

    def _operations(self, precision: Precision) -> StepOperations:
        if precision not in self._traced:
            self._traced[precision] = trace_step(self._simulation, self.micro_batch, precision)
        return self._traced[precision]

    def _seconds(self, part: Sequence[Operation], precision: Precision, compile: bool) -> float:
        kernels = compiled_kernels(part) if compile else eager_kernels(part)
        tf32_products = precision != "32-true"
        return self.recipe.accumulate * seconds(
            kernels, self.gpu, compiled=compile, tf32_products=tf32_products
        )


def _update_seconds(gpu: Gpu, memory: DeviceMemory) -> float:
    """The optimizer reads and writes weights, its state and the average, and reads gradients."""
    weights = memory.student_weights + memory.projector_weights + memory.average_weights
    traffic = 2 * (weights + memory.optimizer_state) + memory.gradients
    return traffic / (1e9 * gpu.bandwidth)
