"""Pretrained weights: loading models, and describing what was loaded.

What was loaded is always described, so that nobody trains with random weights without noticing.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import safetensors.torch
import timm.models
import torch
from torch import Tensor, nn

from scalekd.errors import InputError
from scalekd.networks.weight_files import (
    ChosenWeights,
    StateDict,
    choose_weights,
    read_checkpoint,
    safe_torch_load,
    shortened_list,
)
from scalekd.notes import Note


@dataclass(frozen=True)
class LoadedWeights:
    """What was loaded into a model; `str()` describes it in one line.

    Attributes:
        name: Name of the model.
        source: "pretrained from hub ID", "pretrained from URL", "local-dir:FOLDER", a file,
            "random", or "pretrained" where the model's own function chose a file of its own.
        file: The file that was read; None if the weights are random.
        sha256: Hash of that file, in hexadecimal digits; of an index that of the files in it.
        matched: How many of the `total` tensors in the model's state dict were loaded.
        missing: Names of the other tensors, which are random.
        unexpected: Names in the file that are not in the model and were skipped.
        remarks: How the file's tensors were chosen and changed to fit the model.
        resampled: Tables of the file, such as position embeddings, that were resampled because they
            are of another image size: their names, and their shapes in the file.
        fitting_size: (height, width) of the images at which these tables would fit as they are;
            None if nothing was resampled, or no such size is known.
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
    resampled: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    fitting_size: tuple[int, int] | None = None

    @classmethod
    def random(cls, name: str, model: nn.Module) -> "LoadedWeights":
        """Describe a `model` that was left at its random initialisation."""
        names = tuple(model.state_dict())
        return cls(name, "random", None, None, 0, len(names), names)

    @property
    def note(self) -> Note:
        """The line for a person; a warning where any tensor is random, or was resampled."""
        return Note("warning" if self.missing or self.resampled else "info", str(self))

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
        if self.resampled:
            text += f"; RESAMPLED to this image size: {shortened_list(tuple(self.resampled))}"
            if self.fitting_size:
                height, width = self.fitting_size
                text += (
                    f", which fit as they are at {height}x{width} pixels (teacher_size, or of a "
                    "student data.image_size)"
                )
        return "; ".join([text, *self.remarks])


def file_sha256(file: str | Path, *further: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits; of several, that of all their bytes."""
    with open(file, "rb") as content:
        digest = hashlib.file_digest(content, "sha256")
    for part in further:
        with open(part, "rb") as content:
            while block := content.read(2**20):
                digest.update(block)
    return digest.hexdigest()


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
        InputError: a tensor of either has no counterpart of its shape in the other, or is
            non-finite. The message lists those and names the `source`.
    """
    if mismatch := Mismatch.between(model, state):
        raise InputError(f"the weights of {source!r} do not fit {type(model).__name__}: {mismatch}")
    refuse_non_finite(state, f"the weights of {source!r}")
    model.load_state_dict(state)


def refuse_non_finite(state: StateDict, source: str) -> None:
    """Raise an InputError with the names of the tensors of `state` that have a NaN or Inf."""
    bad = [n for n, t in state.items() if t.is_floating_point() and not t.is_meta]
    # In float, because isfinite is not made for numbers of 8 bits.
    bad = [n for n in bad if not bool(torch.isfinite(state[n].float()).all())]
    if bad:
        raise InputError(
            f"{source} are non-finite (NaN or Inf) in {shortened_list(tuple(bad))}: the training "
            "that made them diverged, or the file is damaged; take an earlier checkpoint"
        )


@dataclass(frozen=True)
class FileRead:
    """A file of weights that was read.

    file: its path; None if none was.
    chosen: what timm was given of it; without tensors where a model's own function read it.
    """

    file: str | None = None
    chosen: ChosenWeights = field(default_factory=lambda: ChosenWeights({}))


@dataclass(frozen=True)
class RecordedLoad:
    """One recorded `load_state_dict`.

    module: that loaded.
    missing, unexpected: what `load_state_dict` returned.
    read: the file that was read last before.
    """

    module: nn.Module
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    read: FileRead


@contextmanager
def record_loads(weights_key: str | None = None) -> Iterator[list[RecordedLoad]]:
    """Record every load into any module, in order, and read files in our own way.

    timm does not report what it loads, and some of its versions unpickle any class, so the
    functions that it has to call are replaced: nothing but tensors and plain data is unpickled, and
    timm is given the tensors of one network. They are replaced for the entire process: two threads
    cannot record at once.

    Args:
        weights_key: of one of several networks in a file.
    """
    loads: list[RecordedLoad] = []
    reads = [FileRead()]
    load_state_dict: Any = nn.Module.load_state_dict

    def recorded_load(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        result = load_state_dict(module, *args, **kwargs)
        mismatch = tuple(result.missing_keys), tuple(result.unexpected_keys)
        loads.append(RecordedLoad(module, *mismatch, reads[-1]))
        return result

    def read_network(file: Any, *args: Any, **kwargs: Any) -> StateDict:
        file = os.fspath(file)
        chosen = choose_weights(read_checkpoint(Path(file)), file, weights_key)
        reads.append(FileRead(file, chosen))
        return dict(chosen.state)

    def recorded(read: Any, **always: Any) -> Any:
        def recorded_read(*args: Any, **kwargs: Any) -> Any:
            file = (*args, *kwargs.values())[0]
            if isinstance(file, str | os.PathLike):
                reads.append(FileRead(os.fspath(file)))
            return read(*args, **{**kwargs, **always})

        return recorded_read

    replacements: list[tuple[Any, str, Any]] = [
        (nn.Module, "load_state_dict", recorded_load),
        (torch, "load", recorded(safe_torch_load)),
        (np, "load", recorded(np.load, allow_pickle=False)),
        (safetensors.torch, "safe_open", recorded(safetensors.safe_open)),
        (safetensors.torch, "load_file", read_network),
        (timm.models._helpers, "_torch_load", read_network),
        (timm.models._hub, "_torch_load", read_network),
    ]
    with ExitStack() as replaced:
        for owner, name, replacement in replacements:
            replaced.enter_context(patch.object(owner, name, replacement))
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
