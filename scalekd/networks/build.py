"""timm models by name, with weights from the source that the user chose."""

import difflib
import socket
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import urlparse

import timm
from huggingface_hub import constants as hub
from timm.layers import config as timm_config
from torch import nn

from scalekd.errors import InputError, one_line
from scalekd.networks.cheap_init import fill_cheaply, skip_random_init
from scalekd.networks.input_config import Size, pretrained_config, resize
from scalekd.networks.pretrained import (
    LoadedWeights,
    Mismatch,
    file_sha256,
    load_weights,
    read_weights,
    record_loads,
)
from scalekd.networks.state_matching import match_state


def build_model(
    name: str, weights: str | Path, size: Size | None = None, **arguments: Any
) -> tuple[nn.Module, LoadedWeights]:
    """Build a timm model with the weights asked for.

    The modules of the model use fused attention where timm has it, also where timm calls it
    experimental (Swin, Visformer, XCiT). Afterwards timm's own switch is as it was before.

    Args:
        name: one of timm's, also with a pretrained tag, `local-dir:FOLDER` or `hf-hub:ID`.
        weights: "pretrained" (from timm's hub, or from the folder), "random", or a file:
            safetensors, or a state dict saved by torch. The classifier in a file decides the
            number of classes; the model is built without a classifier if the file has none.
        size: (height, width) of its images; default the model's own. The position embeddings of a
            model that is bound to a size are resampled; other models accept any size.
        **arguments: passed to `timm.create_model`.

    Returns:
        The model, and what was loaded into it.

    Raises:
        InputError: an unknown name, weights that cannot be loaded, a file that holds anything
            but plain tensors or does not fit the model, a size that the model does not accept.
    """
    _check_name(name)
    if weights == "random":
        return _build_random(name, size, arguments)
    if weights == "pretrained":
        model, loaded = _build_pretrained(name, arguments)
    else:
        model, loaded = _build_from_file(name, Path(weights), arguments)
    remarks = resize(name, model, size, arguments.get("img_size"))
    return model, replace(loaded, remarks=loaded.remarks + remarks)


def build_without_weights(
    name: str, change: Callable[[nn.Module], None] | None = None, **arguments: Any
) -> nn.Module:
    """Build a timm model quickly, to look at its structure.

    Its parameters are cheap to make: finite, the same in each call and nowhere all equal. Its
    buffers are as in any model. The state of the random generators is restored.

    Args:
        name: as for `build_model`.
        change: called with the model before its parameters are filled, which is what takes the
            time; it may remove modules.
        **arguments: passed to `timm.create_model`.

    Raises:
        InputError: an unknown name, or arguments that the model does not take.
    """
    _check_name(name)
    with skip_random_init() as skipped:
        model = _create_model(name, False, arguments)
    if change is not None:
        change(model)
    fill_cheaply(model, skipped)
    return model


def _build_random(
    name: str, size: Size | None, arguments: dict[str, Any]
) -> tuple[nn.Module, LoadedWeights]:
    if size is not None and "img_size" not in arguments:
        try:
            model = _create_model(name, False, {**arguments, "img_size": size})
            return model, LoadedWeights.random(name, model)
        except InputError as error:  # a model that accepts any size has no such argument
            if not (isinstance(error.__cause__, TypeError) and "img_size" in str(error.__cause__)):
                raise
    model = _create_model(name, False, arguments)
    resize(name, model, size, arguments.get("img_size"))
    return model, LoadedWeights.random(name, model)


def _build_pretrained(name: str, arguments: dict[str, Any]) -> tuple[nn.Module, LoadedWeights]:
    with record_loads() as loads:
        model = _create_model(name, True, arguments)
    load = next((load for load in reversed(loads) if load.module is model), None)
    if load is None:
        raise InputError(
            f"pretrained weights of {name} were requested, but timm loaded no weights into the "
            "model; give a file with --teacher_weights FILE, or --teacher_weights random"
        )
    total = len(model.state_dict())
    loaded = LoadedWeights(
        name=name,
        source=_describe_source(name, model, load.file),
        file=load.file,
        sha256=file_sha256(load.file) if load.file else None,
        matched=total - len(load.missing),
        total=total,
        missing=load.missing,
        unexpected=load.unexpected,
    )
    heads = tuple(f"{head}." for head in _classifier_names(model))
    if any(not tensor.startswith(heads) for tensor in load.missing):
        # timm accepts any missing tensor where the number of classes differs.
        raise InputError(f"timm left more of {name} than its classifier at random: {loaded}")
    return model, loaded


def _describe_source(name: str, model: nn.Module, file: str | None) -> str:
    """Return where `file` came from, going by its path.

    The model's configuration alone does not tell, because it may name a source that timm did not
    use.
    """
    hub_id = pretrained_config(model).get("hf_hub_id") or ""
    url = pretrained_config(model).get("url") or ""
    if name.startswith("local-dir:"):
        return name
    path = Path(file or "")
    if hub_id and "models--" + hub_id.partition("@")[0].replace("/", "--") in path.parts:
        return f"pretrained from hub {hub_id}"
    if url and Path(urlparse(url).path).name == path.name:
        return f"pretrained from {url}"
    return "pretrained"


def _build_from_file(
    name: str, file: Path, arguments: dict[str, Any]
) -> tuple[nn.Module, LoadedWeights]:
    state = read_weights(file)
    model = _create_model(name, False, arguments)
    heads = _classifier_names(model)
    match = match_state(model, state, heads)
    remarks = match.remarks
    if heads and not Mismatch.between(model, match.state, heads):
        weights = [match.state[f"{h}.weight"] for h in heads if f"{h}.weight" in match.state]
        classes = len(weights[0]) if weights else 0
        requested = arguments.get("num_classes")
        if classes != model.num_classes:
            if not classes and requested:
                raise InputError(
                    f"{str(file)!r} has no classifier ({', '.join(heads)}), but num_classes is "
                    f"{requested}: drop num_classes to build {name} without a classifier"
                )
            model = _create_model(name, False, {**arguments, "num_classes": classes})
            remarks += (_remark_on_classes(classes, requested),)
    load_weights(model, match.state, str(file))
    loaded = LoadedWeights(
        name=name,
        source=str(file),
        file=str(file),
        sha256=file_sha256(file),
        matched=len(match.state),
        total=len(match.state),
        unexpected=match.unexpected,
        remarks=remarks,
    )
    return model, loaded


def _remark_on_classes(classes: int, requested: int | None) -> str:
    if not classes:
        return "no classifier, as in the file"
    instead = "" if requested is None else f", not the {requested} requested"
    return f"{classes} classes as in the file{instead}"


def _classifier_names(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the modules that compute the logits."""
    names = pretrained_config(model).get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)


def _check_name(name: str) -> None:
    if name.startswith(("local-dir:", "hf-hub:", "hf_hub:")):
        folder = Path(name.partition(":")[2])
        if name.startswith("local-dir:") and not (folder / "config.json").is_file():
            raise InputError(
                f"no config.json in {str(folder)!r}: give local-dir: the folder of a timm model"
            )
        return
    if timm.is_model(name.split(".")[0]):
        return
    near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.4)
    hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() lists all names"
    raise InputError(f"no model is named {name!r}; {hint}")


@contextmanager
def _hub_offline_without_network() -> Iterator[None]:
    """Put the hub's client into offline mode where there is no network.

    The client waits 45 seconds for a dead network; offline, its cache answers at once.
    """
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


def _create_model(name: str, pretrained: bool, arguments: dict[str, Any]) -> nn.Module:
    # timm's modules read this switch when they are constructed; 2 asks for fused attention also
    # where timm calls it experimental. On Swin it is a third faster, with outputs 1e-6 apart.
    fused_attention = patch.object(timm_config, "_USE_FUSED_ATTN", 2)
    try:
        with (
            warnings.catch_warnings(),
            fused_attention,
            _hub_offline_without_network() if pretrained else nullcontext(),
        ):
            warnings.simplefilter("ignore", UserWarning)  # timm's remarks on its own registry
            model: nn.Module = timm.create_model(name, pretrained=pretrained, **arguments)
    except TypeError as error:
        raise InputError(f"{name} does not take these arguments: {error}") from error
    except Exception as error:
        if not pretrained:
            raise InputError(
                f"{name} cannot be built with {arguments}: {one_line(error)}"
            ) from error
        raise InputError(
            f"the pretrained weights of {name} cannot be loaded ({one_line(error)}); give a file "
            "with --teacher_weights FILE, or --teacher_weights random to train without them"
        ) from error
    return model
