"""The tail: all that a teacher runs after its penultimate feature, replayed on others' tokens.

It is found by three passes over noise. The first gives the two maps. The second is watched: which
call of which module gave the penultimate map, and which calls follow until the final map. In the
third the penultimate map is disturbed on its way, and what those calls are given is recorded. The
first pass's penultimate map, replayed with all else from the third, must then end in the first
pass's final map: it does only where nothing but the recorded calls carries the feature on.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from scalekd.errors import InputError
from scalekd.networks.layout import (
    LayoutConversion,
    ToTokens,
    find_conversion,
    tokens_from_map,
    tokens_unchanged,
)
from scalekd.networks.teacher.call_trace import (
    MapsFunction,
    ModuleCall,
    calls_after,
    calls_until_final,
    find_cuts,
    perturbed_output,
    recorded_outputs,
    trace_calls,
)

TOLERANCE = 1e-4
"""Largest difference between replay and teacher, relative to the largest value of its output."""


@dataclass(frozen=True)
class TailCall:
    """One call of the tail.

    nth: which of the module's calls in a pass.
    slot, output: where the feature is among the leaves of its arguments, and of what it returns.
    layout: of the former.
    """

    module: nn.Module
    nth: int
    slot: int
    output: int
    layout: LayoutConversion


class RecordedInputs:
    """What some modules were given in the last pass, call by call."""

    def __init__(self, modules: list[nn.Module]) -> None:
        self.given: dict[tuple[nn.Module, int], tuple[list[Any], TreeSpec]] = {}
        self._counts: dict[nn.Module, int] = {}
        self._active = False
        self._hooks = [m.register_forward_pre_hook(self._keep, with_kwargs=True) for m in modules]

    @contextmanager
    def active(self) -> Iterator[None]:
        """Around the pass."""
        self.given.clear()
        self._counts.clear()
        self._active = True
        try:
            yield
        finally:
            self._active = False

    def remove(self) -> None:
        """Take the hooks away."""
        for hook in self._hooks:
            hook.remove()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "given": {}, "_counts": {}}  # a pass's tensors are no one else's

    def _keep(self, module: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        if self._active:
            nth = self._counts[module] = self._counts.get(module, -1) + 1
            self.given[module, nth] = tree_flatten((args, keywords))


@dataclass(frozen=True)
class Tail:
    """`tail(tokens)`: the teacher's last stage on tokens (N, L, C) of its penultimate grid.

    To be called after the teacher's pass, `with tail.record.active()`, over as many images.

    steps: the calls that it repeats.
    read: tokens of what the last of them returns.
    record: of what else they are given.
    difference: largest one between the replayed and the teacher's own final map, relative to the
        largest value of that.
    """

    steps: list[TailCall]
    read: ToTokens
    record: RecordedInputs
    difference: float = 0.0

    @property
    def first(self) -> Tensor:
        """The feature that its first module was given in the teacher's last pass."""
        step = self.steps[0]
        first: Tensor = self.record.given[step.module, step.nth][0][step.slot]
        return first

    def of(self, modules: list[nn.Module]) -> "Tail":
        """The same calls of other modules, one for each step."""
        pairs = zip(self.steps, modules, strict=True)
        steps = [replace(step, module=module) for step, module in pairs]
        return Tail(steps, self.read, RecordedInputs(list(dict.fromkeys(modules))), self.difference)

    def __call__(self, tokens: Tensor, own_prefix: bool = True) -> Tensor:
        """Tokens (N, L, C) -> (N, prefix + L', C'), with gradients to the tokens.

        Without `own_prefix` no module is given the teacher's prefix tokens.
        """
        x = tokens.clone()  # its first module may work in place
        for step in self.steps:
            leaves, spec = self.record.given[step.module, step.nth]
            like = leaves[step.slot]
            if not own_prefix and like.dim() == 3:
                like = like[:, -x.shape[1] :]
            there = [*leaves[: step.slot], step.layout(x, like), *leaves[step.slot + 1 :]]
            args, keywords = tree_unflatten(there, spec)
            x = tree_flatten(step.module(*args, **keywords))[0][step.output]
        return self.read(x)


@torch.no_grad()
def find_tail(model: nn.Module, maps: MapsFunction, images: Tensor) -> Tail:
    """The tail of `model`, verified.

    Args:
        model: the teacher, in eval mode.
        maps: runs it once; the final map as the last module leaves it.
        images: noise to watch it on, at least two.

    Raises:
        InputError: no chain of calls leads from the penultimate to the final map, or its replay
            differs from the teacher by more than `TOLERANCE`.
    """
    penultimate, final = maps(images)
    if not (penultimate.isfinite().all() and final.isfinite().all()):
        raise InputError("its features are nan or inf on noise: are its weights whole?")
    if not (penultimate.any() and final.any()):
        raise InputError("its features are zero on noise: are its weights whole?")
    calls = trace_calls(model, lambda: maps(images), penultimate, final)
    starts = find_cuts(calls)
    if not starts:
        shape = tuple(penultimate.shape[1:])
        raise InputError(f"its penultimate feature {shape} is not the output of a module")
    refusals = []
    for cut in starts:
        record = RecordedInputs([])
        try:
            followers = calls_until_final(calls_after(cut, calls))
            record = RecordedInputs(list(dict.fromkeys(call.module for call in followers)))
            kept, changed = recorded_outputs(followers), perturbed_output(cut, penultimate)
            with kept as returned, changed as start, record.active():
                maps(images)
            steps, read = _chain(followers, record, [[start], *returned])
            tail = Tail(steps, read, record)
            return replace(tail, difference=_difference(tail, penultimate, final))
        except Exception as error:  # whatever a module makes of what it is given
            record.remove()
            refusals.append((str(error) or type(error).__name__).splitlines()[0])
    raise InputError(refusals[0])


def _chain(
    followers: list[ModuleCall], record: RecordedInputs, ends: list[list[Any]]
) -> tuple[list[TailCall], ToTokens]:
    """The followers that carry the feature on, and how to read tokens from their end.

    Backwards, from each call to the nearest one before whose output it was given: calls that only
    feed others (tables of positions, blocks of class tokens) stay outside of the chain.
    """
    reading = followers[-1].final
    assert reading is not None

    dead = set[int]()

    def paths(at: int, output: int) -> Iterator[list[TailCall]]:
        """Chains from the start to the call before number `at`, the last one read at `output`."""
        if at == 0:
            yield []
        if at == 0 or at in dead:
            return
        call = followers[at - 1]
        given = record.given[call.module, call.nth][0]
        for before in range(at - 1, -1, -1):
            for end, slot, layout in _links(ends[before], given):
                if before == 0:  # the replay starts from tokens, whatever the feature was
                    layout = replace(layout, read=tokens_unchanged)
                step = TailCall(call.module, call.nth, slot, output, layout)
                yield from ([*path, step] for path in paths(before, end))
        dead.add(at)  # only the first chain is taken: who comes back here found none

    steps = next(paths(len(followers), reading[0]), None)
    if steps is None:
        names = [type(call.module).__name__ for call in followers]
        raise InputError(
            f"no chain of modules, each given what one before it returned, leads to {names[-1]}: "
            f"code between {_few(names)} changes the feature"
        )
    return steps, reading[1].read


def _few(names: list[str]) -> str:
    return ", ".join(names if len(names) < 5 else [*names[:2], "...", names[-1]])


def _links(ends: list[Any], given: list[Any]) -> Iterator[tuple[int, int, LayoutConversion]]:
    """Where a value of `ends` is among those `given`: its index there, here, and the layout."""
    for slot, like in enumerate(given):
        for output, x in enumerate(ends):
            if layout := find_conversion(x, like):
                yield output, slot, layout


def _difference(tail: Tail, penultimate: Tensor, final: Tensor) -> float:
    own = tokens_from_map(final)
    replayed = tail(tokens_from_map(penultimate))[:, -own.shape[1] :]
    difference = ((replayed - own).abs().max() / own.abs().max()).item()
    if not difference <= TOLERANCE:
        raise InputError(
            "its last stage, run on its own penultimate feature, differs from its output by "
            f"{difference:.1e} of the largest value (allowed: {TOLERANCE:.0e})"
        )
    return difference
