"""Estimate what a recipe will cost, before it is run: time, memory, days."""

from dataclasses import dataclass

import torch

from scalekd.compatibility.check import StepFlops, count_flops
from scalekd.errors import InputError
from scalekd.estimating.device_memory import DeviceMemory, MemoryModel, largest_micro_batch
from scalekd.estimating.gpus import find_gpu
from scalekd.estimating.meta_pair import (
    build_pair_on_meta,
    count_tail_gflop,
    count_training_images,
)
from scalekd.estimating.savings import Saving, estimate_savings
from scalekd.estimating.step_benchmark import benchmark_step
from scalekd.estimating.step_time import (
    Range,
    StepModel,
    StepTime,
    step_time_from_benchmark,
)
from scalekd.recipe import Recipe
from scalekd.training.optim import check_optimizer

SCALING_EFFICIENCY = 0.9
"""Assumed: the share of its speed that a device keeps while several exchange gradients."""

MAX_BENCHMARK_IMAGES = 64 if torch.cuda.is_available() else 8
"""Images of a benchmarked step at most; the time of more images is taken to grow linearly."""


@dataclass(frozen=True)
class Estimate:
    """What one run of a recipe takes.

    Attributes:
        teacher, student: Names of the pair.
        precision: The recipe's.
        devices: Devices that share each batch.
        scaling_efficiency: Assumed share of its speed that each of several devices keeps.
        batch_size: Images a step, of all devices together.
        accumulate: Micro-batches a step on each device.
        micro_batch: Images that a device computes at once: batch_size / devices / accumulate.
        images_per_epoch, steps_per_epoch: Length of an epoch.
        epochs: Epochs of the run.
        runs: Runs that the recipe makes: seeds times methods.
        gflop: GFLOP an image.
        step_time: Seconds a step of one device, without waiting for others.
        step_seconds: Seconds a step with all devices.
        images_per_second: Of all devices together, at the middle step time.
        days: Days of one run, without loading, validation and start-up.
        memory: Memory of one device.
        memory_limit: Bytes that a device has.
        largest_micro_batch: Images at once that fit into a device; 0 where not even 2 fit.
        smallest_accumulate: The smallest accumulate whose micro-batches fit; None where none does.
        savings: What settings that the recipe does not use would save.
    """

    teacher: str
    student: str
    precision: str
    devices: int
    scaling_efficiency: float
    batch_size: int
    accumulate: int
    micro_batch: int
    images_per_epoch: int
    steps_per_epoch: int
    epochs: int
    runs: int
    gflop: StepFlops
    step_time: StepTime
    step_seconds: Range
    images_per_second: float
    days: Range
    memory: DeviceMemory
    memory_limit: float
    largest_micro_batch: int
    smallest_accumulate: int | None
    savings: list[Saving]


def estimate(
    recipe: Recipe,
    devices: int = 1,
    gpu: str | None = None,
    memory: float | None = None,
    images: int | None = None,
) -> Estimate:
    """Estimate time and memory of a recipe's first run, without its weights and its images.

    Nothing is downloaded and no image is read. Without --gpu a few steps are run on this machine,
    in a process of their own, with random weights on noise. With --gpu the step is modelled and
    nothing is run.

    Args:
        recipe: The recipe that would be trained; its batch_size is that of all devices together.
        devices: Number of devices that share each batch.
        gpu: Name of a GPU that the step is modelled for: b200, h200, h100, h100-pcie, a100,
            a100-40, l40s, a10, rtx-pro-6000-max-q, rtx5090, rtx4090, rtx3090, v100 or t4. Default:
            steps are measured on this machine.
        memory: Memory of one device, in GB. Default: what the device has.
        images: Number of training images. Default: as many as data.root holds, or those of
            ImageNet-1K where data.root is `imagenet` and there is no such folder.

    Raises:
        InputError: The GPU is not known, the devices cannot share the batch, or the pair cannot
            work.
    """
    if recipe.cache is not None:
        raise InputError(
            f"cache is {recipe.cache!r}, but a step is estimated with the teacher's forward pass: "
            "drop --cache; the savings at the end of the estimate tell what a cache would save"
        )
    if recipe.method != "scalekd":
        raise InputError(
            f"method is {recipe.method}, but an estimate is of ScaleKD, whose step costs more: "
            "drop --method for an upper bound"
        )
    if recipe.more_students:
        raise InputError(
            f"more_students has {len(recipe.more_students)}, but an estimate is for one student: "
            "drop more_students, and run one estimate for each of them as --student"
        )
    check_optimizer(recipe.optim)
    micro_batch = _micro_batch(recipe, devices)
    if memory is not None and not memory > 0:
        raise InputError(f"memory is {memory} GB: it must be more than 0")
    modelled_gpu = None if gpu is None else find_gpu(gpu, recipe.precision)
    training_images = count_training_images(recipe, images)
    if training_images.count < recipe.batch_size:
        raise InputError(
            f"an epoch has {training_images.count} images and batch_size is {recipe.batch_size}, "
            "so an epoch has no complete batch: make batch_size smaller"
        )
    pair = build_pair_on_meta(recipe, training_images)
    if recipe.channels_last:
        pair.to(memory_format=torch.channels_last)
    with torch.device("meta"):
        gflop, tail_gflop = count_flops(pair), count_tail_gflop(pair)
    memory_model = MemoryModel(pair, recipe, devices)
    step_model = None
    if modelled_gpu is None:
        benchmark = benchmark_step(recipe, training_images, min(micro_batch, MAX_BENCHMARK_IMAGES))
        memory_model.calibrate(benchmark.micro_batch, benchmark.peak, benchmark.runtime)
        device_memory = memory_model.device_memory(micro_batch)
        step_time = step_time_from_benchmark(benchmark, recipe, micro_batch)
        memory_limit = float(benchmark.device_memory)
    else:
        device_memory = memory_model.device_memory(micro_batch)
        step_model = StepModel(modelled_gpu, recipe, memory_model.simulation, micro_batch)
        step_time = step_model.step_time(device_memory)
        memory_limit = 1e9 * modelled_gpu.memory
    if memory is not None:
        memory_limit = 1e9 * memory
    largest = largest_micro_batch(lambda n: memory_model.device_memory(n).total, memory_limit)
    efficiency = 1.0 if devices == 1 else SCALING_EFFICIENCY
    step_seconds = Range(*(seconds / efficiency for seconds in step_time.seconds))
    steps_per_epoch = training_images.count // recipe.batch_size
    steps = recipe.epochs * steps_per_epoch
    assert recipe.teacher is not None
    return Estimate(
        teacher=recipe.teacher,
        student=recipe.student,
        precision=recipe.precision,
        devices=devices,
        scaling_efficiency=efficiency,
        batch_size=recipe.batch_size,
        accumulate=recipe.accumulate,
        micro_batch=micro_batch,
        images_per_epoch=training_images.count,
        steps_per_epoch=steps_per_epoch,
        epochs=recipe.epochs,
        runs=len(recipe.seeds) * (1 + len(recipe.compare)),
        gflop=gflop,
        step_time=step_time,
        step_seconds=step_seconds,
        images_per_second=recipe.batch_size / step_seconds.middle,
        days=Range(*(steps * seconds / 86_400 for seconds in step_seconds)),
        memory=device_memory,
        memory_limit=memory_limit,
        largest_micro_batch=largest,
        smallest_accumulate=_smallest_accumulate(recipe.batch_size // devices, largest),
        savings=list(
            estimate_savings(
                recipe,
                memory_model=memory_model,
                memory=device_memory,
                step_time=step_time,
                gflop=gflop,
                tail_gflop=tail_gflop,
                micro_batch=micro_batch,
                step_model=step_model,
            )
        ),
    )


def _micro_batch(recipe: Recipe, devices: int) -> int:
    """Images that a device computes at once."""
    if devices < 1:
        raise InputError(f"devices is {devices}: it must be 1 or more")
    micro_batches = devices * recipe.accumulate
    if recipe.batch_size % micro_batches:
        nearest = max(recipe.batch_size // micro_batches, 1) * micro_batches
        raise InputError(
            f"batch_size is {recipe.batch_size}, but {devices} devices with accumulate "
            f"{recipe.accumulate} need a multiple of {micro_batches}: set it to {nearest}, for "
            "example"
        )
    return recipe.batch_size // micro_batches


def _smallest_accumulate(per_device_batch: int, largest: int) -> int | None:
    """The smallest number of equal micro-batches, each of at most `largest` images."""
    divisors = (n for n in range(1, per_device_batch + 1) if per_device_batch % n == 0)
    return next((n for n in divisors if per_device_batch // n <= largest), None)
