"""The call trace: which modules a model calls in one pass, nested as the calls are."""

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
"""Runs a model once: from images to its penultimate and final map, both (N, C, H, W)."""

MAX_PREFIX_IN_TRACED_OUTPUT = 64
"""Most prefix tokens that a module's output may have to be compared with a map."""

FeatureLocation = tuple[int, LayoutConversion]
"""Which leaf of an output is a feature, and the conversion from it to the map."""


@dataclass
class ModuleCall:
    """One call of a module in the traced pass.

    module, call_index: the module, and which of its calls in the pass this is, from 0.
    parent: the call that contains this one; None if none does.
    children: the calls that this one contains, in order.
    penultimate, final: where the call's output holds these maps; None if it does not.
    """

    module: nn.Module
    call_index: int
    parent: "ModuleCall | None"
    children: list["ModuleCall"] = field(default_factory=list)
    penultimate: FeatureLocation | None = None
    final: FeatureLocation | None = None

    def depth(self) -> int:
        """Return how many calls contain this one."""
        return 0 if self.parent is None else 1 + self.parent.depth()

    def contains_final(self) -> bool:
        """Return whether a call within this one returns the final map."""
        return any(c.final or c.contains_final() for c in self.children)


def trace_calls(
    model: nn.Module, run: Callable[[], object], penultimate: Tensor, final: Tensor
) -> list[ModuleCall]:
    """Trace one pass of `model`.

    No output is stored, because the activations of a large teacher need much memory.

    Args:
        model: whose modules' calls are traced.
        run: runs the model on the images that gave the two maps.
        penultimate, final: the maps (N, C, H, W) to look for in the outputs.

    Returns:
        The outermost calls, in order.
    """
    root = ModuleCall(model, 0, None)
    stack, counts = [root], dict[nn.Module, int]()

    def enter(module: nn.Module, inputs: Any) -> None:
        call_index = counts[module] = counts.get(module, -1) + 1
        parent = stack[-1]
        call = ModuleCall(module, call_index, None if parent is root else parent)
        parent.children.append(call)
        stack.append(call)

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        call, leaves = stack.pop(), tree_flatten(output)[0]
        call.penultimate, call.final = _locate(penultimate, leaves), _locate(final, leaves)

    handles = [
        handle
        for module in model.modules()
        for handle in (module.register_forward_pre_hook(enter), module.register_forward_hook(leave))
    ]
    try:
        run()
    finally:
        _remove(handles)
    return root.children


def _locate(feature: Tensor, leaves: list[Any]) -> FeatureLocation | None:
    """Return which leaf of an output is `feature` in some layout, perhaps with prefix tokens."""
    prefix_values = MAX_PREFIX_IN_TRACED_OUTPUT * feature.shape[0] * feature.shape[1]
    most = feature.numel() + prefix_values
    for index, leaf in enumerate(leaves):
        fits = isinstance(leaf, Tensor) and feature.numel() <= leaf.numel() <= most
        if fits and (conversion := find_conversion(leaf, feature)):
            return index, conversion
    return None


def find_cuts(calls: list[ModuleCall]) -> list[ModuleCall]:
    """Return the calls that return the penultimate map, behind which a tail may begin.

    The outermost come first; of equally deep ones, the last.
    """
    cuts = [call for call in _all_calls(calls) if call.penultimate]
    cuts.reverse()
    return sorted(cuts, key=ModuleCall.depth)


def _all_calls(calls: list[ModuleCall]) -> Iterator[ModuleCall]:
    for call in calls:
        yield call
        yield from _all_calls(call.children)


def calls_after(cut: ModuleCall, calls: list[ModuleCall]) -> list[ModuleCall]:
    """Return the calls after `cut`: its later siblings, then its parent's, and so on."""
    siblings = cut.parent.children if cut.parent else calls
    later = siblings[[c is cut for c in siblings].index(True) + 1 :]
    return later + (calls_after(cut.parent, calls) if cut.parent else [])


def calls_until_final(calls: list[ModuleCall]) -> list[ModuleCall]:
    """Return `calls` up to the first that returns the final map.

    If only a call within one of them returns it, that one is replaced by the calls within it.

    Raises:
        InputError: no call returns the final map.
    """
    for index, call in enumerate(calls):
        if call.final:
            return calls[: index + 1]
    for index, call in enumerate(calls):
        if call.contains_final():
            return calls[:index] + calls_until_final(call.children)
    raise InputError("its final feature is not the output of a module after the penultimate one")


@contextmanager
def recorded_outputs(calls: list[ModuleCall]) -> Iterator[list[list[Any]]]:
    """Record the leaves of what each of these calls returns in a pass."""
    outputs: list[list[Any]] = [[] for _ in calls]
    positions = {(call.module, call.call_index): index for index, call in enumerate(calls)}
    counts: dict[nn.Module, int] = {}

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        call_index = counts[module] = counts.get(module, -1) + 1
        if (module, call_index) in positions:
            outputs[positions[module, call_index]].extend(tree_flatten(output)[0])

    handles = [m.register_forward_hook(leave) for m in dict.fromkeys(c.module for c in calls)]
    try:
        yield outputs
    finally:
        _remove(handles)


@contextmanager
def perturbed_output(cut: ModuleCall, penultimate: Tensor) -> Iterator[Tensor]:
    """Add noise to the penultimate map in the output of `cut`, and to nothing else.

    Yields the perturbed map (N, C, H, W).
    """
    noise = torch.randn(penultimate.shape, generator=torch.Generator().manual_seed(1))
    perturbed = penultimate + penultimate.std() * noise.to(penultimate)
    count = -1

    def leave(module: nn.Module, inputs: Any, output: Any) -> Any:
        nonlocal count
        count += 1
        if count != cut.call_index:
            return output
        leaves, spec = tree_flatten(output)
        for index, leaf in enumerate(leaves):
            if conversion := find_conversion(penultimate, leaf):
                leaves[index] = conversion(perturbed, leaf)
        return tree_unflatten(leaves, spec)

    handle = cut.module.register_forward_hook(leave)
    try:
        yield perturbed
    finally:
        handle.remove()


def _remove(handles: list[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()
