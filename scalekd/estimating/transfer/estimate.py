"""Estimate what a transfer will cost, before it is run: time, memory, days."""

from dataclasses import dataclass

import torch

from scalekd.data.loader import check_batch_size
from scalekd.errors import InputError
from scalekd.estimating.device_memory import largest_micro_batch
from scalekd.estimating.estimate import SCALING_EFFICIENCY
from scalekd.estimating.gpus import Gpu, find_gpu
from scalekd.estimating.measured_rates import expected_error, read_rates
from scalekd.estimating.step_time import Range
from scalekd.estimating.transfer.model import TransferMemory, TransferModel
from scalekd.estimating.transfer.network import TransferNetwork
from scalekd.estimating.transfer.real_step import TIMED_STEPS, RealStep, time_real_steps
from scalekd.training.optim import check_optimizer
from scalekd.transfer.prepared import check_micro_batch

MOST_IMAGES = 16 if torch.cuda.is_available() else 1
"""Images of a real step at most; the time of more is taken to grow linearly."""


@dataclass(frozen=True)
class TransferEstimate:
    """What a transfer takes.

    Attributes:
        backbone, head: Of the network.
        precision: The recipe's.
        size: (height, width) of the images in pixels.
        devices: Devices that share each batch.
        efficiency: Assumed share of its speed that each of several devices keeps.
        batch_size: Images a step, of all devices together.
        micro_batch: Images that a device computes at once.
        images_per_epoch: Length of an epoch.
        steps: Of the run.
        gflop: Of a training step, for each image.
        basis: In words, what the time is based on.
        step_seconds: Seconds a step with all devices.
        images_per_second: Of all devices together, at the middle step time.
        days: Days of the run, without loading, validation and start-up.
        memory: Memory of one device, modelled.
        measured_peak: Bytes that the process of a real step took at most, of `measured_images`
            images; None where nothing was run.
        measured_images: Images of the real step; 0 where nothing was run.
        memory_limit: Bytes that a device has.
        largest_micro_batch: Images at once that fit into the GPU that is modelled, 0 where not even
            2 fit; None where a real step was run.
    """

    backbone: str
    head: str
    precision: str
    size: tuple[int, int]
    devices: int
    efficiency: float
    batch_size: int
    micro_batch: int
    images_per_epoch: int
    steps: int
    gflop: float
    basis: str
    step_seconds: Range
    images_per_second: float
    days: Range
    memory: TransferMemory
    measured_peak: int | None
    measured_images: int
    memory_limit: float
    largest_micro_batch: int | None


def estimate_transfer(
    network: TransferNetwork, devices: int = 1, gpu: str | None = None
) -> TransferEstimate:
    """Estimate time and memory of a transfer, without its weights and its images.

    Nothing is downloaded and no image is read. Without `gpu` a few steps are run on this machine,
    in a process of their own, with random weights on noise. With it the step is modelled and
    nothing is run.

    Args:
        network: what would be trained.
        devices: devices that share each batch.
        gpu: name of the GPU that the step is modelled for.

    Raises:
        InputError: the GPU is not known, the devices cannot share the batch, or the network cannot
            be built.
    """
    recipe = network.recipe
    check_optimizer(recipe.optim)
    micro_batch, steps = _check_batch(network, devices)
    card = None if gpu is None else find_gpu(gpu, recipe.precision)
    model = TransferModel(network)
    check_micro_batch(recipe, model.learner, devices)
    memory, gflop = model.memory(micro_batch), model.gflop()
    if card is None:
        timing = _run_steps(network, micro_batch)
    else:
        timing = _model_step(model, memory, micro_batch, card)
    efficiency = 1.0 if devices == 1 else SCALING_EFFICIENCY
    step_seconds = Range(*(each / efficiency for each in timing.seconds))
    real = timing.real
    return TransferEstimate(
        backbone=recipe.backbone,
        head=network.head,
        precision=recipe.precision,
        size=network.size,
        devices=devices,
        efficiency=efficiency,
        batch_size=recipe.batch_size,
        micro_batch=micro_batch,
        images_per_epoch=network.images.count,
        steps=steps,
        gflop=gflop,
        basis=timing.basis,
        step_seconds=step_seconds,
        images_per_second=recipe.batch_size / step_seconds.middle,
        days=Range(*(steps * each / 86_400 for each in step_seconds)),
        memory=memory,
        measured_peak=None if real is None else real.peak,
        measured_images=0 if real is None else real.images,
        memory_limit=timing.memory_limit,
        largest_micro_batch=timing.largest_micro_batch,
    )


def _check_batch(network: TransferNetwork, devices: int) -> tuple[int, int]:
    """Images of a micro-batch, and steps of the run."""
    recipe = network.recipe
    if devices < 1:
        raise InputError(f"devices is {devices}: it must be 1 or more")
    check_batch_size(recipe.batch_size, devices, recipe.accumulate)
    steps = recipe.steps or recipe.epochs * (network.images.count // recipe.batch_size)
    if not steps:
        raise InputError(
            f"an epoch has {network.images.count} images and batch_size is {recipe.batch_size}: "
            "not one batch; make the batch smaller"
        )
    return recipe.batch_size // devices // recipe.accumulate, steps


@dataclass(frozen=True)
class _Timing:
    """What a step takes on one device.

    Attributes:
        seconds: of the step.
        basis: in words, what they are based on.
        memory_limit: bytes that the device has.
        real: the real steps that were run, if any.
        largest_micro_batch: images at once that fit, where it was modelled.
    """

    seconds: Range
    basis: str
    memory_limit: float
    real: RealStep | None = None
    largest_micro_batch: int | None = None


def _run_steps(network: TransferNetwork, micro_batch: int) -> _Timing:
    real = time_real_steps(network, min(micro_batch, MOST_IMAGES))
    return _Timing(
        seconds=real.scaled(micro_batch * network.recipe.accumulate),
        basis=f"measured: {TIMED_STEPS} steps, micro-batch {real.images}, on this machine "
        f"({real.device})",
        memory_limit=float(real.device_memory),
        real=real,
    )


def _model_step(
    model: TransferModel, memory: TransferMemory, micro_batch: int, card: Gpu
) -> _Timing:
    computing = model.recipe.accumulate * model.seconds(micro_batch, card)
    # The optimizer reads and writes weights and state, and reads the gradients.
    updated = 2 * (memory.weights + memory.optimizer_state) + memory.gradients
    middle = computing + updated / (1e9 * card.bandwidth)
    error = expected_error(read_rates(), card.label)
    limit = 1e9 * card.memory
    return _Timing(
        seconds=Range(middle / error.factor, middle, middle * error.factor),
        basis=f"modelled for {card.label}, nothing was run; of classifiers, {error}",
        memory_limit=limit,
        largest_micro_batch=largest_micro_batch(lambda n: model.memory(n).total, limit),
    )
