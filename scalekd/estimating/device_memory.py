"""The memory that one device needs for a recipe's step, by part, and what fits into it."""

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace

from scalekd.estimating.memory_simulation import MemorySimulation, optimizer_state_ratio
from scalekd.recipe import Precision, Recipe
from scalekd.scale_kd import ScaleKD

GPU_OVERHEAD_RATIO = 0.1
"""Assumed: what torch's allocator reserves on a GPU, as a share of the live tensors."""

GPU_RUNTIME_BYTES = 1.0e9
"""Assumed: what CUDA and its libraries take of a GPU's memory."""


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes of one device's memory at the peak of a step.

    Attributes:
        teacher_weights, student_weights, projector_weights: Parameters and buffers of each.
        gradients: Gradients of all trained parameters.
        optimizer_state: What the optimizer stores for each trained parameter.
        average_weights: The moving average (EMA) of the student's weights; 0 without one.
        student_activations: What the student stores for its backward pass, with the images and
            the teacher's outputs.
        projector_activations: What projectors, tail and losses store for their backward pass.
        temporary_tensors: Short-lived tensors that are live at the peak beside all of the above.
        allocator_overhead: What allocator and libraries reserve beside the live tensors.
        runtime_libraries: What the process takes without the pair: Python, torch, CUDA.
    """

    teacher_weights: float
    student_weights: float
    projector_weights: float
    gradients: float
    optimizer_state: float
    average_weights: float
    student_activations: float
    projector_activations: float
    temporary_tensors: float
    allocator_overhead: float
    runtime_libraries: float

    @property
    def total(self) -> float:
        """The sum of all parts."""
        return float(sum(vars(self).values()))


class MemoryModel:
    """Predicts the memory of one device for any micro-batch.

    Args:
        pair: The recipe's pair on the meta device. Its tensors become fake tensors.
        recipe: The recipe that would be trained.
        devices: How many devices share each batch.

    Attributes:
        overhead_ratio: What allocator and libraries reserve, as a share of the live tensors.
        runtime: Bytes that the process takes without the pair.
    """

    def __init__(self, pair: ScaleKD, recipe: Recipe, devices: int) -> None:
        self.simulation, self.recipe, self.devices = MemorySimulation(pair), recipe, devices
        self.optimizer_state_ratio = optimizer_state_ratio(recipe.optim.name)
        self.overhead_ratio, self.runtime = GPU_OVERHEAD_RATIO, GPU_RUNTIME_BYTES

    def calibrate(self, micro_batch: int, peak: int, runtime: int) -> None:
        """Take overhead and runtime from a real step, in place of those assumed for GPUs.

        One process runs it, whose weights are not sharded.

        Args:
            micro_batch: Images in the real step.
            peak: Bytes that the process took at most, runtime included.
            runtime: Bytes that the process took without the pair.
        """
        alone = copy(self)
        alone.devices, alone.overhead_ratio, alone.runtime = 1, 0.0, 0.0
        live = alone.device_memory(micro_batch).total
        self.overhead_ratio, self.runtime = max(0.0, (peak - runtime) / live - 1), float(runtime)

    def device_memory(
        self,
        micro_batch: int,
        precision: Precision | None = None,
        checkpoint_tail: bool | None = None,
        checkpoint_projectors: bool | None = None,
    ) -> DeviceMemory:
        """Predict the memory of one device.

        Args:
            micro_batch: Images that the device computes at once.
            precision: Default: the recipe's.
            checkpoint_tail: Default: the recipe's.
            checkpoint_projectors: Default: the recipe's.
        """
        recipe = self.recipe
        teacher_shards = self.devices if "teacher" in recipe.fsdp else 1
        student_shards = self.devices if "student" in recipe.fsdp else 1
        step = self.simulation.simulate_step(
            micro_batch,
            precision or recipe.precision,
            accumulate=recipe.accumulate > 1,
            checkpoint_tail=(
                recipe.checkpoint_tail if checkpoint_tail is None else checkpoint_tail
            ),
            checkpoint_projectors=(
                recipe.checkpoint_projectors
                if checkpoint_projectors is None
                else checkpoint_projectors
            ),
            half_precision_teacher=teacher_shards == 1,
        )
        memory = DeviceMemory(
            teacher_weights=step.teacher_weights / teacher_shards,
            student_weights=step.student_weights / student_shards,
            projector_weights=step.projector_weights / student_shards,
            gradients=step.gradients / student_shards,
            optimizer_state=self.optimizer_state_ratio * step.gradients / student_shards,
            average_weights=0.0 if recipe.ema is None else step.student_weights / student_shards,
            student_activations=step.student_activations,
            projector_activations=step.projector_activations,
            temporary_tensors=step.temporary_tensors,
            allocator_overhead=0.0,
            runtime_libraries=0.0,
        )
        overhead = self.overhead_ratio * memory.total
        return replace(memory, allocator_overhead=overhead, runtime_libraries=self.runtime)


def largest_micro_batch(bytes_needed: Callable[[int], float], limit: float) -> int:
    """The largest micro-batch that fits: a multiple of 8, or 4, 2, or 0 where not even 2 fit.

    Args:
        bytes_needed: Maps a number of images to bytes; grows at least linearly with it.
        limit: Bytes that the device has.
    """
    bytes_for_8 = bytes_needed(8)
    if bytes_for_8 > limit:
        return next((images for images in (4, 2) if bytes_needed(images) <= limit), 0)
    bytes_per_image = (bytes_needed(16) - bytes_for_8) / 8
    images = 8 + int((limit - bytes_for_8) / bytes_per_image) // 8 * 8
    while images > 8 and (excess := bytes_needed(images) - limit) > 0:
        images -= max(8, -(-int(excess / bytes_per_image) // 8) * 8)
    return max(images, 8)
