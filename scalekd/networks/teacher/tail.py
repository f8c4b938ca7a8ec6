"""The tail: all that a teacher runs after its penultimate feature, replayed on other tokens.

The tail is found by three passes over noise. The first gives the two maps. The second is traced:
which call of which module returned the penultimate map, and which calls follow until the final
map. In the third, the penultimate map is perturbed on its way, and the inputs of those calls are
recorded. The penultimate map of the first pass, replayed with all other inputs of the third, must
then end in the final map of the first pass: it does so only if nothing but the recorded calls
passes the feature on.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from scalekd.errors import InputError, first_line
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


Inputs = dict[tuple[nn.Module, int], tuple[list[Any], TreeSpec]]
"""Leaves and structure of the arguments of modules, by module and index of its call."""


@dataclass(frozen=True)
class TailCall:
    """One call of the tail.

    module, call_index: the module, and which of its calls in a pass this is, from 0.
    input_leaf: where the feature is among the leaves of the call's arguments.
    output_leaf: where the feature is among the leaves of what the call returns.
    conversion: to the layout of the input.
    """

    module: nn.Module
    call_index: int
    input_leaf: int
    output_leaf: int
    conversion: LayoutConversion


class RecordedInputs:
    """The inputs of some modules in the last pass, call by call.

    Attributes:
        inputs: of the calls.
    """

    def __init__(self, modules: list[nn.Module]) -> None:
        self.inputs: Inputs = {}
        self._counts: dict[nn.Module, int] = {}
        self._recording = False
        self._hooks = [m.register_forward_pre_hook(self._record, with_kwargs=True) for m in modules]

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the pass that runs inside, in place of the last one."""
        self.inputs.clear()
        self._counts.clear()
        self._recording = True
        try:
            yield
        finally:
            self._recording = False

    def remove_hooks(self) -> None:
        """Remove the hooks from the modules; nothing is recorded any more."""
        for hook in self._hooks:
            hook.remove()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "inputs": {}, "_counts": {}}  # a copy does not share a pass's tensors

    def _record(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._recording:
            call_index = self._counts[module] = self._counts.get(module, -1) + 1
            self.inputs[module, call_index] = tree_flatten((args, kwargs))


@dataclass(frozen=True)
class Tail:
    """`tail(tokens)`: the teacher's last stage on tokens (N, L, C) of its penultimate grid.

    It is called after the teacher's pass over N images, which runs `with
    tail.recorded.recording()`.

    calls: the calls that it replays.
    to_tokens: from the output of the last call to tokens.
    recorded: the inputs of these calls besides the feature.
    difference: the largest difference between the replayed and the teacher's own final map,
        relative to the largest value of the latter.
    """

    calls: list[TailCall]
    to_tokens: ToTokens
    recorded: RecordedInputs
    difference: float = 0.0

    @property
    def first_input(self) -> Tensor:
        """The feature that the first call was given in the teacher's last pass."""
        call = self.calls[0]
        leaves, _ = self.recorded.inputs[call.module, call.call_index]
        feature: Tensor = leaves[call.input_leaf]
        return feature

    def with_modules(self, modules: list[nn.Module]) -> "Tail":
        """Return a tail that calls other modules, one for each call."""
        pairs = zip(self.calls, modules, strict=True)
        calls = [replace(call, module=module) for call, module in pairs]
        recorded = RecordedInputs(list(dict.fromkeys(modules)))
        return Tail(calls, self.to_tokens, recorded, self.difference)

    def __call__(
        self, tokens: Tensor, own_prefix: bool = True, inputs: Inputs | None = None
    ) -> Tensor:
        """Run the tail, with gradients to the tokens.

        Args:
            tokens: (N, L, C).
            own_prefix: whether the modules see the teacher's own prefix tokens, or none.
            inputs: the other inputs, as a pass recorded them; by default those of the last one.

        Returns:
            Tokens (N, prefix + L', C') on the final grid.
        """
        x = tokens.clone()  # its first module may work in place
        inputs = self.recorded.inputs if inputs is None else inputs
        for call in self.calls:
            leaves, spec = inputs[call.module, call.call_index]
            like = leaves[call.input_leaf]
            if not own_prefix and like.dim() == 3:
                like = like[:, -x.shape[1] :]
            before, after = leaves[: call.input_leaf], leaves[call.input_leaf + 1 :]
            given = [*before, call.conversion(x, like), *after]
            args, kwargs = tree_unflatten(given, spec)
            x = tree_flatten(call.module(*args, **kwargs))[0][call.output_leaf]
        return self.to_tokens(x)


@torch.no_grad()
def find_tail(model: nn.Module, maps: MapsFunction, images: Tensor) -> Tail:
    """Find and verify the tail of `model`.

    Args:
        model: the teacher, in eval mode.
        maps: runs the model once; the final map as the last module returns it.
        images: noise (N, channels, H, W) to run it on, N at least two.

    Raises:
        InputError: no chain of calls leads from the penultimate to the final map, or the replay
            differs from the teacher by more than `TOLERANCE`.
    """
    penultimate, final = maps(images)
    if not (penultimate.isfinite().all() and final.isfinite().all()):
        raise InputError("its features are nan or inf on noise: are its weights intact?")
    if not (penultimate.any() and final.any()):
        raise InputError("its features are zero on noise: are its weights intact?")
    calls = trace_calls(model, lambda: maps(images), penultimate, final)
    cuts = find_cuts(calls)
    if not cuts:
        shape = tuple(penultimate.shape[1:])
        raise InputError(f"its penultimate feature {shape} is not the output of a module")
    refusals = []
    for cut in cuts:
        recorded = RecordedInputs([])
        try:
            followers = calls_until_final(calls_after(cut, calls))
            recorded = RecordedInputs(list(dict.fromkeys(call.module for call in followers)))
            with (
                recorded_outputs(followers) as outputs,
                perturbed_output(cut, penultimate) as perturbed,
                recorded.recording(),
            ):
                maps(images)
            tail = Tail(*_find_chain(followers, recorded, [[perturbed], *outputs]), recorded)
            return replace(tail, difference=_verify(tail, penultimate, final))
        except Exception as error:  # a module can fail in any way on other inputs
            recorded.remove_hooks()
            refusals.append(first_line(error))
    raise InputError(refusals[0])


def _find_chain(
    followers: list[ModuleCall], recorded: RecordedInputs, outputs: list[list[Any]]
) -> tuple[list[TailCall], ToTokens]:
    """Return the followers that pass the feature on, and the conversion of the last to tokens.

    The search runs backwards, from each call to the nearest one before whose output it was given.
    Calls that only feed others (tables of positions, blocks of class tokens) are not in the chain.

    Args:
        followers: the calls after the cut; the last one returns the final map.
        recorded: their inputs in the perturbed pass.
        outputs: leaves of the perturbed map, then of what each follower returned.
    """
    final = followers[-1].final
    assert final is not None
    dead_ends = set[int]()

    def chains(position: int, output_leaf: int) -> Iterator[list[TailCall]]:
        """Yield chains from the cut to the follower before `position`, read at `output_leaf`."""
        if position == 0:
            yield []
        if position == 0 or position in dead_ends:
            return
        call = followers[position - 1]
        inputs, _ = recorded.inputs[call.module, call.call_index]
        for before in range(position - 1, -1, -1):
            for from_leaf, to_leaf, conversion in _links(outputs[before], inputs):
                if before == 0:  # the replay starts from tokens, whatever the feature was
                    conversion = replace(conversion, to_tokens=tokens_unchanged)
                link = TailCall(call.module, call.call_index, to_leaf, output_leaf, conversion)
                yield from ([*chain, link] for chain in chains(before, from_leaf))
        # Only the first chain is used, so a search that returns here has found none.
        dead_ends.add(position)

    chain = next(chains(len(followers), final[0]), None)
    if chain is None:
        names = [type(call.module).__name__ for call in followers]
        raise InputError(
            f"no chain of modules, each given what one before it returned, leads to {names[-1]}: "
            f"code between {_shortened(names)} changes the feature"
        )
    return chain, final[1].to_tokens


def _shortened(names: list[str]) -> str:
    return ", ".join(names if len(names) < 5 else [*names[:2], "...", names[-1]])


def _links(outputs: list[Any], inputs: list[Any]) -> Iterator[tuple[int, int, LayoutConversion]]:
    """Yield which leaf of `outputs` is which leaf of `inputs`, and in which conversion."""
    for to_leaf, like in enumerate(inputs):
        for from_leaf, x in enumerate(outputs):
            if conversion := find_conversion(x, like):
                yield from_leaf, to_leaf, conversion


def _verify(tail: Tail, penultimate: Tensor, final: Tensor) -> float:
    """Return the relative difference between the replayed and the teacher's own final map.

    Raises:
        InputError: it is larger than `TOLERANCE`, or NaN.
    """
    expected = tokens_from_map(final)
    replayed = tail(tokens_from_map(penultimate))[:, -expected.shape[1] :]
    difference = ((replayed - expected).abs().max() / expected.abs().max()).item()
    if not difference <= TOLERANCE:
        raise InputError(
            "its last stage, run on its own penultimate feature, differs from its output by "
            f"{difference:.1e} of the largest value (allowed: {TOLERANCE:.0e})"
        )
    return difference
