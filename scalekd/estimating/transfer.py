"""Estimate what a transfer will cost, before it is run: time, memory, days."""

import multiprocessing
import statistics
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from scalekd.data.loader import check_batch_size
from scalekd.device import best_device
from scalekd.errors import InputError
from scalekd.estimating.device_memory import GPU_OVERHEAD_RATIO, GPU_RUNTIME_BYTES
from scalekd.estimating.estimate import SCALING_EFFICIENCY
from scalekd.estimating.gpus import Gpu, find_gpu
from scalekd.estimating.kernels import eager_kernels
from scalekd.estimating.measured_rates import expected_error, read_rates
from scalekd.estimating.memory_simulation import LiveMemory, optimizer_state_ratio
from scalekd.estimating.operations import trace
from scalekd.estimating.roofline import seconds
from scalekd.estimating.step_benchmark import machine_memory, process_memory
from scalekd.estimating.step_time import Range
from scalekd.estimating.transfer_network import TransferNetwork
from scalekd.flops import FLOP_FORMULAS
from scalekd.processes import end_with_parent
from scalekd.training.optim import build_optimizer, clipped_gradients
from scalekd.training.performance import autocast
from scalekd.transfer.prepared import check_micro_batch

WARM_UP_STEPS, TIMED_STEPS = 1, 3
"""Real steps before the first one that is timed, and timed ones."""

MOST_IMAGES = 16 if torch.cuda.is_available() else 1
"""Images of a real step at most; the time of more is taken to grow linearly."""


@dataclass(frozen=True)
class TransferMemory:
    """Bytes of one device's memory at the peak of a step.

    Attributes:
        weights: Parameters and buffers.
        gradients: Gradients of all trained parameters.
        optimizer_state: What the optimizer stores for each trained parameter.
        activations: What is stored for the backward pass, with the images.
        temporary_tensors: Short-lived tensors that are live at the peak beside all of the above.
        allocator_overhead: What the allocator is assumed to reserve beside the live tensors.
        runtime_libraries: What torch and CUDA are assumed to take.
    """

    weights: float
    gradients: float
    optimizer_state: float
    activations: float
    temporary_tensors: float
    allocator_overhead: float
    runtime_libraries: float

    @property
    def total(self) -> float:
        """The sum of all parts."""
        return float(sum(vars(self).values()))


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
    if devices < 1:
        raise InputError(f"devices is {devices}: it must be 1 or more")
    check_batch_size(recipe.batch_size, devices, recipe.accumulate)
    card = None if gpu is None else find_gpu(gpu, recipe.precision)
    micro_batch = recipe.batch_size // devices // recipe.accumulate
    steps = recipe.steps or recipe.epochs * (network.images.count // recipe.batch_size)
    if not steps:
        raise InputError(
            f"an epoch has {network.images.count} images and batch_size is {recipe.batch_size}: "
            "not one batch; make the batch smaller"
        )
    model = TransferModel(network)
    check_micro_batch(recipe, model.learner, devices)
    memory, gflop = model.memory(micro_batch), model.gflop()
    measured: RealStep | None = None
    if card is None:
        measured = time_real_steps(network, min(micro_batch, MOST_IMAGES))
        times = measured.scaled(micro_batch * recipe.accumulate)
        basis = (
            f"measured: {TIMED_STEPS} steps, micro-batch {measured.images}, on this machine "
            f"({measured.device})"
        )
        limit = float(measured.device_memory)
    else:
        middle = recipe.accumulate * model.seconds(micro_batch, card)
        middle += (2 * (memory.weights + memory.optimizer_state) + memory.gradients) / (
            1e9 * card.bandwidth
        )
        error = expected_error(read_rates(), card.label)
        times = Range(middle / error.factor, middle, middle * error.factor)
        basis = f"modelled for {card.label}, nothing was run; of classifiers, {error}"
        limit = 1e9 * card.memory
    efficiency = 1.0 if devices == 1 else SCALING_EFFICIENCY
    step_seconds = Range(*(each / efficiency for each in times))
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
        basis=basis,
        step_seconds=step_seconds,
        images_per_second=recipe.batch_size / step_seconds.middle,
        days=Range(*(steps * each / 86_400 for each in step_seconds)),
        memory=memory,
        measured_peak=None if measured is None else measured.peak,
        measured_images=0 if measured is None else measured.images,
        memory_limit=limit,
    )


class TransferModel:
    """A transfer's network on tensors without values.

    Args:
        network: what would be trained.
    """

    def __init__(self, network: TransferNetwork) -> None:
        self.network, self.recipe = network, network.recipe
        with torch.device("meta"):
            self.built = network.build()
        self.learner = self.built.learner
        self.fake_tensors = FakeTensorMode(allow_non_fake_inputs=True)
        with self.fake_tensors:
            self.learner.to_empty(device="cpu")

    def _forward(self, images: int) -> Tensor:
        with autocast(self.recipe.precision, torch.device("cpu")):
            return self.network.trace_step(self.built, images)

    def gflop(self) -> float:
        """GFLOP of a training step for each image, with 2 for each multiply-add."""
        counter = FlopCounterMode(display=False, custom_mapping=FLOP_FORMULAS)
        with self.fake_tensors, counter:
            self._forward(2).backward()  # type: ignore[no-untyped-call]
        self.learner.zero_grad()
        return float(counter.get_total_flops()) / 2 / 1e9

    def seconds(self, images: int, gpu: Gpu) -> float:
        """Seconds of forward and backward on a GPU."""
        with self.fake_tensors:
            operations = trace(lambda: self._forward(images).backward())  # type: ignore[no-untyped-call]
        self.learner.zero_grad()
        half = self.recipe.precision != "32-true"
        return seconds(eager_kernels(operations), gpu, compiled=False, tf32_products=half)

    def memory(self, images: int) -> TransferMemory:
        """The memory of a step of so many images on a GPU."""
        learner = self.learner
        with self.fake_tensors, LiveMemory() as live:
            weights = live.track(_state(learner.parameters(), learner.buffers()))
            for parameter in learner.parameters():
                if parameter.requires_grad:
                    parameter.grad = torch.empty_like(parameter)
            gradients = live.current - weights
            loss = self._forward(images)
            after_forward = live.current
            if self.recipe.accumulate == 1:
                learner.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            learner.zero_grad()
        state = optimizer_state_ratio(self.recipe.optim.name) * gradients
        temporary = live.peak - after_forward
        return TransferMemory(
            weights=weights,
            gradients=gradients,
            optimizer_state=state,
            activations=after_forward - weights - gradients,
            temporary_tensors=temporary,
            allocator_overhead=GPU_OVERHEAD_RATIO * (after_forward + temporary + state),
            runtime_libraries=GPU_RUNTIME_BYTES,
        )


def _state(*parts: Iterable[Tensor]) -> Iterable[Tensor]:
    for part in parts:
        yield from part


@dataclass(frozen=True)
class RealStep:
    """What real steps took.

    Attributes:
        device: its name.
        images: of each step.
        seconds: of forward and backward of each step.
        update_seconds: median seconds of clipping and the optimizer's step.
        peak: bytes that the process, or on a GPU torch's allocator, took at most.
        device_memory: bytes that the machine, or the GPU, has.
    """

    device: str
    images: int
    seconds: list[float]
    update_seconds: float
    peak: int
    device_memory: int

    def scaled(self, images: int) -> Range:
        """Seconds of a step of so many images: the fastest, the median and the slowest."""
        scale = images / self.images
        values = min(self.seconds), statistics.median(self.seconds), max(self.seconds)
        return Range(*(scale * each + self.update_seconds for each in values))


def time_real_steps(network: TransferNetwork, images: int) -> RealStep:
    """Run steps of so many images on this machine, in a process of their own.

    Raises:
        InputError: a step does not fit into this machine's memory, or the network cannot be built.
    """
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, initializer=end_with_parent) as pool:
        try:
            return pool.submit(_time_real_steps, network, images).result()
        except (BrokenProcessPool, torch.OutOfMemoryError) as error:
            raise InputError(
                f"a step of {images} images does not fit into this machine's memory: make the "
                "images smaller, or model another device with --gpu NAME"
            ) from error


def _time_real_steps(network: TransferNetwork, images: int) -> RealStep:
    device, recipe = best_device(), network.recipe
    on_gpu = device.type == "cuda"
    built = network.build()
    learner = built.learner.to(device)
    optimizer = build_optimizer(learner, recipe.optim, recipe.learning_rate)
    # BatchNorm has no statistics of one image where a map is one token, as in pyramid pooling.
    count = max(images, 2) if any(map(_is_batchnorm, learner.modules())) else images

    def finish() -> float:
        if on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    times, updates = [], []
    for number in range(WARM_UP_STEPS + TIMED_STEPS):
        begin = finish()
        with autocast(recipe.precision, device):
            loss = network.run_step(built, count, device)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        computed = finish()
        with clipped_gradients(optimizer, recipe.optim.clip):
            optimizer.step()
        if number >= WARM_UP_STEPS:
            times.append(computed - begin)
            updates.append(finish() - computed)
    cpu = f"CPU, {torch.get_num_threads()} threads"
    return RealStep(
        device=torch.cuda.get_device_name() if on_gpu else cpu,
        images=count,
        seconds=times,
        update_seconds=statistics.median(updates),
        peak=torch.cuda.max_memory_reserved() if on_gpu else process_memory("VmHWM"),
        device_memory=torch.cuda.mem_get_info()[1] if on_gpu else machine_memory(),
    )


def _is_batchnorm(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.modules.batchnorm._BatchNorm) and module.training
