"""A few real steps of a recipe, on noise and with random weights: how long, and in how much memory.

They run in a process of their own, which ends with all that they took.
"""

import multiprocessing
import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from scalekd.device import best_device
from scalekd.distiller import ScaleKD
from scalekd.errors import InputError
from scalekd.estimating.meta_pair import TrainingImages
from scalekd.estimating.synthetic_step import Passes, seconds
from scalekd.recipe import Recipe
from scalekd.runs.result import Run
from scalekd.training.optim import build_average, build_optimizer
from scalekd.training.performance import apply_performance_settings, compile_repeated_blocks
from scalekd.training.run import build_method

WARM_UP, FEWEST, MOST, SECONDS = 2, 3, 7, 30.0
"""Steps that are not counted; then so many at least and at most, as these seconds hold."""


@dataclass(frozen=True)
class Probe:
    """What was measured.

    device: in words.
    batch: images that were computed at once.
    seconds: of each step.
    teacher, student, optimizer: seconds, medians: of the teacher's pass; of the student's two; of
        clipping, the weights' change and their average.
    runtime: bytes that the process takes without the pair: Python, torch, Lightning; 0 on a GPU.
    peak: bytes of the whole process, or on a GPU of its memory.
    memory: bytes that there are.
    """

    device: str
    batch: int
    seconds: list[float]
    teacher: float
    student: float
    optimizer: float
    runtime: int
    peak: int
    memory: int


def probe(recipe: Recipe, images: TrainingImages, batch: int) -> Probe:
    """Measure steps of `batch` images.

    Raises:
        InputError: the pair cannot work, or a step is more than this machine can bear.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_probe, recipe, images, batch).result()
        except (BrokenProcessPool, torch.OutOfMemoryError) as error:
            raise InputError(
                f"a step of {batch} images does not fit into this machine's memory: --gpu NAME "
                "models it for another, or make batch_size smaller"
            ) from error


def _probe(recipe: Recipe, images: TrainingImages, batch: int) -> Probe:
    import scalekd.jobs.distill  # noqa: F401  what a run has loaded beside the pair

    device = best_device()
    on_gpu = device.type == "cuda"
    runtime = 0 if on_gpu else _resident("VmRSS")
    random = replace(recipe, teacher_weights="random")
    method, _ = build_method(random, Run("scalekd", recipe.seeds[0]), images.source())
    assert isinstance(method, ScaleKD)
    apply_performance_settings(method, recipe)
    method.to(device).train()
    if recipe.compile:
        compile_repeated_blocks(method)
    step = _Step(method, recipe, device, batch)
    parts = step.learn, step.change, step.teach, step.study
    for _ in range(WARM_UP):
        step.learn()
        step.change()
    counted: list[list[float]] = []
    began = time.perf_counter()
    while len(counted) < FEWEST or (len(counted) < MOST and time.perf_counter() - began < SECONDS):
        counted.append([seconds(part, device) for part in parts])
    learn, change, teach, study = zip(*counted, strict=True)
    return Probe(
        device=torch.cuda.get_device_name()
        if on_gpu
        else f"CPU, {torch.get_num_threads()} threads",
        batch=batch,
        seconds=[sum(both) for both in zip(learn, change, strict=True)],
        teacher=statistics.median(teach),
        student=statistics.median(study),
        optimizer=statistics.median(change),
        runtime=runtime,
        peak=torch.cuda.max_memory_reserved() if on_gpu else _resident("VmHWM"),
        memory=torch.cuda.mem_get_info()[1] if on_gpu else _machine_memory(),
    )


class _Step(Passes):
    """A step as a run takes it, in two parts, and two of its parts once more by themselves."""

    def __init__(self, method: ScaleKD, recipe: Recipe, device: torch.device, batch: int) -> None:
        super().__init__(method, recipe, device, batch)
        self.optimizer = build_optimizer(method, recipe.optim, recipe.learning_rate)
        self.average = None if recipe.ema is None else build_average(method.student, recipe.ema)

    def change(self) -> None:
        """What the gradients are for."""
        if self.recipe.optim.clip:
            nn.utils.clip_grad_norm_(self.method.parameters(), self.recipe.optim.clip)
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.method.student)


def _machine_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _resident(which: str) -> int:
    """Bytes of this process in memory: now (VmRSS), or at most so far (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(which))
