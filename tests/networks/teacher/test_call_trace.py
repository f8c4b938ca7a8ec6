"""The call trace of one pass: how calls are nested, which follow, and what they return."""

import weakref
from typing import Any

import pytest
import torch
from helpers.refusals import refused
from helpers.small_models import images, tokens
from helpers.teachers import count_hooks
from torch import Tensor, nn

from scalekd.networks.teacher.call_trace import (
    ModuleCall,
    calls_after,
    calls_until_final,
    find_cuts,
    perturbed_output,
    recorded_outputs,
    trace_calls,
)


class Block(nn.Module):
    """x + conv(x)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.conv(x)
        return y


class Encoder(nn.Module):
    """Its stages are plain containers, one of them called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.first = nn.Sequential(Block(), nn.Identity())
        self.shared = nn.Sequential(Block())
        self.last = nn.Sequential(Block(), nn.GELU(), nn.Flatten())

    def forward(self, x: Tensor) -> Any:
        x = self.first(self.stem(x))
        x = self.shared(self.shared(x))
        return {"flat": self.last(x), "mean": x.mean(1)}


class Wrapper(nn.Module):
    """Not called itself: `maps` runs its encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()


class TracedPass:
    """A pass of a `Wrapper`, and the outputs of its modules taken by hand."""

    def __init__(self, penultimate: str, final: str, nth: tuple[int, int] = (0, 0)) -> None:
        torch.manual_seed(0)
        self.model = Wrapper().eval()
        self.names = {module: name for name, module in self.model.named_modules()}
        self.places = [(penultimate, nth[0]), (final, nth[1])]
        self.penultimate, self.final = self.maps(images())
        self.calls = self.trace(self.penultimate, self.final)

    def trace(self, penultimate: Tensor, final: Tensor, channels: int = 3) -> list[ModuleCall]:
        x = images(channels=channels)
        return trace_calls(self.model, lambda: self.maps(x), penultimate, final)

    def maps(self, x: Tensor) -> tuple[Tensor, Tensor]:
        seen: dict[str, list[Tensor]] = {}
        handles = [
            self.model.get_submodule(name).register_forward_hook(
                lambda m, i, o, name=name: seen.setdefault(name, []).append(o)
            )
            for name in dict.fromkeys(name for name, _ in self.places)
        ]
        try:
            self.model.encoder(x)
        finally:
            for handle in handles:
                handle.remove()
        penultimate, final = (seen[name][nth] for name, nth in self.places)
        return penultimate, final

    def names_of(self, calls: list[ModuleCall]) -> list[str]:
        return [f"{self.names[call.module]}#{call.call_index}" for call in calls]

    def tree(self, calls: list[ModuleCall]) -> list[Any]:
        said = zip(self.names_of(calls), (self.tree(call.children) for call in calls), strict=True)
        return [(name, children) if children else name for name, children in said]

    def tail(self) -> list[str]:
        """The calls between the outermost cut and the final map."""
        return self.names_of(calls_until_final(calls_after(find_cuts(self.calls)[0], self.calls)))


def test_traced_calls_form_a_tree() -> None:
    traced = TracedPass("encoder.first", "encoder.shared")
    block = [("encoder.shared.0#0", ["encoder.shared.0.conv#0"])]
    again = [("encoder.shared.0#1", ["encoder.shared.0.conv#1"])]
    first = [("encoder.first.0#0", ["encoder.first.0.conv#0"]), "encoder.first.1#0"]
    last = [("encoder.last.0#0", ["encoder.last.0.conv#0"]), "encoder.last.1#0", "encoder.last.2#0"]
    inside = [
        "encoder.stem#0",
        ("encoder.first#0", first),
        ("encoder.shared#0", block),
        ("encoder.shared#1", again),
        ("encoder.last#0", last),
    ]
    assert traced.tree(traced.calls) == [("encoder#0", inside)]


def test_a_traced_call_has_its_parent_and_depth() -> None:
    def check(calls: list[ModuleCall], parent: ModuleCall | None, depth: int) -> int:
        for call in calls:
            assert call.parent is parent
            assert call.depth() == depth
        return len(calls) + sum(check(c.children, c, depth + 1) for c in calls)

    assert check(TracedPass("encoder.first", "encoder.last.1").calls, None, 0) == 17


def test_cuts_are_sorted_from_the_outermost_and_the_last_call() -> None:
    traced = TracedPass("encoder.first", "encoder.last.1")
    names = ["encoder.first#0", "encoder.first.1#0", "encoder.first.0#0"]
    assert traced.names_of(find_cuts(traced.calls)) == names


@pytest.mark.parametrize(
    ("cut", "following"),
    [
        ("encoder", []),
        ("encoder.last", []),
        ("encoder.last.1", ["encoder.last.2#0"]),
        ("encoder.first", ["encoder.shared#0", "encoder.shared#1", "encoder.last#0"]),
        (
            "encoder.first.0.conv",
            ["encoder.first.1#0", "encoder.shared#0", "encoder.shared#1", "encoder.last#0"],
        ),
    ],
)
def test_calls_after_a_cut_are_its_siblings_and_those_of_its_parents(
    cut: str, following: list[str]
) -> None:
    traced = TracedPass("encoder.first", "encoder.last.1")
    module = traced.model.get_submodule(cut)
    assert (
        traced.names_of(calls_after(_first_call(traced.calls, module), traced.calls)) == following
    )


def _first_call(calls: list[ModuleCall], module: nn.Module) -> ModuleCall:
    def search(calls: list[ModuleCall]) -> ModuleCall | None:
        for call in calls:
            if call.module is module:
                return call
            if found := search(call.children):
                return found
        return None

    found = search(calls)
    assert found is not None
    return found


def test_the_second_call_of_a_shared_module_follows_its_first() -> None:
    traced = TracedPass("encoder.shared", "encoder.last.1")
    call = _first_call(traced.calls, traced.model.encoder.shared)
    assert traced.names_of(calls_after(call, traced.calls)) == [
        "encoder.shared#1",
        "encoder.last#0",
    ]


@pytest.mark.parametrize(
    ("penultimate", "final", "nth", "tail"),
    [
        ("encoder.stem", "encoder.first", (0, 0), ["encoder.first#0"]),
        # In the last of two calls, and from one to the other.
        ("encoder.first", "encoder.shared", (0, 1), ["encoder.shared#0", "encoder.shared#1"]),
        ("encoder.first", "encoder.shared", (0, 0), ["encoder.shared#0"]),
        ("encoder.shared", "encoder.shared", (0, 1), ["encoder.shared#1"]),
        # The last container goes on behind the final map.
        ("encoder.shared", "encoder.last.0", (1, 0), ["encoder.last.0#0"]),
        ("encoder.shared", "encoder.last.1", (1, 0), ["encoder.last.0#0", "encoder.last.1#0"]),
        # Out of one container, past others, into another.
        (
            "encoder.first.0.conv",
            "encoder.last.0",
            (0, 0),
            ["encoder.first.1#0", "encoder.shared#0", "encoder.shared#1", "encoder.last.0#0"],
        ),
        # Inside of one container.
        ("encoder.last.0", "encoder.last.1", (0, 0), ["encoder.last.1#0"]),
    ],
)
def test_the_calls_between_the_penultimate_and_the_final_map_are_found(
    penultimate: str, final: str, nth: tuple[int, int], tail: list[str]
) -> None:
    assert TracedPass(penultimate, final, nth).tail() == tail


def test_a_map_that_no_call_returns_has_no_cuts_and_no_end() -> None:
    traced = TracedPass("encoder.first", "encoder.last.1")
    assert find_cuts(traced.trace(traced.penultimate + 1, traced.final)) == []
    # The other is there, but not after itself.
    for final in (traced.final + 1, traced.penultimate):
        calls = traced.trace(traced.penultimate, final)
        with refused("final feature is not the output of a module after the penultimate one"):
            calls_until_final(calls_after(find_cuts(calls)[0], calls))


def test_tracing_stores_no_output() -> None:
    traced = TracedPass("encoder.first", "encoder.last.1")
    outputs: list[weakref.ref[Tensor]] = []
    hook = traced.model.encoder.last[1].register_forward_hook(
        lambda m, i, o: outputs.append(weakref.ref(o))
    )
    calls = traced.trace(traced.penultimate, traced.final)
    hook.remove()
    assert calls
    assert [output() for output in outputs] == [None]


def test_tracing_changes_nothing_and_leaves_no_hooks() -> None:
    traced = TracedPass("encoder.first", "encoder.last.1")
    again = traced.maps(images())
    assert torch.equal(traced.penultimate, again[0])
    assert torch.equal(traced.final, again[1])
    assert count_hooks(traced.model) == 0


def test_a_traced_pass_that_fails_leaves_no_hooks() -> None:
    traced = TracedPass("encoder.first", "encoder.last.1")
    call = _first_call(traced.calls, traced.model.encoder.shared)
    with pytest.raises(RuntimeError):
        traced.trace(traced.penultimate, traced.final, channels=2)
    with (
        pytest.raises(RuntimeError),
        recorded_outputs([call]),
        perturbed_output(call, traced.penultimate),
    ):
        traced.maps(images(channels=2))
    assert count_hooks(traced.model) == 0


def test_outputs_are_recorded_by_call_and_leaf() -> None:
    traced = TracedPass("encoder.shared", "encoder.shared", (0, 1))
    encoder = _first_call(traced.calls, traced.model.encoder)
    first = _first_call(traced.calls, traced.model.encoder.shared)
    second = calls_after(first, traced.calls)[0]
    with recorded_outputs([second, first, encoder]) as kept:
        maps = traced.maps(images())
        flat = traced.model.encoder.last(maps[1])
    assert torch.equal(kept[0][0], maps[1])
    assert torch.equal(kept[1][0], maps[0])
    assert torch.equal(kept[2][0], flat)
    assert torch.equal(kept[2][1], maps[1].mean(1))
    assert [len(leaves) for leaves in kept] == [1, 1, 2]
    assert count_hooks(traced.model) == 0


@pytest.mark.parametrize("nth", [0, 1])
def test_only_one_call_is_perturbed(nth: int) -> None:
    traced = TracedPass("encoder.shared", "encoder.shared", (0, 1))
    encoder = traced.model.encoder
    calls = [_first_call(traced.calls, encoder.shared)]
    calls.append(calls_after(calls[0], traced.calls)[0])
    given = (traced.penultimate, traced.final)[nth]
    with perturbed_output(calls[nth], given) as other:
        first, second = traced.maps(images())
    assert not torch.isclose(other, given, atol=1e-3).any(0).all()
    assert torch.equal((first, second)[nth], other)
    if nth == 1:
        assert torch.equal(first, traced.penultimate)
    else:
        assert torch.equal(second, encoder.shared(other))
    assert torch.equal(traced.maps(images())[0], traced.penultimate)


class Several(nn.Module):
    """A number, the feature as tokens behind a class token, and something else."""

    def forward(self, x: Tensor) -> Any:
        sequence = torch.cat([x.mean((2, 3))[:, None], tokens(x)], 1)
        return {"count": 3, "all": (sequence, x.mean(1))}


def test_only_the_map_among_several_outputs_is_perturbed() -> None:
    model, x = nn.Sequential(Several()), images()
    call = ModuleCall(model[0], 0, None)
    plain = model(x)
    with perturbed_output(call, x) as other:
        changed = model(x)
    assert changed["count"] == 3
    assert torch.equal(changed["all"][0][:, 1:], tokens(other))
    assert torch.equal(changed["all"][0][:, :1], plain["all"][0][:, :1])
    assert torch.equal(changed["all"][1], plain["all"][1])


def test_the_perturbation_is_repeatable_and_draws_no_random_numbers() -> None:
    traced = TracedPass("encoder.first", "encoder.last.1")
    call = find_cuts(traced.calls)[0]
    state = torch.get_rng_state()
    with perturbed_output(call, traced.penultimate) as first:
        pass
    with perturbed_output(call, traced.penultimate) as second:
        pass
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)
