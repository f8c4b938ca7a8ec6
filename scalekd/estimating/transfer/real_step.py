"""Steps of a transfer that are run on this machine, with random weights on noise, and timed."""

import statistics
import time
from dataclasses import dataclass
from functools import partial

import torch

from scalekd.device import best_device
from scalekd.estimating.own_process import in_own_process
from scalekd.estimating.step_benchmark import machine_memory, process_memory
from scalekd.estimating.step_time import Range
from scalekd.estimating.transfer.network import TransferNetwork
from scalekd.training.optim import build_optimizer, clipped_gradients
from scalekd.training.performance import autocast

WARM_UP_STEPS, TIMED_STEPS = 1, 3
"""Real steps before the first one that is timed, and timed ones."""


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
    remedy = "make the images smaller, or model another device with --gpu NAME"
    return in_own_process(partial(_time_real_steps, network, images), images, remedy)


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
