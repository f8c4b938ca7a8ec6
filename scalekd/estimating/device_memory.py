"""The memory that one device needs for a recipe's step, by part, and what fits into it."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from scalekd.distiller import ScaleKD
from scalekd.estimating.memory_simulation import Rehearsal, optimizer_share
from scalekd.recipe import Precision, Recipe

GPU_OVERHEAD, GPU_RUNTIME = 0.1, 1.0e9
"""Assumed: what torch's allocator holds beside what is alive, and bytes of CUDA and its libraries.
"""


@dataclass(frozen=True)
class Memory:
    """Bytes of one device at the peak of a step.

    teacher, student, projectors: weights and buffers.
    gradients: of all that trains.
    optimizer: its state.
    average: of the student's weights.
    student_activations: what the student keeps for its backward pass, with the images and what the
        teacher leaves.
    projector_activations: what projectors, tail and losses keep for theirs.
    transient: what is alive for a moment beside all that.
    overhead: what allocator and libraries hold beside what is alive.
    runtime: what the process takes without the pair.
    """

    teacher: float
    student: float
    projectors: float
    gradients: float
    optimizer: float
    average: float
    student_activations: float
    projector_activations: float
    transient: float
    overhead: float
    runtime: float

    @property
    def total(self) -> float:
        """The sum."""
        return float(sum(vars(self).values()))


class Needs:
    """What a device needs, for any number of images at once.

    Args:
        pair: on the meta device, which its tensors leave.
        recipe: of the pair.
        devices: that share each batch.

    Attributes:
        overhead: as a share of what is alive.
        runtime: bytes.
    """

    def __init__(self, pair: ScaleKD, recipe: Recipe, devices: int) -> None:
        self.rehearsal, self.recipe, self.devices = Rehearsal(pair), recipe, devices
        self.optimizer_share = optimizer_share(recipe.optim.name)
        self.overhead, self.runtime = GPU_OVERHEAD, GPU_RUNTIME

    def learn_from(self, images: int, peak: int, runtime: int) -> None:
        """Take overhead and runtime from a real step, in place of those assumed of GPUs.

        Args:
            images: at once in it.
            peak: bytes that it took, runtime included.
            runtime: bytes without it.
        """
        self.overhead, self.runtime = 0.0, 0.0
        alive = replace(self.of(images), overhead=0.0).total
        self.overhead, self.runtime = max(0.0, (peak - runtime) / alive - 1), float(runtime)

    def of(
        self,
        images: int,
        precision: Precision | None = None,
        checkpoint_tail: bool | None = None,
    ) -> Memory:
        """The memory for so many images at once; precision and checkpointing as in the recipe,
        where they are None."""
        recipe = self.recipe
        seen = self.rehearsal.footprint(
            images,
            precision or recipe.precision,
            recipe.accumulate > 1,
            recipe.checkpoint_tail if checkpoint_tail is None else checkpoint_tail,
            halved=self.devices == 1 or "teacher" not in recipe.fsdp,
        )
        pieces = {
            part: self.devices if part in recipe.fsdp else 1 for part in ("teacher", "student")
        }
        teacher, learning = pieces["teacher"], pieces["student"]
        memory = Memory(
            teacher=seen.teacher / teacher,
            student=seen.student / learning,
            projectors=seen.projectors / learning,
            gradients=seen.gradients / learning,
            optimizer=self.optimizer_share * seen.gradients / learning,
            average=0.0 if recipe.ema is None else seen.student / learning,
            student_activations=seen.student_activations,
            projector_activations=seen.projector_activations,
            transient=seen.transient,
            overhead=0.0,
            runtime=0.0,
        )
        return replace(memory, overhead=self.overhead * memory.total, runtime=self.runtime)


def largest(needed: Callable[[int], float], limit: float) -> int:
    """How many images at once fit: a multiple of 8, or 4, 2, or 0 where not even two do.

    Args:
        needed: bytes for a number of images; grows at least in proportion to it.
        limit: bytes that there are.
    """
    few = needed(8)
    if few > limit:
        return next((images for images in (4, 2) if needed(images) <= limit), 0)
    each = (needed(16) - few) / 8
    images = 8 + int((limit - few) / each) // 8 * 8
    while images > 8 and (over := needed(images) - limit) > 0:
        images -= max(8, -(-int(over / each) // 8) * 8)
    return max(images, 8)
