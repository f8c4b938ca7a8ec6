"""Pretrained weights: reading files, loading models, and describing what was loaded.

What was loaded is always described, so that nobody trains with random weights without noticing.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import astuple, dataclass
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
    """What was loaded into a model; `str()` describes it in one line.

    name: of the model.
    source: "pretrained from hub ID", "pretrained from URL", "local-dir:FOLDER", a file, "random",
        or "pretrained" where the model's own function chose a file of its own.
    file: the file that was read; None if the weights are random.
    sha256: of that file, in hexadecimal digits.
    matched: how many of the `total` tensors in the model's state dict were loaded.
    missing: names of the other tensors, which are random.
    unexpected: names in the file that are not in the model and were skipped.
    remarks: how the file's tensors were changed to fit the model.
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
    def random(cls, name: str, model: nn.Module) -> "LoadedWeights":
        """Describe a `model` that was left at its random initialisation."""
        names = tuple(model.state_dict())
        return cls(name, "random", None, None, 0, len(names), names)

    @property
    def note(self) -> Note:
        """The line for a person; a warning where any tensor is at its random initialisation."""
        return Note("warning" if self.missing else "info", str(self))

    def __str__(self) -> str:
        if self.source == "random":
            return f"the weights of {self.name} are RANDOM, as requested: it is untrained"
        text = f"weights of {self.name}: {self.source}"
        if self.file:
            text += "" if self.source == self.file else f", {Path(self.file).name}"
            text += f" (sha256 {(self.sha256 or '')[:12]}…)"
        text += f", {self.matched} of {self.total} tensors"
        if self.missing:
            text += f"; RANDOM, because the file lacks them: {shortened_list(self.missing)}"
        if self.unexpected:
            text += f"; skipped in the file: {shortened_list(self.unexpected)}"
        return "; ".join([text, *self.remarks])


def file_sha256(file: str | Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def shortened_list(names: tuple[str, ...], limit: int = 6) -> str:
    """Return the first `limit` names, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def read_weights(file: Path) -> StateDict:
    """Read tensors by name from a safetensors file or a torch file of plain tensors.

    Of a checkpoint that has a `state_dict` or `model`, its tensors are returned. Nothing but
    tensors is ever unpickled.

    Raises:
        InputError: no such file, or it holds anything else.
    """
    state = read_checkpoint(file)
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not is_state_dict(state):
        raise InputError(f"{str(file)!r} holds no state dict (tensors by name)")
    return dict(state)


def read_checkpoint(file: Path) -> Any:
    """Read a safetensors file, or a torch file of tensors and plain data.

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


def is_state_dict(state: Any) -> bool:
    """Return whether `state` is a dict of tensors."""
    return isinstance(state, dict) and all(isinstance(t, Tensor) for t in state.values())


@dataclass(frozen=True)
class Mismatch:
    """Why a state dict does not fit a model; empty if it fits. `str()` lists the names.

    missing: names in the model that the state dict lacks.
    unexpected: names in the state dict that the model lacks.
    reshaped: names whose shapes differ, with both shapes.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reshaped: tuple[str, ...]

    @classmethod
    def between(
        cls, model: nn.Module, state: StateDict, ignored: tuple[str, ...] = ()
    ) -> "Mismatch":
        """Compare `state` with `model`, except for the `ignored` modules."""
        inside = tuple(f"{module}." for module in ignored)
        expected = {n: t for n, t in model.state_dict().items() if not n.startswith(inside)}
        return cls(
            tuple(n for n in expected if n not in state),
            tuple(n for n in state if n not in expected and not n.startswith(inside)),
            tuple(
                f"{n} {tuple(state[n].shape)} for {tuple(t.shape)}"
                for n, t in expected.items()
                if n in state and state[n].shape != t.shape
            ),
        )

    def __len__(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.reshaped)

    def __str__(self) -> str:
        kinds = zip(("missing", "unexpected", "of another shape"), astuple(self), strict=True)
        return "; ".join(f"{kind}: {shortened_list(names)}" for kind, names in kinds if names)


def load_weights(model: nn.Module, state: StateDict, source: str) -> None:
    """Load all tensors of `state` into `model`.

    Raises:
        InputError: a tensor of either has no counterpart of its shape in the other. The message
            lists those and names the `source`.
    """
    if mismatch := Mismatch.between(model, state):
        raise InputError(f"the weights of {source!r} do not fit {type(model).__name__}: {mismatch}")
    model.load_state_dict(state)


@dataclass(frozen=True)
class RecordedLoad:
    """One recorded `load_state_dict`.

    module: that loaded.
    missing, unexpected: what `load_state_dict` returned.
    file: the file that was read last before, if any.
    """

    module: nn.Module
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    file: str | None


@contextmanager
def record_loads() -> Iterator[list[RecordedLoad]]:
    """Record every load into any module, in order.

    timm does not report what it loads, so the functions that it has to call are replaced. They
    are replaced for the entire process: two threads cannot record at once.
    """
    loads: list[RecordedLoad] = []
    files: list[str] = []
    load_state_dict: Any = nn.Module.load_state_dict

    def recorded_load(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        result = load_state_dict(module, *args, **kwargs)
        mismatch = tuple(result.missing_keys), tuple(result.unexpected_keys)
        loads.append(RecordedLoad(module, *mismatch, files[-1] if files else None))
        return result

    def recorded(read: Any) -> Any:
        def recorded_read(*args: Any, **kwargs: Any) -> Any:
            file = (*args, *kwargs.values())[0]
            if isinstance(file, str | os.PathLike):
                files.append(os.fspath(file))
            return read(*args, **kwargs)

        return recorded_read

    readers: Any = (torch, "load"), (safetensors.torch, "safe_open")
    with ExitStack() as replaced:
        replaced.enter_context(patch.object(nn.Module, "load_state_dict", recorded_load))
        for module, name in readers:
            replaced.enter_context(patch.object(module, name, recorded(getattr(module, name))))
        yield loads


def looks_untrained(model: nn.Module) -> bool:
    """Return whether every norm of `model` has a constant weight and zero bias, as initialised.

    No trained network looks like that. False for a model that gives no such sign, because it has
    no affine norms or is on the meta device.
    """
    norms = [m for m in model.modules() if "Norm" in type(m).__name__ and _is_affine(m)]
    if any(t.is_meta for m in norms for t in m.parameters()):
        return False
    return bool(norms) and all(_is_as_initialised(m) for m in norms)


def _is_affine(norm: nn.Module) -> bool:
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    vectors = [isinstance(t, Tensor) and t.dim() == 1 for t in (weight, bias) if t is not None]
    return weight is not None and all(vectors)


def _is_as_initialised(norm: Any) -> bool:
    bias = getattr(norm, "bias", None)
    constant = bool((norm.weight == norm.weight[0]).all())
    return constant and (bias is None or not bool(bias.any()))
