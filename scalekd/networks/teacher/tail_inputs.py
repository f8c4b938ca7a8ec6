"""The inputs of a tail besides the feature, so that the tail can run without a teacher's pass.

The tail's modules are given the feature, which other tokens replace, and more: some of it the same
for all images (rotary tables, biases), some of it each image's own (prefix tokens). Which input is
which is found by comparing the values of two passes over different noise.
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
    """What a cache stores of a teacher's pass over N images; see `FrozenTeacher.from_cache`.

    final: the final feature (N, C, H, W).
    logits: (N, classes); (N, 0) for a teacher without classifier.
    tail_inputs: the tail's inputs besides the feature that are each image's own, (N, ...) each.
    """

    final: Tensor
    logits: Tensor
    tail_inputs: list[Tensor]


@dataclass(frozen=True)
class Constant:
    """An input that is the same for all images."""

    value: Any

    def for_batch(self, cached: list[Tensor], like: Tensor, images: int) -> Any:
        """Return the value on the device of `like`."""
        return self.value.to(like.device) if isinstance(self.value, Tensor) else self.value


@dataclass(frozen=True)
class EqualRows:
    """An input with one row for each image, all of them equal; `row` is (1, ...)."""

    row: Tensor

    def for_batch(self, cached: list[Tensor], like: Tensor, images: int) -> Tensor:
        """Return as many rows as there are images."""
        return self.row.to(like.device).expand(images, *self.row.shape[1:])


@dataclass(frozen=True)
class PerImage:
    """An input that is each image's own; it is number `index` of the cached tensors."""

    index: int

    def for_batch(self, cached: list[Tensor], like: Tensor, images: int) -> Tensor:
        """Return the cached tensor in the precision of `like`."""
        return cached[self.index].to(like.dtype)


@dataclass(frozen=True)
class Feature:
    """The feature itself, of which the tail reads only the shape and the prefix tokens.

    shape: without the batch.
    prefix: how many prefix tokens it begins with.
    index: of these among the cached tensors.
    """

    shape: tuple[int, ...]
    prefix: int
    index: int

    def for_batch(self, cached: list[Tensor], like: Tensor, images: int) -> Tensor:
        """Return a tensor of this shape; what the tail does not read is uninitialised."""
        if not self.prefix:
            return like.new_empty(1).expand(images, *self.shape)
        feature = like.new_empty(images, *self.shape)
        feature[:, : self.prefix] = cached[self.index]
        return feature


TailInput = Constant | EqualRows | PerImage | Feature
"""One leaf of the arguments of a tail's module."""


@dataclass(frozen=True)
class _CachedLeaf:
    """Where a tensor to be cached is among the recorded inputs.

    call: the module and the index of its call.
    leaf: of the call's arguments.
    prefix: how many of its tokens to cache; None to cache the complete tensor.
    """

    call: Any
    leaf: int
    prefix: int | None


class TailInputs:
    """All inputs of a tail's modules, as constants and places among the cached tensors.

    Args:
        tail: of a teacher.
        run: runs the teacher on that many images of noise, which differ for each number.
        prefix: how many prefix tokens the tail reads of the feature that its first module is given.

    Raises:
        InputError: a module is given a tensor that is neither the same for all images nor one row
            for each image.
    """

    def __init__(self, tail: Tail, run: Callable[[int], object], prefix: int) -> None:
        self.calls: dict[Any, tuple[list[TailInput], TreeSpec]] = {}
        self.cached: list[_CachedLeaf] = []
        run(2)
        of_two_images = dict(tail.recorded.inputs)
        run(3)
        of_three_images = dict(tail.recorded.inputs)
        for call in tail.calls:
            key = call.module, call.call_index
            (two, spec), (three, _) = of_two_images[key], of_three_images[key]
            inputs: list[TailInput] = []
            for leaf, (a, b) in enumerate(zip(two, three, strict=True)):
                if leaf == call.input_leaf:
                    tokens = prefix if call is tail.calls[0] else 0
                    inputs.append(Feature(tuple(a.shape[1:]), tokens, len(self.cached)))
                    if tokens:
                        self.cached.append(_CachedLeaf(key, leaf, tokens))
                    continue
                inputs.append(_classify(a, b, len(self.cached), type(call.module).__name__))
                if isinstance(inputs[-1], PerImage):
                    self.cached.append(_CachedLeaf(key, leaf, None))
            self.calls[key] = inputs, spec

    def to_cache(self, recorded: RecordedInputs) -> list[Tensor]:
        """Return `CachedOutputs.tail_inputs` of the teacher's last pass."""
        tensors = [(recorded.inputs[c.call][0][c.leaf], c.prefix) for c in self.cached]
        return [t if prefix is None else t[:, :prefix].contiguous() for t, prefix in tensors]

    def from_cache(self, recorded: RecordedInputs, cached: list[Tensor], like: Tensor) -> None:
        """Restore the tail's recorded inputs as that pass left them, except what is never read.

        Args:
            recorded: the recorded inputs of the tail, which are replaced.
            cached: what `to_cache` returned.
            like: a tensor (N, ...) with one row for each image, on the device and in the precision
                to compute on.
        """
        recorded.inputs = {
            key: ([i.for_batch(cached, like, len(like)) for i in inputs], spec)
            for key, (inputs, spec) in self.calls.items()
        }


def _classify(two: Any, three: Any, index: int, module: str) -> TailInput:
    """Classify an input that was `two` for two images and `three` for three others.

    Args:
        two, three: the leaf in either pass.
        index: that it has among the cached tensors if it is each image's own.
        module: class of the module that it is given to, for the message.

    Raises:
        InputError: it cannot be cached image by image.
    """
    if not isinstance(two, Tensor):
        return Constant(two)
    if torch.equal(two, three):
        return Constant(two.clone())
    if len(two) != 2 or len(three) != 3 or two.shape[1:] != three.shape[1:]:
        raise InputError(
            f"its tail's {module} is given a tensor of {tuple(two.shape)} for 2 images and "
            f"{tuple(three.shape)} for 3, which cannot be cached image by image"
        )
    row = two[:1]
    if torch.equal(two, row.expand_as(two)) and torch.equal(three, row.expand_as(three)):
        return EqualRows(row.clone())
    return PerImage(index)
