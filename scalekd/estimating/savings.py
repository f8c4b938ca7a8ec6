"""What settings that the recipe does not use would save of a step's time and memory."""

from collections.abc import Iterator
from dataclasses import dataclass

from scalekd.compatibility.check import StepFlops
from scalekd.estimating.device_memory import DeviceMemory, MemoryModel
from scalekd.estimating.step_time import StepModel, StepTime
from scalekd.recipe import Recipe


@dataclass(frozen=True)
class Saving:
    """What one setting would save.

    Attributes:
        setting: The setting.
        seconds: Seconds that it saves of a device's step; less than 0 where it costs time, None
            where that is not known without a run.
        memory: Bytes that it saves of a device's memory; less than 0 and None likewise.
        basis: In words, what the figures are based on.
    """

    setting: str
    seconds: float | None
    memory: float | None
    basis: str


def estimate_savings(
    recipe: Recipe,
    *,
    memory_model: MemoryModel,
    memory: DeviceMemory,
    step_time: StepTime,
    gflop: StepFlops,
    tail_gflop: float,
    micro_batch: int,
    step_model: StepModel | None,
) -> Iterator[Saving]:
    """Estimate what bf16, compilation, checkpoints and a cache would save.

    Args:
        recipe: The recipe that the settings would be added to.
        memory_model: Predicts the memory with a setting.
        memory: The memory without any of the settings.
        step_time: The step's time without any of the settings.
        gflop: GFLOP an image.
        tail_gflop: GFLOP an image of the teacher's tail, forward, for all views.
        micro_batch: Images that a device computes at once.
        step_model: What modelled `step_time`; None where it was measured.
    """
    modelled = "modelled from the step's operations"
    if recipe.precision == "32-true" and (step_model is None or step_model.gpu.bf16):
        bf16_memory = memory_model.device_memory(micro_batch, precision="bf16-mixed")
        seconds, basis = None, "its time is not known here: --precision bf16-mixed measures it"
        if step_model is not None:
            bf16 = step_model.step_time(bf16_memory, precision="bf16-mixed")
            seconds, basis = step_time.seconds.middle - bf16.seconds.middle, modelled
        yield Saving("precision bf16-mixed", seconds, memory.total - bf16_memory.total, basis)
    if not recipe.compile:
        seconds, basis = None, "its time is not known before it is run: --compile true measures it"
        if step_model is not None:
            compiled = step_model.step_time(memory, compile=True)
            seconds, basis = step_time.seconds.middle - compiled.seconds.middle, modelled
        yield Saving("compile", seconds, None, basis)
    if not recipe.checkpoint_tail and tail_gflop:
        forward_backward = step_time.seconds.middle - step_time.parts["optimizer"]
        step_gflop = gflop.teacher + gflop.student + gflop.rest
        cost = forward_backward * tail_gflop / step_gflop
        basis = f"it computes {tail_gflop:.1f} GFLOP an image more, at the speed of the rest"
        if step_model is not None:
            cost, basis = step_model.tail_seconds(), modelled
        checkpointed = memory_model.device_memory(micro_batch, checkpoint_tail=True)
        yield Saving("checkpoint_tail", -cost, memory.total - checkpointed.total, basis)
    if not recipe.checkpoint_projectors:
        seconds, basis = None, "its time is not known before it is run"
        if step_model is not None:
            seconds, basis = -step_model.projector_seconds(), modelled
        checkpointed = memory_model.device_memory(micro_batch, checkpoint_projectors=True)
        saved = memory.total - checkpointed.total
        yield Saving("checkpoint_projectors", seconds, saved, basis)
    yield Saving(
        "cache",
        step_time.parts["teacher"],
        None,
        "at most, if reading the teacher's cached outputs took no time; `scalekd cache` builds one",
    )
