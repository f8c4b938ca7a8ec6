"""A transfer's step on tensors without values: its work, its memory, its time on a GPU."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from scalekd.estimating.device_memory import GPU_OVERHEAD_RATIO, GPU_RUNTIME_BYTES
from scalekd.estimating.gpus import Gpu
from scalekd.estimating.kernels import eager_kernels
from scalekd.estimating.memory_simulation import LiveMemory, optimizer_state_ratio
from scalekd.estimating.operations import trace
from scalekd.estimating.roofline import seconds
from scalekd.estimating.transfer.network import TransferNetwork
from scalekd.flops import FLOP_FORMULAS
from scalekd.training.performance import autocast


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
