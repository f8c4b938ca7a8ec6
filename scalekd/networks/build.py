"""Models by name, and their weights from where the user says."""

import difflib
import socket
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import safetensors.torch
import timm
import torch
from huggingface_hub import constants as hub
from timm.layers import set_fused_attn
from torch import Tensor, nn

from scalekd.errors import InputError


def build(name: str, weights: str | Path, **arguments: Any) -> nn.Module:
    """A timm model with the weights asked for.

    Args:
        name: one of timm's, also with a pretrained tag, or `local-dir:FOLDER`.
        weights: "pretrained" (of timm's hub, or of the folder), "random", or a file: safetensors,
            or a state dict saved by torch. A file's classifier decides the number of classes.
        **arguments: of `timm.create_model`.

    Raises:
        InputError: an unknown name, weights that cannot be had, a file that holds something else
            than plain tensors or does not fit.
    """
    _known(name)
    # timm leaves fused attention off for Swin: on, it is a third faster and 1e-6 apart.
    set_fused_attn(True, experimental=True)
    if weights == "random":
        return _create(name, False, arguments)
    if weights == "pretrained":
        return _create(name, True, arguments)
    state = read_weights(Path(weights))
    model = _create(name, False, arguments)
    classifier = config(model).get("classifier") or ()
    names = [classifier] if isinstance(classifier, str) else classifier
    for weight in [state[f"{name}.weight"] for name in names if f"{name}.weight" in state][:1]:
        classes = len(weight)
        if classes != model.num_classes:
            model = _create(name, False, {**arguments, "num_classes": classes})
    load_weights(model, state, str(weights))
    return model


def read_weights(file: Path) -> dict[str, Tensor]:
    """Tensors by name from a safetensors file or a torch file of plain tensors.

    A checkpoint's `state_dict` or `model` is looked into; nothing is ever unpickled but tensors.
    """
    state = read_checkpoint(file)
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise InputError(f"{str(file)!r} holds no state dict (tensors by name)")
    return state


def read_checkpoint(file: Path) -> Any:
    """What a safetensors file or a torch file holds, which must be tensors and plain data."""
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


def load_weights(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load all of `state` into `model`, or an InputError that lists what does not fit."""
    own = model.state_dict()
    problems = {
        "missing": [name for name in own if name not in state],
        "unexpected": [name for name in state if name not in own],
        "of another shape": [
            f"{name} {tuple(state[name].shape)} for {tuple(own[name].shape)}"
            for name in own
            if name in state and state[name].shape != own[name].shape
        ],
    }
    if any(problems.values()):
        said = "; ".join(f"{what}: {_some(names)}" for what, names in problems.items() if names)
        raise InputError(f"the weights of {source!r} do not fit {type(model).__name__}: {said}")
    model.load_state_dict(state)


def config(model: nn.Module) -> dict[str, Any]:
    """timm's configuration of a model, empty for others."""
    found: Any = getattr(model, "pretrained_cfg", None)
    return found or {}


def _known(name: str) -> None:
    if name.startswith(("local-dir:", "hf-hub:", "hf_hub:")):
        folder = Path(name.partition(":")[2])
        if name.startswith("local-dir:") and not (folder / "config.json").is_file():
            raise InputError(
                f"no config.json in {str(folder)!r}: local-dir: takes a model's folder"
            )
        return
    if timm.is_model(name.split(".")[0]):
        return
    near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.4)
    hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() lists all names"
    raise InputError(f"no model is named {name!r}; {hint}")


@contextmanager
def _no_waiting_without_network() -> Iterator[None]:
    """The hub's client asks a dead network for 45 seconds; offline, its cache answers at once."""
    host = urlparse(hub.ENDPOINT).hostname
    try:
        if not urllib.request.getproxies():
            socket.getaddrinfo(host, 443)
    except OSError:
        before, hub.HF_HUB_OFFLINE = hub.HF_HUB_OFFLINE, True
        try:
            yield
        finally:
            hub.HF_HUB_OFFLINE = before
    else:
        yield


def _create(name: str, pretrained: bool, arguments: dict[str, Any]) -> nn.Module:
    try:
        with warnings.catch_warnings(), _no_waiting_without_network():
            warnings.simplefilter("ignore", UserWarning)  # timm's remarks on its own registry
            model: nn.Module = timm.create_model(name, pretrained=pretrained, **arguments)
    except TypeError as error:
        raise InputError(f"{name} does not take these arguments: {error}") from error
    except Exception as error:
        if not pretrained:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise InputError(f"{name} cannot be built with {arguments}: {reason}") from error
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(
            f"the pretrained weights of {name} cannot be had ({reason}); give a file with "
            "--teacher_weights FILE, or --teacher_weights random to go on without"
        ) from error
    return model


def _some(names: list[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
