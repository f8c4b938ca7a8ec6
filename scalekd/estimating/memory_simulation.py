"""The memory of a step by part, found without running it.

A step is gone through with tensors that have shapes and no values (torch's fake tensors), and what
it allocates and frees is counted: the largest sum of all that is alive is its peak.
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

from scalekd.distiller import ScaleKD
from scalekd.networks import FrozenTeacher
from scalekd.recipe import Precision
from scalekd.training.performance import autocast


@dataclass(frozen=True)
class Footprint:
    """Bytes that are alive in the passes of a step, forward and backward, at their peak.

    batch: images that are computed at once.
    teacher, student, projectors: weights and buffers.
    gradients: of all that trains.
    student_activations: what the student keeps for its backward pass, with the images and what the
        teacher leaves.
    projector_activations: what projectors, tail and losses keep for theirs.
    transient: what is alive for a moment beside all that.
    """

    batch: int
    teacher: int
    student: int
    projectors: int
    gradients: int
    student_activations: int
    projector_activations: int
    transient: int

    @property
    def peak(self) -> int:
        """The sum."""
        of_batch = self.student_activations + self.projector_activations + self.transient
        return self.teacher + self.student + self.projectors + self.gradients + of_batch


class Rehearsal:
    """A pair with shapes and no values, to count steps with.

    Args:
        pair: on the meta device, which its tensors leave.
    """

    def __init__(self, pair: ScaleKD) -> None:
        self.pair = pair.train()
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        with self.mode:
            pair.to_empty(device="cpu")
            pair.teacher.model.to_empty(device="cpu")

    def footprint(
        self,
        batch: int,
        precision: Precision,
        accumulate: bool,
        checkpoint_tail: bool,
        halved: bool = True,
    ) -> Footprint:
        """What a step has in memory.

        Args:
            batch: images that are computed at once.
            precision: of the arithmetic.
            accumulate: whether gradients of one part of a batch stay for the next. If not, those of
                the step before are there until the backward pass begins.
            checkpoint_tail: whether the tail is computed anew in the backward pass.
            halved: whether the teacher's weights are kept as autocast casts them, where it does.
        """
        halved &= precision != "32-true"
        pair, config = self.pair, self.pair.student_extractor.input
        pair.checkpoint_tail = checkpoint_tail
        with self.mode, _halved(pair.teacher, halved), Alive() as alive:
            teacher = alive.hold(_tensors(pair.teacher.model))
            student = alive.hold(_tensors(pair.student))
            projectors = alive.hold(_tensors(pair))
            before = alive.now
            learning = [p for p in pair.parameters() if p.requires_grad]
            for parameter in learning:
                parameter.grad = torch.empty_like(parameter)
            gradients = alive.now - before
            compared: list[int] = []
            mark = pair.criterion.register_forward_pre_hook(lambda *_: compared.append(alive.now))
            images = torch.empty(batch, config.channels, *config.size)
            with autocast(precision, torch.device("cpu")):
                loss = pair(images).loss  # labels have values, and their loss next to no memory
            kept = alive.now
            if not accumulate:
                pair.zero_grad()
            loss.backward()
            mark.remove()
            pair.zero_grad()
        by_student = compared[0] - before - gradients
        return Footprint(
            batch,
            teacher,
            student,
            projectors,
            gradients,
            by_student,
            kept - compared[0],
            alive.peak - kept,
        )


class Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of storages from their making to their end."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self.known: set[int] = set()

    def hold(self, tensors: Iterable[Tensor]) -> int:
        """Count these too where they are not yet; returns how many bytes that were."""
        before = self.now
        for tensor in tensors:
            storage = tensor.untyped_storage()
            name, size = storage._cdata, storage.nbytes()
            if name not in self.known:
                self.known.add(name)
                self.now += size
                weakref.finalize(storage, self._free, name, size)
        self.peak = max(self.peak, self.now)
        return self.now - before

    def _free(self, name: int, size: int) -> None:
        self.known.discard(name)
        self.now -= size

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        self.hold(leaf for leaf in tree_leaves(made) if isinstance(leaf, Tensor))
        return made


def optimizer_share(name: str) -> float:
    """How many bytes the optimizer of this name, timm's, keeps for each of a matrix it trains."""
    matrix = nn.Linear(64, 64, bias=False)
    optimizer = create_optimizer_v2(matrix, opt=name, lr=1e-3)
    matrix.weight.grad = torch.ones_like(matrix.weight)
    optimizer.step()
    kept = [t for t in tree_leaves(optimizer.state_dict()["state"]) if isinstance(t, Tensor)]
    return sum(t.nbytes for t in kept if t.dim()) / matrix.weight.nbytes


@contextmanager
def _halved(teacher: FrozenTeacher, really: bool) -> Iterator[None]:
    undo = teacher.cast_layers_to_half(torch.bfloat16) if really else lambda: None
    try:
        yield
    finally:
        undo()


def _tensors(model: nn.Module) -> Iterable[Tensor]:
    yield from model.parameters()
    yield from model.buffers()
