"""The peak memory of a training step by part, found without computing anything.

The step runs on torch's fake tensors, which have shapes and dtypes but no values. Every allocation
and every release is counted; the largest sum of the live tensors is the peak.
"""

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from scalekd.networks import FrozenTeacher
from scalekd.recipe import Precision
from scalekd.scale_kd import ScaleKD
from scalekd.training.performance import autocast


@dataclass(frozen=True)
class StepMemory:
    """Bytes that are live at the peak of one forward and backward pass; their sum is the peak.

    Attributes:
        teacher_weights, student_weights, projector_weights: Parameters and buffers of each.
        gradients: Gradients of all trained parameters.
        student_activations: What the student stores for its backward pass, with the images and
            the teacher's outputs.
        projector_activations: What projectors, tail and losses store for their backward pass.
        temporary_tensors: Short-lived tensors that are live at the peak beside all of the above.
    """

    teacher_weights: int
    student_weights: int
    projector_weights: int
    gradients: int
    student_activations: int
    projector_activations: int
    temporary_tensors: int


class MemorySimulation:
    """Simulates training steps of a pair on fake tensors and counts their memory.

    Args:
        pair: A pair on the meta device. Its tensors become fake tensors.
    """

    def __init__(self, pair: ScaleKD) -> None:
        self.pair = pair.train()
        self.fake_tensors = FakeTensorMode(allow_non_fake_inputs=True)
        with self.fake_tensors:
            pair.to_empty(device="cpu")
            pair.teacher.model.to_empty(device="cpu")

    def simulate_step(
        self,
        micro_batch: int,
        precision: Precision,
        accumulate: bool,
        checkpoint_tail: bool,
        checkpoint_projectors: bool = False,
        half_precision_teacher: bool = True,
    ) -> StepMemory:
        """Count the memory of one forward and backward pass.

        Args:
            micro_batch: Images in the pass.
            precision: What autocast computes in.
            accumulate: Whether the gradients of one micro-batch stay for the next one. If not, the
                gradients of the step before are live until the backward pass begins.
            checkpoint_tail: Whether the tail is computed again in the backward pass.
            checkpoint_projectors: Whether most of each projector is.
            half_precision_teacher: Whether the teacher stores those of its weights in half
                precision that autocast would cast. Without effect in 32-true.
        """
        half_precision_teacher &= precision != "32-true"
        pair, config = self.pair, self.pair.student_extractor.input
        pair.checkpoint_tail = checkpoint_tail
        for projector in pair.criterion.projectors:
            projector.recompute = checkpoint_projectors
        cast_teacher = teacher_in_half_precision(pair.teacher, half_precision_teacher)
        with self.fake_tensors, cast_teacher, LiveMemory() as live:
            teacher = live.track(_parameters_and_buffers(pair.teacher.model))
            student = live.track(_parameters_and_buffers(pair.student))
            projectors = live.track(_parameters_and_buffers(pair))
            weights = live.current
            for parameter in pair.parameters():
                if parameter.requires_grad:
                    parameter.grad = torch.empty_like(parameter)
            gradients = live.current - weights
            before_losses: list[int] = []
            hook = pair.criterion.register_forward_pre_hook(
                lambda *_: before_losses.append(live.current)
            )
            images = torch.empty(micro_batch, config.channels, *config.size)
            with autocast(precision, torch.device("cpu")):
                # Without labels: fake ones have no values, and their loss takes next to no memory.
                loss = pair(images).loss
            after_forward = live.current
            if not accumulate:
                pair.zero_grad()
            loss.backward()
            hook.remove()
            pair.zero_grad()
        return StepMemory(
            teacher_weights=teacher,
            student_weights=student,
            projector_weights=projectors,
            gradients=gradients,
            student_activations=before_losses[0] - weights - gradients,
            projector_activations=after_forward - before_losses[0],
            temporary_tensors=live.peak - after_forward,
        )


class LiveMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all live tensor storages that are allocated inside of this context.

    Tensors that share a storage count once.

    Example:
        >>> with LiveMemory() as live:
        ...     x = torch.empty(256)
        >>> live.current, live.peak
        (1024, 1024)

    Attributes:
        current: Bytes that are live now.
        peak: The largest `current` so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.current = self.peak = 0
        self._storages: set[int] = set()

    def track(self, tensors: Iterable[Tensor]) -> int:
        """Count `tensors` that exist already.

        Returns:
            Bytes that this added; a storage that is counted already adds none.
        """
        before = self.current
        for tensor in tensors:
            storage = tensor.untyped_storage()
            address, size = storage._cdata, storage.nbytes()
            if address not in self._storages:
                self._storages.add(address)
                self.current += size
                weakref.finalize(storage, self._release, address, size)
        self.peak = max(self.peak, self.current)
        return self.current - before

    def _release(self, address: int, size: int) -> None:
        self._storages.discard(address)
        self.current -= size

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.track(leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        return result


def optimizer_state_ratio(name: str) -> float:
    """Bytes of optimizer state for each byte of a weight matrix, of timm's optimizer `name`."""
    matrix = nn.Linear(64, 64, bias=False)
    optimizer = create_optimizer_v2(matrix, opt=name, lr=1e-3)
    matrix.weight.grad = torch.ones_like(matrix.weight)
    optimizer.step()
    state = [t for t in tree_leaves(optimizer.state_dict()["state"]) if isinstance(t, Tensor)]
    return sum(t.nbytes for t in state if t.dim()) / matrix.weight.nbytes


@contextmanager
def teacher_in_half_precision(teacher: FrozenTeacher, enabled: bool) -> Iterator[None]:
    """Store the teacher's weights inside of this context as a training in half precision does."""
    undo = teacher.cast_layers_to_half(torch.bfloat16) if enabled else lambda: None
    try:
        yield
    finally:
        undo()


def _parameters_and_buffers(model: nn.Module) -> Iterable[Tensor]:
    yield from model.parameters()
    yield from model.buffers()
