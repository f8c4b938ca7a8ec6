"""A few real training steps of a recipe, on noise and with random weights: their time and memory.

The steps run in a process of their own, whose end releases all the memory that they took.
"""

import os
import statistics
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from scalekd.device import best_device
from scalekd.estimating.device_memory import GPU_RUNTIME_BYTES
from scalekd.estimating.meta_pair import TrainingImages
from scalekd.estimating.own_process import in_own_process
from scalekd.estimating.synthetic_step import SyntheticStep, time_call
from scalekd.recipe import Recipe
from scalekd.runs.result import Run
from scalekd.scale_kd import ScaleKD
from scalekd.training.optim import build_average, build_optimizer, clipped_gradients
from scalekd.training.performance import apply_performance_settings, compile_repeated_blocks
from scalekd.training.prepare import prepare

WARM_UP_STEPS = 2
"""Steps that run before the first one that is timed."""

MIN_STEPS, MAX_STEPS, MAX_SECONDS = 3, 7, 30.0
"""How many steps are timed: at least `MIN_STEPS`, then more until `MAX_STEPS` or `MAX_SECONDS`."""


@dataclass(frozen=True)
class StepBenchmark:
    """What a few real steps on one device took.

    Attributes:
        device: The device's name.
        micro_batch: Images that were computed at once.
        step_seconds: Seconds of each step, its optimizer included.
        teacher_seconds: Median seconds of the teacher's forward pass.
        student_seconds: Median seconds of the student's forward and backward passes.
        optimizer_seconds: Median seconds of clipping, the optimizer's step and the average (EMA).
        runtime: Bytes that the process takes without the pair: Python, torch, Lightning; 0 on a
            GPU.
        peak: Bytes that the process took at most; on a GPU, of the GPU's memory.
        device_memory: Bytes of memory that the machine, or the GPU, has.
    """

    device: str
    micro_batch: int
    step_seconds: list[float]
    teacher_seconds: float
    student_seconds: float
    optimizer_seconds: float
    runtime: int
    peak: int
    device_memory: int


def benchmark_step(recipe: Recipe, images: TrainingImages, micro_batch: int) -> StepBenchmark:
    """Time a few steps of `micro_batch` images on this machine, in a process of their own.

    Raises:
        InputError: The pair cannot work, or a step does not fit into this machine's memory.
    """
    remedy = "make batch_size smaller, or model another device with --gpu NAME"
    return in_own_process(
        partial(_benchmark_step, recipe, images, micro_batch), micro_batch, remedy
    )


def _benchmark_step(recipe: Recipe, images: TrainingImages, micro_batch: int) -> StepBenchmark:
    import scalekd.jobs.distill  # noqa: F401  a run loads it, too: its memory is part of runtime

    device = best_device()
    on_gpu = device.type == "cuda"
    runtime = int(GPU_RUNTIME_BYTES) if on_gpu else process_memory("VmRSS")
    without_files = replace(
        recipe,
        teacher_weights="random",
        teacher_classes=None,
        student_weights="random",
        student_weights_key=None,
    )
    prepared = prepare(without_files, source=images.source())
    distiller = prepared.build_learner(Run("scalekd", recipe.seeds[0]))
    assert isinstance(distiller, ScaleKD)
    apply_performance_settings(distiller, recipe)
    distiller.to(device).train()
    if recipe.compile:
        compile_repeated_blocks(distiller)
    step = _OptimizedStep(distiller, recipe, device, micro_batch)
    parts = step.forward_backward, step.update_weights, step.run_teacher, step.run_student
    for _ in range(WARM_UP_STEPS):
        step.forward_backward()
        step.update_weights()
    timings: list[list[float]] = []
    start = time.perf_counter()
    while len(timings) < MIN_STEPS or (
        len(timings) < MAX_STEPS and time.perf_counter() - start < MAX_SECONDS
    ):
        timings.append([time_call(part, device) for part in parts])
    forward_backward, update, teacher, student = zip(*timings, strict=True)
    cpu = f"CPU, {torch.get_num_threads()} threads"
    return StepBenchmark(
        device=torch.cuda.get_device_name() if on_gpu else cpu,
        micro_batch=micro_batch,
        step_seconds=[sum(pair) for pair in zip(forward_backward, update, strict=True)],
        teacher_seconds=statistics.median(teacher),
        student_seconds=statistics.median(student),
        optimizer_seconds=statistics.median(update),
        runtime=runtime,
        peak=runtime + torch.cuda.max_memory_reserved() if on_gpu else process_memory("VmHWM"),
        device_memory=torch.cuda.mem_get_info()[1] if on_gpu else machine_memory(),
    )


class _OptimizedStep(SyntheticStep):
    """A synthetic step with the recipe's optimizer and average."""

    def __init__(
        self, distiller: ScaleKD, recipe: Recipe, device: torch.device, micro_batch: int
    ) -> None:
        super().__init__(distiller, recipe, device, micro_batch)
        self.optimizer = build_optimizer(distiller, recipe.optim, recipe.learning_rate)
        self.average = None if recipe.ema is None else build_average(distiller.student, recipe.ema)

    def update_weights(self) -> None:
        """Clip the gradients, step the optimizer, and update the average."""
        with clipped_gradients(self.optimizer, self.recipe.optim.clip):
            self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.distiller.student)


def machine_memory() -> int:
    """Bytes of memory that the machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def process_memory(field: str) -> int:
    """Bytes of this process in memory: now (VmRSS), or at most so far (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))
