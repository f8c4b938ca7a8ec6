"""What of a teacher's pass has to be kept so that its tail can be run without it.

The tail's modules are given the feature, which others' tokens replace, and more: some of it the
same for all images (rotary tables, biases), some of it the image's own (prefix tokens). Which is
which is told by value, from two passes over different noise.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec

from scalekd.errors import InputError
from scalekd.networks.teacher.tail import RecordedInputs, Tail


class CachedOutputs(NamedTuple):
    """What a teacher's pass over N images leaves for later; `FrozenTeacher.from_cache` takes it.

    final: the final feature (N, C, H, W).
    logits: (N, classes); (N, 0) of a teacher without classifier.
    tail_inputs: what its tail is given beside the feature that is each image's own, (N, ...) each.
    """

    final: Tensor
    logits: Tensor
    tail_inputs: list[Tensor]


@dataclass(frozen=True)
class Constant:
    """A leaf of a call's arguments that is the same for all images."""

    value: Any

    def of_batch(self, beside: list[Tensor], like: Tensor, images: int) -> Any:
        """It, on the device of `like`."""
        return self.value.to(like.device) if isinstance(self.value, Tensor) else self.value


@dataclass(frozen=True)
class SameRow:
    """One that has a row for each image, all of them equal; `row` is (1, ...)."""

    row: Tensor

    def of_batch(self, beside: list[Tensor], like: Tensor, images: int) -> Tensor:
        """As many rows as there are images."""
        return self.row.to(like.device).expand(images, *self.row.shape[1:])


@dataclass(frozen=True)
class PerImage:
    """One that is each image's own; number `at` of `CachedOutputs.tail_inputs`."""

    at: int

    def of_batch(self, beside: list[Tensor], like: Tensor, images: int) -> Tensor:
        """It."""
        return beside[self.at].to(like.dtype)


@dataclass(frozen=True)
class FeatureInput:
    """The feature itself, of which the tail reads its shape and the first `prefix` tokens.

    at: of these among `CachedOutputs.tail_inputs`.
    shape: without the batch.
    """

    shape: tuple[int, ...]
    prefix: int
    at: int

    def of_batch(self, beside: list[Tensor], like: Tensor, images: int) -> Tensor:
        """One of this shape; what nobody reads is left as memory has it."""
        if not self.prefix:
            return like.new_empty(1).expand(images, *self.shape)
        whole = like.new_empty(images, *self.shape)
        whole[:, : self.prefix] = beside[self.at]
        return whole


TailInput = Constant | SameRow | PerImage | FeatureInput


class TailInputs:
    """All that a tail's modules are given, as constants and places in `CachedOutputs.tail_inputs`.

    Args:
        tail: of a teacher.
        watched: runs the teacher on so many images of noise, other ones for each number.
        prefix: how many prefix tokens its first module finds in the feature and its tail reads.

    Raises:
        InputError: a module is given something that is neither the same for all images nor one row
            for each.
    """

    def __init__(self, tail: Tail, watched: Callable[[int], object], prefix: int) -> None:
        self.calls: dict[Any, tuple[list[TailInput], TreeSpec]] = {}
        self.own: list[tuple[Any, int, int | None]] = []
        watched(2)
        two = dict(tail.record.given)
        watched(3)
        three = dict(tail.record.given)
        for nth, step in enumerate(tail.steps):
            key = step.module, step.nth
            (some, spec), (others, _) = two[key], three[key]
            leaves: list[TailInput] = []
            for slot, (a, b) in enumerate(zip(some, others, strict=True)):
                if slot == step.slot:
                    tokens = prefix if nth == 0 else 0
                    leaves.append(FeatureInput(tuple(a.shape[1:]), tokens, len(self.own)))
                    if tokens:
                        self.own.append((key, slot, tokens))
                    continue
                leaf = _leaf(a, b, len(self.own))
                if leaf is None:
                    raise InputError(
                        f"its tail's {type(step.module).__name__} is given a tensor of "
                        f"{tuple(a.shape)} for 2 images and {tuple(b.shape)} for 3, which "
                        "cannot be kept image by image"
                    )
                leaves.append(leaf)
                if isinstance(leaf, PerImage):
                    self.own.append((key, slot, None))
            self.calls[key] = leaves, spec

    def take(self, record: RecordedInputs) -> list[Tensor]:
        """`CachedOutputs.tail_inputs` of the teacher's last pass."""
        taken = []
        for key, slot, tokens in self.own:
            leaf = record.given[key][0][slot]
            taken.append(leaf if tokens is None else leaf[:, :tokens].contiguous())
        return taken

    def give(self, record: RecordedInputs, beside: list[Tensor], like: Tensor) -> None:
        """The tail's record as that pass left it, but for what nobody reads.

        Args:
            record: of the tail.
            beside: what was taken.
            like: a tensor (N, ...) of the images' number, and of the device and type to compute on.
        """
        record.given = {
            key: ([leaf.of_batch(beside, like, len(like)) for leaf in leaves], spec)
            for key, (leaves, spec) in self.calls.items()
        }


def _leaf(two: Any, three: Any, at: int) -> TailInput | None:
    """What a leaf is that was `two` for two images and `three` for three others."""
    if not isinstance(two, Tensor):
        return Constant(two)
    if torch.equal(two, three):
        return Constant(two.clone())
    if len(two) != 2 or len(three) != 3 or two.shape[1:] != three.shape[1:]:
        return None
    row = two[:1]
    if torch.equal(two, row.expand_as(two)) and torch.equal(three, row.expand_as(three)):
        return SameRow(row.clone())
    return PerImage(at)
