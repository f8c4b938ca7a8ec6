"""Weights: out of files, into networks, and in words, so that nobody trains on none unawares."""

import hashlib
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import safetensors.torch
import torch
from torch import Tensor, nn

from scalekd.errors import InputError
from scalekd.notes import Note

StateDict = dict[str, Tensor]
"""Tensors by their names in a model."""


@dataclass(frozen=True)
class LoadedWeights:
    """What was loaded into a network; `str()` of it is one line for a person.

    name: of the network.
    source: "pretrained from hub ID", "pretrained from URL", "local-dir:FOLDER", a file, "random",
        or "pretrained" where the model's own function chose a file of its own.
    file: that was read, and the sha256 of it; None of "random".
    matched: how many of the `total` tensors in the model's state dict were loaded.
    missing: names of the others, which are random.
    unexpected: names in the file that found no place in the model.
    remarks: what was done to the file's tensors on their way.
    """

    name: str
    source: str
    file: str | None
    sha256: str | None
    matched: int
    total: int
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @classmethod
    def nothing(cls, name: str, model: nn.Module) -> "LoadedWeights":
        """Of a `model` that was left at its random initialisation."""
        names = tuple(model.state_dict())
        return cls(name, "random", None, None, 0, len(names), names)

    @property
    def note(self) -> Note:
        """The line for a person; a warning where any tensor is at its random initialisation."""
        return Note("warning" if self.missing else "info", str(self))

    def __str__(self) -> str:
        if self.source == "random":
            return f"the weights of {self.name} are RANDOM, as asked: it knows nothing"
        said = f"weights of {self.name}: {self.source}"
        if self.file:
            said += "" if self.source == self.file else f", {Path(self.file).name}"
            said += f" (sha256 {(self.sha256 or '')[:12]}…)"
        said += f", {self.matched} of {self.total} tensors"
        if self.missing:
            said += f"; RANDOM, for no file gave them: {shortened_list(self.missing)}"
        if self.unexpected:
            said += f"; left out of the file: {shortened_list(self.unexpected)}"
        return "; ".join([said, *self.remarks])


def file_sha256(file: str | Path) -> str:
    """Of a file, in hexadecimal digits."""
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def shortened_list(names: tuple[str, ...], most: int = 6) -> str:
    """The first few of `names`, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def read_weights(file: Path) -> StateDict:
    """Tensors by name from a safetensors file or a torch file of plain tensors.

    A checkpoint's `state_dict` or `model` is looked into; nothing is ever unpickled but tensors.

    Raises:
        InputError: no such file, or it holds anything else.
    """
    state = read_checkpoint(file)
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not _is_state(state):
        raise InputError(f"{str(file)!r} holds no state dict (tensors by name)")
    return dict(state)


def read_checkpoint(file: Path) -> Any:
    """What a safetensors file or a torch file holds, which must be tensors and plain data.

    Raises:
        InputError: no such file, or it holds anything else.
    """
    if not file.is_file():
        raise InputError(
            f"no file {str(file)!r} to load weights from; give a .safetensors or .pth file, "
            "'pretrained' or 'random'"
        )
    try:
        if file.suffix == ".safetensors":
            return safetensors.torch.load_file(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise nearly anything
        raise InputError(
            f"{str(file)!r} is not a safetensors file or a torch file of plain tensors, and "
            "nothing else is ever loaded; save `model.state_dict()` with torch.save or safetensors"
        ) from error


def _is_state(state: Any) -> bool:
    return isinstance(state, dict) and all(isinstance(t, Tensor) for t in state.values())


@dataclass(frozen=True)
class Mismatch:
    """Names of the tensors that keep a state from fitting a model, or none; `str()` lists them."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reshaped: tuple[str, ...]

    @classmethod
    def between(cls, model: nn.Module, state: StateDict, apart: tuple[str, ...] = ()) -> "Mismatch":
        """Of `state` and `model`, apart from these modules of it."""
        inside = tuple(f"{module}." for module in apart)
        own = {n: t for n, t in model.state_dict().items() if not n.startswith(inside)}
        return cls(
            tuple(n for n in own if n not in state),
            tuple(n for n in state if n not in own and not n.startswith(inside)),
            tuple(
                f"{n} {tuple(state[n].shape)} for {tuple(t.shape)}"
                for n, t in own.items()
                if n in state and state[n].shape != t.shape
            ),
        )

    def __len__(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.reshaped)

    def __str__(self) -> str:
        kinds = ("missing", self.missing), ("unexpected", self.unexpected)
        listed = [*kinds, ("of another shape", self.reshaped)]
        return "; ".join(f"{what}: {shortened_list(names)}" for what, names in listed if names)


def load_weights(model: nn.Module, state: StateDict, source: str) -> None:
    """Load all of `state` into `model`.

    Raises:
        InputError: not every tensor of each fits the other; it lists those.
    """
    if misfit := Mismatch.between(model, state):
        raise InputError(f"the weights of {source!r} do not fit {type(model).__name__}: {misfit}")
    model.load_state_dict(state)


@dataclass(frozen=True)
class MatchedState:
    """A file's tensors under a model's names.

    unexpected: names in the file that were left out.
    remarks: what was done.
    """

    state: StateDict
    unexpected: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


def match_state(model: nn.Module, state: StateDict, classifiers: tuple[str, ...]) -> MatchedState:
    """`state` under the names of `model`, its `classifiers` apart.

    Tried are the state as it is, then with one prefix removed from its names, then both through
    timm's own filter of the model's family, which knows the original authors' names and resamples
    positions. The first that fits is given, else the one that comes nearest.

    Raises:
        InputError: several networks in one file.
    """
    nearest: list[tuple[int, MatchedState]] = []
    for way in _ways(model, state):
        gaps = len(Mismatch.between(model, way.state, classifiers))
        if not gaps:
            return way
        nearest.append((gaps, way))
    return min(nearest, key=lambda pair: pair[0])[1]


def _ways(model: nn.Module, state: StateDict) -> Iterator[MatchedState]:
    ways = [MatchedState(state)]
    yield ways[0]
    if prefix := _prefix(state, set(model.state_dict())):
        ways.append(_without(prefix, state, set(model.state_dict())))
        yield ways[1]
    for way in ways:
        if filtered := _filtered(model, way):
            yield filtered


def _prefix(state: StateDict, own: set[str]) -> str:
    """The dotted prefix without which more names are a model's `own`, or which all names share."""
    under: Counter[str] = Counter()
    fitting: Counter[str] = Counter()
    for name in state:
        for dot in (i + 1 for i, letter in enumerate(name) if letter == "."):
            under[name[:dot]] += 1
            fitting[name[:dot]] += name[dot:] in own
    best = max(fitting.values(), default=0)
    if best <= len(own & state.keys()):
        shared = [prefix for prefix, names in under.items() if names == len(state) and not best]
        return max(shared, key=len, default="")
    found = sorted(prefix for prefix, fits in fitting.items() if fits == best)
    if len(found) > 1 and 2 * best > len(own):
        raise InputError(
            f"the file holds several networks ({shortened_list(tuple(found))}): save the tensors of one alone"
        )
    return found[0]


def _without(prefix: str, state: StateDict, own: set[str]) -> MatchedState:
    """Names beside the prefix stay where they are the model's `own` (a classifier's, mostly)."""
    beside = {n: t for n, t in state.items() if not n.startswith(prefix)}
    inside = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
    return MatchedState(
        {n: t for n, t in beside.items() if n in own} | inside,
        tuple(n for n in beside if n not in own),
        (f"prefix {prefix!r} removed",),
    )


def _filtered(model: nn.Module, way: MatchedState) -> MatchedState | None:
    function = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if function is None:
        return None
    try:
        state = function(dict(way.state), model)
    except Exception:  # made for files that it knows, it can do nearly anything with others
        return None
    if not _is_state(state):
        return None
    said = "through timm's checkpoint filter"
    before = way.state
    if reshaped := tuple(n for n in state if n in before and state[n].shape != before[n].shape):
        said += f", which reshaped {shortened_list(reshaped)}"
    if len(state) != len(before):
        said += f", which made {len(state)} tensors of {len(before)}"
    return replace(way, state=state, remarks=(*way.remarks, said))


@dataclass(frozen=True)
class RecordedLoad:
    """One `load_state_dict` that was watched, and the file that was read last before it."""

    module: nn.Module
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    file: str | None


@contextmanager
def record_loads() -> Iterator[list[RecordedLoad]]:
    """Every load into a module that happens inside, whoever does it, in order.

    timm says nothing about what it loads, so the functions that it has to call are exchanged. The
    whole process sees that: not for two threads at once.
    """
    loads: list[RecordedLoad] = []
    files: list[str] = []
    own_load: Any = nn.Module.load_state_dict

    def load(module: nn.Module, *given: Any, **others: Any) -> Any:
        result = own_load(module, *given, **others)
        gaps = tuple(result.missing_keys), tuple(result.unexpected_keys)
        loads.append(RecordedLoad(module, *gaps, files[-1] if files else None))
        return result

    def reading(function: Any) -> Any:
        def read(*given: Any, **others: Any) -> Any:
            file = (*given, *others.values())[0]
            if isinstance(file, str | os.PathLike):
                files.append(os.fspath(file))
            return function(*given, **others)

        return read

    readers: Any = (torch, "load"), (safetensors.torch, "safe_open")
    with ExitStack() as exchanged:
        exchanged.enter_context(patch.object(nn.Module, "load_state_dict", load))
        for module, name in readers:
            exchanged.enter_context(patch.object(module, name, reading(getattr(module, name))))
        yield loads


def looks_untrained(model: nn.Module) -> bool:
    """Whether every norm of `model` still has the constant weight and zero bias of its first day.

    No trained network has. False of a model that gives no such sign: without affine norms, or on
    the meta device.
    """
    norms = [m for m in model.modules() if "Norm" in type(m).__name__ and _is_affine(m)]
    if any(t.is_meta for m in norms for t in m.parameters()):
        return False
    return bool(norms) and all(_is_as_made(m) for m in norms)


def _is_affine(norm: nn.Module) -> bool:
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    vectors = [isinstance(t, Tensor) and t.dim() == 1 for t in (weight, bias) if t is not None]
    return weight is not None and all(vectors)


def _is_as_made(norm: Any) -> bool:
    bias = getattr(norm, "bias", None)
    constant = bool((norm.weight == norm.weight[0]).all())
    return constant and (bias is None or not bool(bias.any()))
