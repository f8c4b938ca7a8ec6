"""What a network's modules do in one pass: which calls contain, follow and feed one another."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.hooks import RemovableHandle

from scalekd.errors import InputError
from scalekd.networks.layout import LayoutConversion, find_conversion

MapsFunction = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Runs a network once: images to its penultimate and final map, both (N, C, H, W)."""


MAX_PREFIX_IN_TRACED_OUTPUT = 64
"""Prefix tokens that are looked for."""

FeatureLocation = tuple[int, LayoutConversion]
"""Which leaf of an output is a feature, and in which layout."""


@dataclass
class ModuleCall:
    """A module's call in the watched pass: the module's `nth`.

    penultimate, final: where its output holds these maps, if it does.
    """

    module: nn.Module
    nth: int
    parent: "ModuleCall | None"
    children: list["ModuleCall"] = field(default_factory=list)
    penultimate: FeatureLocation | None = None
    final: FeatureLocation | None = None

    def depth(self) -> int:
        """How many calls contain it."""
        return 0 if self.parent is None else 1 + self.parent.depth()

    def holds_final(self) -> bool:
        """Whether a call within it gives the final map."""
        return any(c.final or c.holds_final() for c in self.children)


def trace_calls(
    model: nn.Module, run: Callable[[], object], penultimate: Tensor, final: Tensor
) -> list[ModuleCall]:
    """All calls while `model` is run once more on what gave these two maps, as they contain one
    another. No output is kept: all activations of a large teacher are many."""
    root = ModuleCall(model, 0, None)
    stack, counts = [root], dict[nn.Module, int]()

    def enter(module: nn.Module, inputs: Any) -> None:
        nth = counts[module] = counts.get(module, -1) + 1
        parent = stack[-1]
        call = ModuleCall(module, nth, None if parent is root else parent)
        parent.children.append(call)
        stack.append(call)

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        call, leaves = stack.pop(), tree_flatten(output)[0]
        call.penultimate, call.final = _reading(leaves, penultimate), _reading(leaves, final)

    hooks = [
        hook
        for module in model.modules()
        for hook in (module.register_forward_pre_hook(enter), module.register_forward_hook(leave))
    ]
    try:
        run()
    finally:
        _remove(hooks)
    return root.children


def _reading(leaves: list[Any], feature: Tensor) -> FeatureLocation | None:
    # Prefix tokens make an output larger than the map in it, but not much.
    most = feature.numel() + MAX_PREFIX_IN_TRACED_OUTPUT * feature.shape[0] * feature.shape[1]
    for index, leaf in enumerate(leaves):
        fits = isinstance(leaf, Tensor) and feature.numel() <= leaf.numel() <= most
        if fits and (layout := find_conversion(leaf, feature)):
            return index, layout
    return None


def find_cuts(calls: list[ModuleCall]) -> list[ModuleCall]:
    """The calls that gave the penultimate map, the outermost first, and the last of those."""
    found = [call for call in _all(calls) if call.penultimate]
    found.reverse()
    return sorted(found, key=ModuleCall.depth)


def _all(calls: list[ModuleCall]) -> Iterator[ModuleCall]:
    for call in calls:
        yield call
        yield from _all(call.children)


def calls_after(cut: ModuleCall, calls: list[ModuleCall]) -> list[ModuleCall]:
    """The calls that follow `cut` beside it, then beside the one that contains both, and so on."""
    siblings = cut.parent.children if cut.parent else calls
    later = siblings[[c is cut for c in siblings].index(True) + 1 :]
    return later + (calls_after(cut.parent, calls) if cut.parent else [])


def calls_until_final(calls: list[ModuleCall]) -> list[ModuleCall]:
    """Of the calls those to the first that gives the final map, looking into one that holds it."""
    for index, call in enumerate(calls):
        if call.final:
            return calls[: index + 1]
    for index, call in enumerate(calls):
        if call.holds_final():
            return calls[:index] + calls_until_final(call.children)
    raise InputError("its final feature is not the output of a module after the penultimate one")


@contextmanager
def recorded_outputs(calls: list[ModuleCall]) -> Iterator[list[list[Any]]]:
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
def perturbed_output(cut: ModuleCall, penultimate: Tensor) -> Iterator[Tensor]:
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
            if layout := find_conversion(penultimate, leaf):
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
