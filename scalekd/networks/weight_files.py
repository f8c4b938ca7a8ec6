"""Reading files of weights: tensors and plain data, and never code.

A trainer's checkpoint holds more than weights. `read_checkpoint` reads all of it safely, and
`choose_weights` finds the network's tensors in it.
"""

import errno
import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import safetensors.torch
import torch
from torch import Tensor

from scalekd.errors import InputError
from scalekd.reading import open_regular, why_unreadable

StateDict = dict[str, Tensor]
"""Tensors by their names in a model."""

AVERAGES = {"ema", "swa", "avg", "average", "averaged", "averages", "polyak", "shadow"}
"""Words in a key that say that its weights are an average over the steps of a training."""

KEY_OPTION = "teacher_weights_key (or student_weights_key; weights_key in evaluate)"
"""The settings that choose one of several networks in a file, as messages name them."""

_torch_load = torch.load  # as they are before anything replaces them
_load_safetensors = safetensors.torch.load_file


class _Skipped:
    """What an object of a harmless class is read as: nothing of it is made, and nothing is kept."""

    def __new__(cls, *args: object) -> Self:
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None: ...

    def __setitem__(self, key: object, value: object) -> None: ...


class _Items:
    """What an object of a class of dicts is read as: a dict of its items."""

    def __new__(cls, *args: object) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        return OrderedDict()


class _Values:
    """What an object of a class of lists is read as: a list."""

    def __new__(cls, *args: object) -> list[Any]:  # type: ignore[misc]
        return []


_PATHS = "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath"

SKIPPED_CLASSES = {
    "argparse": "Namespace",
    "builtins": "bool bytes dict float frozenset int list object range slice str tuple",
    "datetime": "date datetime time timedelta timezone",
    "decimal": "Decimal",
    "fractions": "Fraction",
    "mmengine.logging.history_buffer": "HistoryBuffer",
    "numpy": "dtype ndarray",
    "numpy.core.multiarray": "_reconstruct scalar",
    "numpy._core.multiarray": "_reconstruct scalar",
    "omegaconf.base": "ContainerMetadata Metadata",
    "omegaconf.dictconfig": "DictConfig",
    "omegaconf.listconfig": "ListConfig",
    "omegaconf.nodes": "AnyNode BooleanNode FloatNode IntegerNode StringNode",
    "pathlib": _PATHS,
    "pathlib._local": _PATHS,
    "torch.torch_version": "TorchVersion",
    "types": "SimpleNamespace",
    "typing": "Any",
    "uuid": "UUID",
}
"""Classes and functions of plain values that trainers save beside the weights, by module.

None of them is imported or called: torch's reader gets `_Skipped` in their place.
"""

ITEM_CLASSES = {
    "addict.addict": "Dict",
    "collections": "defaultdict",
    "detectron2.config.config": "CfgNode",
    "easydict": "EasyDict",
    "fvcore.common.config": "CfgNode",
    "lightning.fabric.utilities.data": "AttributeDict",
    "lightning_fabric.utilities.data": "AttributeDict",
    "yacs.config": "CfgNode",
}
"""Classes of dicts that trainers save, which may hold weights; read as `_Items`."""

LIST_CLASSES = {"collections": "deque"}
"""Classes of lists that trainers save; read as `_Values`."""


def read_checkpoint(file: Path) -> Any:
    """Read a safetensors file, or a torch file of tensors and plain data.

    Raises:
        InputError: the file cannot be read, is damaged, or needs any class that is not harmless.
    """
    head = _first_bytes(file)
    try:
        if head[8:9] == b"{":  # after the length of safetensors' header
            return _load_safetensors(file)
        with open(file, "rb") as content:  # a path's suffix would decide, not the content
            return safe_torch_load(content, map_location="cpu")
    except Exception as error:  # a damaged file can raise nearly anything
        raise InputError(f"{str(file)!r} {_why_unreadable(file, head, error)}") from error


def safe_torch_load(*args: Any, **kwargs: Any) -> Any:
    """Call `torch.load`, which unpickles only tensors, plain data and harmless classes."""
    replacements = (
        (_Skipped, SKIPPED_CLASSES),
        (_Items, ITEM_CLASSES),
        (_Values, LIST_CLASSES),
    )
    allowed: Any = [
        (replacement, f"{module}.{name}")
        for replacement, classes in replacements
        for module, names in classes.items()
        for name in names.split()
    ]
    with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # on protocols that it reads in part
        return _torch_load(*args, **{**kwargs, "weights_only": True})


def _first_bytes(file: Path) -> bytes:
    """Return the first 32 bytes of a file that can be read; an InputError says why it cannot."""
    try:
        with open_regular(file, repr(str(file))) as content:
            return content.read(32)
    except InputError as error:
        raise InputError(
            f"{error}; give a .safetensors or .pth file to load weights from, 'pretrained' or "
            "'random'"
        ) from error


def _why_unreadable(file: Path, head: bytes, error: Exception) -> str:
    text = str(error)
    if isinstance(error, OSError) and error.errno == errno.EIO:  # a disk that fails
        return why_unreadable(error)
    if not head:
        return "is empty (0 bytes): copy or download it again"
    if file.suffix in (".npz", ".npy") or head.startswith(b"\x93NUMPY"):
        return (
            "is a numpy file: load it with timm's model.load_pretrained, and save "
            "model.state_dict() with torch.save or safetensors"
        )
    if "TorchScript" in text:
        return (
            "is a TorchScript program, which is never run: save `model.state_dict()` with "
            "torch.save or safetensors"
        )
    refused = re.search(r"GLOBAL (\S+)|but got <class '(\S+)'>|unrecognized function (\S+)", text)
    if refused and isinstance(error, pickle.UnpicklingError):
        name = next(filter(None, refused.groups()))
        return (
            f"holds an object of {name}, and only plain tensors and data are ever loaded, because "
            "unpickling more can run code; save only the weights in the program that wrote it: "
            "torch.save(model.state_dict(), 'weights.pth')"
        )
    if head.startswith(b"version https://git"):
        return "is a pointer of Git LFS, not the weights themselves: run git lfs pull"
    if head.startswith((b"PK", b"\x80")) or head[8:9] == b"{":
        return (
            "is damaged or truncated, or written by something else than torch.save and "
            "safetensors: copy or download it again"
        )
    return (
        "is not a safetensors file or a torch file of plain tensors, and nothing else is ever "
        "loaded; save `model.state_dict()` with torch.save or safetensors"
    )


@dataclass(frozen=True)
class ChosenWeights:
    """The tensors of one network in a checkpoint.

    state: the tensors.
    key: under which they are, with dots for depth; "" if the file holds nothing else.
    remarks: which of several networks it is, and which tensors of the file are not in it.
    """

    state: StateDict
    key: str = ""
    remarks: tuple[str, ...] = ()


def choose_weights(checkpoint: object, source: str, key: str | None = None) -> ChosenWeights:
    """Find the tensors of one network in what a file holds, at any depth.

    Where a file has a network's weights and their average over the steps (EMA), the average is
    taken, as timm does.

    Args:
        checkpoint: of a file, dicts within dicts.
        source: of the checkpoint, for messages.
        key: of the network, with dots for depth, and perhaps with a prefix of its names; None for
            the only one.

    Raises:
        InputError: there are no tensors, several networks, or none under the key.
    """
    found = _state_dicts(checkpoint)
    if not found:
        raise InputError(f"{source!r} holds no state dict (tensors by name) at any depth")
    if key is not None:
        return ChosenWeights(_under_key(found, key, source), key, (f"of the key {key!r}",))
    most = max(map(len, found.values()))
    # Not an optimizer's or a loss's: a network's average may lack the buffers, at most.
    networks = [k for k, state in found.items() if 3 * len(state) >= most]
    chosen = choose_network(networks)
    if chosen is None:
        raise InputError(
            f"{source!r} holds several networks ({_listed(networks)}): choose one by its key with "
            f"{KEY_OPTION}"
        )
    remarks: tuple[str, ...] = ()
    if len(networks) > 1:
        remarks = (remark_on_average(chosen, networks),)
    elif chosen:
        remarks = (f"of the key {chosen!r}",)
    if others := [k for k in found if k not in networks]:
        remarks += (f"not read in the file: {_listed(others)}",)
    return ChosenWeights(found[chosen], chosen, remarks)


def choose_network(keys: Sequence[str]) -> str | None:
    """Return the only key, or of two that of the average; None where the choice is the user's."""
    averages = [key for key in keys if is_average(key)]
    if len(keys) == 1:
        return keys[0]
    if set(keys) == {"state_dict", "current_model_state"}:  # of Lightning's WeightAveraging
        return "state_dict"
    return averages[0] if len(keys) == 2 and len(averages) == 1 else None


def remark_on_average(chosen: str, keys: Sequence[str]) -> str:
    """Say that the average was taken, what was not, and how to choose."""
    return (
        f"the average {chosen!r} was taken, not {_listed([k for k in keys if k != chosen])}, which "
        f"is in the file too; {KEY_OPTION} chooses"
    )


def is_average(key: str) -> bool:
    """Return whether a key such as state_dict_ema names weights averaged over steps."""
    words = re.findall("[A-Z]+(?![a-z])|[A-Z]?[a-z]+", key)
    return not AVERAGES.isdisjoint(map(str.lower, words))


def _state_dicts(checkpoint: object) -> dict[str, StateDict]:
    """Return each dict of tensors by its key, with dots for depth and "" for the outermost."""
    found: dict[str, StateDict] = {}
    seen: set[int] = set()

    def look(value: object, key: str) -> None:
        if not isinstance(value, dict) or id(value) in seen:
            return
        seen.add(id(value))
        named = {name: item for name, item in value.items() if isinstance(name, str)}
        if tensors := {name: item for name, item in named.items() if isinstance(item, Tensor)}:
            found[key] = tensors
        for name, item in named.items():
            look(item, f"{key}.{name}" if key else name)

    look(checkpoint, "")
    return found


def _under_key(found: dict[str, StateDict], key: str, source: str) -> StateDict:
    """Return the tensors of one key, or with one key and prefix."""
    if key in found:
        return found[key]
    below = [k for k in found if k.startswith(f"{key}.")]
    if below and (chosen := choose_network(below)):
        return found[chosen]
    for outer in sorted(found, key=len, reverse=True):
        if key.startswith(f"{outer}." if outer else ""):
            prefix = f"{key[len(outer) + 1 :] if outer else key}."
            state = found[outer].items()
            if inside := {n.removeprefix(prefix): t for n, t in state if n.startswith(prefix)}:
                return inside
    raise InputError(
        f"{KEY_OPTION} is {key!r}, but the tensors in {source!r} are under the keys "
        f"{_listed(below or list(found))}"
    )


def shortened_list(names: tuple[str, ...], limit: int = 6) -> str:
    """Return the first `limit` names, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _listed(keys: Sequence[str]) -> str:
    return shortened_list(tuple(map(repr, keys)))
