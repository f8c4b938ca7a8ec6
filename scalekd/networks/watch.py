"""What a network's modules do in one pass: which calls contain, follow and feed one another."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.hooks import RemovableHandle

from scalekd.errors import InputError
from scalekd.features import MapShape
from scalekd.networks.layout import Layout, layout_between

Maps = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Runs a network once: images to its penultimate and final map, both (N, C, H, W)."""


@dataclass
class Call:
    """A module's call in the watched pass: the module's `nth`."""

    module: nn.Module
    nth: int
    parent: "Call | None"
    children: list["Call"] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)

    def depth(self) -> int:
        """How many calls contain it."""
        return 0 if self.parent is None else 1 + self.parent.depth()

    def reading(self, feature: Tensor) -> tuple[int, Layout] | None:
        """Which leaf of the output is the `feature` map, and in which layout."""
        for index, leaf in enumerate(self.outputs):
            if layout := layout_between(leaf, feature):
                return index, layout
        return None

    def holds(self, feature: Tensor) -> bool:
        """Whether a call within it gives the `feature` map."""
        return any(c.reading(feature) or c.holds(feature) for c in self.children)


@torch.no_grad()
def watch(
    model: nn.Module, maps: Maps, images: Tensor, shapes: tuple[MapShape, MapShape]
) -> tuple[list[Call], Tensor, Tensor]:
    """All calls of one pass, as they contain one another, and its two maps."""
    sizes = [len(images) * math.prod(shape) for shape in shapes]
    root = Call(model, 0, None)
    stack, counts = [root], dict[nn.Module, int]()

    def enter(module: nn.Module, inputs: Any) -> None:
        nth = counts[module] = counts.get(module, -1) + 1
        parent = stack[-1]
        call = Call(module, nth, None if parent is root else parent)
        parent.children.append(call)
        stack.append(call)

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        # All activations of a large teacher are many: those too large or small are let go.
        stack.pop().outputs = [
            leaf
            if isinstance(leaf, Tensor) and any(n <= leaf.numel() < 2 * n for n in sizes)
            else None
            for leaf in tree_flatten(output)[0]
        ]

    hooks = [
        hook
        for module in model.modules()
        for hook in (module.register_forward_pre_hook(enter), module.register_forward_hook(leave))
    ]
    try:
        return root.children, *maps(images)
    finally:
        _remove(hooks)


def cuts(calls: list[Call], penultimate: Tensor) -> list[Call]:
    """The calls that gave the penultimate map, the outermost first, and the last of those."""
    found = [call for call in _all(calls) if call.reading(penultimate)]
    if not found:
        shape = tuple(penultimate.shape[1:])
        raise InputError(f"its penultimate feature {shape} is not the output of a module")
    found.reverse()
    return sorted(found, key=Call.depth)


def _all(calls: list[Call]) -> Iterator[Call]:
    for call in calls:
        yield call
        yield from _all(call.children)


def after(cut: Call, calls: list[Call]) -> list[Call]:
    """The calls that follow `cut` beside it, then beside the one that contains both, and so on."""
    siblings = cut.parent.children if cut.parent else calls
    later = siblings[[c is cut for c in siblings].index(True) + 1 :]
    return later + (after(cut.parent, calls) if cut.parent else [])


def until(calls: list[Call], final: Tensor) -> list[Call]:
    """Of the calls those to the first that gives the final map, looking into one that holds it."""
    for index, call in enumerate(calls):
        if call.reading(final):
            return calls[: index + 1]
    for index, call in enumerate(calls):
        if call.holds(final):
            return calls[:index] + until(call.children, final)
    raise InputError("its final feature is not the output of a module after the penultimate one")


@contextmanager
def outputs_kept(calls: list[Call]) -> Iterator[list[list[Any]]]:
    """What each of these calls returns in a pass meanwhile, leaf by leaf."""
    kept: list[list[Any]] = [[] for _ in calls]
    place = {(call.module, call.nth): index for index, call in enumerate(calls)}
    counts: dict[nn.Module, int] = {}

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        nth = counts[module] = counts.get(module, -1) + 1
        if (module, nth) in place:
            kept[place[module, nth]].extend(tree_flatten(output)[0])

    hooks = [m.register_forward_hook(leave) for m in dict.fromkeys(c.module for c in calls)]
    try:
        yield kept
    finally:
        _remove(hooks)


@contextmanager
def disturbed(cut: Call, penultimate: Tensor) -> Iterator[Tensor]:
    """Noise on what `cut` returns of the penultimate map, and on that alone; gives that map."""
    noise = torch.randn(penultimate.shape, generator=torch.Generator().manual_seed(1))
    other = penultimate + penultimate.std() * noise.to(penultimate)
    count = -1

    def leave(module: nn.Module, inputs: Any, output: Any) -> Any:
        nonlocal count
        count += 1
        if count != cut.nth:
            return output
        leaves, spec = tree_flatten(output)
        for index, leaf in enumerate(leaves):
            if layout := layout_between(penultimate, leaf):
                leaves[index] = layout(other, leaf)
        return tree_unflatten(leaves, spec)

    hook = cut.module.register_forward_hook(leave)
    try:
        yield other
    finally:
        hook.remove()


def _remove(hooks: list[RemovableHandle]) -> None:
    for hook in hooks:
        hook.remove()
