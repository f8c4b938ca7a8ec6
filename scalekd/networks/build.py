"""timm models by name, with weights from the source that the user chose."""

import difflib
import os
import re
import socket
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import urlparse

import timm
import torch
from huggingface_hub import constants as hub
from timm.layers import PatchEmbed
from timm.layers import config as timm_config
from torch import nn

from scalekd.errors import InputError, one_line
from scalekd.networks.cheap_init import fill_cheaply, skip_random_init
from scalekd.networks.input_config import (
    Size,
    check_size,
    input_config,
    pretrained_config,
    resize,
)
from scalekd.networks.pretrained import (
    LoadedWeights,
    Mismatch,
    file_sha256,
    load_weights,
    record_loads,
    refuse_non_finite,
)
from scalekd.networks.state_matching import MatchedState, changed_shapes, match_state
from scalekd.networks.transformers_config import (
    MAX_CONFIG_BYTES,
    apply_config,
    is_transformers_folder,
    read_transformers_config,
    why_not_timm,
    why_not_translated,
)
from scalekd.networks.weight_files import (
    ChosenWeights,
    StateDict,
    choose_weights,
    shortened_list,
)
from scalekd.networks.weight_folders import WeightFiles, find_weight_files
from scalekd.reading import parse_json, read_text


def build_model(
    name: str,
    weights: str | Path,
    size: Size | None = None,
    weights_key: str | None = None,
    **arguments: Any,
) -> tuple[nn.Module, LoadedWeights]:
    """Build a timm model with the weights asked for.

    The modules of the model use fused attention where timm has it, also where timm calls it
    experimental (Swin, Visformer, XCiT). Afterwards timm's own switch is as it was before.

    Args:
        name: one of timm's, also with a pretrained tag, `local-dir:FOLDER` or `hf-hub:ID`.
        weights: "pretrained" (from timm's hub, or from the folder), "random", a file:
            safetensors, or a state dict saved by torch; or a folder that transformers wrote. The
            classifier in a file decides the number of classes; the model is built without a
            classifier if the file has none.
        size: (height, width) of its images; default the model's own. A model that is bound to a
            size is built for this one. Where the weights are of another, its position embeddings
            are resampled, which `LoadedWeights` describes.
        weights_key: key of the weights in a file that holds several networks, with dots for depth;
            by default the only network, or of a network and its average over steps the average.
        **arguments: passed to `timm.create_model`.

    Returns:
        The model, and what was loaded into it.

    Raises:
        InputError: an unknown name, weights that cannot be loaded or are non-finite, a file that
            holds anything but plain tensors or does not fit the model, a size that the model does
            not accept.
    """
    check_size(size)
    _check_name(name)
    if weights == "random":
        return _build_random(name, size, arguments)
    load: _Load
    if weights == "pretrained":
        load = partial(_build_pretrained, name, weights_key)
    else:
        files = find_weight_files(Path(weights))
        chosen = choose_weights(files.read(), str(files.path), weights_key)
        load = partial(_build_from_file, name, files, chosen)
    model, loaded = _load_at_size(load, name, size, arguments)
    if loaded.resampled and loaded.fitting_size is None:
        loaded = replace(loaded, fitting_size=_find_fitting_size(name, model, loaded, arguments))
    return model, loaded


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


_Load = Callable[[dict[str, Any]], tuple[nn.Module, LoadedWeights]]
"""Builds a model with these arguments and loads its weights."""


def _load_at_size(
    load: _Load, name: str, size: Size | None, arguments: dict[str, Any]
) -> tuple[nn.Module, LoadedWeights]:
    """Load weights into a model for `size`, and resample tables only if they are of another size.

    A model that is resized after loading is not the model that is built for the size: windows and
    tables of a Swin are different ones.
    """
    at_size: tuple[nn.Module, LoadedWeights] | None = None
    if size is not None:
        # The model may have no such argument, or have tables that cannot be resampled on loading.
        with suppress(InputError):
            at_size = load({**arguments, "img_size": size})
    if at_size is not None and not at_size[1].resampled:
        return at_size
    try:
        model, loaded = load(arguments)
    except InputError:
        if at_size is None:
            raise
        return at_size
    if at_size is not None and loaded.resampled:
        return at_size
    own_size = input_config(model).size
    before = model.state_dict()
    remarks = resize(name, model, size, arguments.get("img_size"))
    loaded = replace(loaded, remarks=loaded.remarks + remarks)
    if resampled := changed_shapes(before, model.state_dict()):
        loaded = replace(loaded, resampled=resampled, fitting_size=own_size)
    return model, loaded


def _find_fitting_size(
    name: str, model: nn.Module, loaded: LoadedWeights, arguments: dict[str, Any]
) -> Size | None:
    """Return the first image size at which the tables that were resampled fit as they are."""
    own_size = pretrained_config(model).get("input_size", (3, 224, 224))[-2:]
    embedding = next((m for m in model.modules() if isinstance(m, PatchEmbed)), None)
    cell = embedding.patch_size[0] if embedding else 1
    sides = (224, 384, *range(32, 641, 16), *range(28, 645, 14))
    squares = ((side, side) for side in sides if side % cell == 0)
    for size in dict.fromkeys([tuple(own_size), *squares]):
        try:
            with torch.device("meta"):
                state = _create_model(name, False, {**arguments, "img_size": size}).state_dict()
        except InputError:
            continue
        if all(n in state and state[n].shape == shape for n, shape in loaded.resampled.items()):
            return size
    return None


def _build_pretrained(
    name: str, weights_key: str | None, arguments: dict[str, Any]
) -> tuple[nn.Module, LoadedWeights]:
    with record_loads(weights_key) as loads:
        model = _create_model(name, True, arguments)
    load = next((load for load in reversed(loads) if load.module is model), None)
    if load is None:
        raise InputError(
            f"pretrained weights of {name} were requested, but timm loaded no weights into the "
            "model; give a file of weights in their place, or random"
        )
    read = load.read
    heads = tuple(f"{head}." for head in classifier_names(model))
    # timm adapts these to the numbers of classes and channels.
    adapted = (*heads, *(f"{name}." for name in _names(pretrained_config(model).get("first_conv"))))
    changed = changed_shapes(read.chosen.state, model.state_dict())
    total = len(model.state_dict())
    loaded = LoadedWeights(
        name=name,
        source=_describe_source(name, model, read.file),
        file=read.file,
        sha256=file_sha256(read.file) if read.file else None,
        matched=total - len(load.missing),
        total=total,
        missing=load.missing,
        unexpected=load.unexpected,
        remarks=read.chosen.remarks,
        resampled={n: shape for n, shape in changed.items() if not n.startswith(adapted)},
    )
    if any(not tensor.startswith(heads) for tensor in load.missing):
        # timm accepts any missing tensor where the number of classes differs.
        raise InputError(f"timm left more of {name} than its classifier at random: {loaded}")
    if not Mismatch.between(model, read.chosen.state):
        # timm resamples some tables that already fit: those of windows that are not square.
        model.load_state_dict(read.chosen.state)
    refuse_non_finite(model.state_dict(), f"the weights of {loaded.source!r}")
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
    name: str, files: WeightFiles, chosen: ChosenWeights, arguments: dict[str, Any]
) -> tuple[nn.Module, LoadedWeights]:
    file = files.path
    model = _create_model(name, False, arguments)
    heads = classifier_names(model)
    match = match_state(model, chosen.state, heads)
    remarks = chosen.remarks + match.remarks
    source = f"{file}, key {chosen.key}" if chosen.key else str(file)
    if mismatch := Mismatch.between(model, match.state, heads):
        raise InputError(_why_mismatched(name, files.path, source, match, mismatch))
    if heads:
        _refuse_another_classifier(name, file, match.state, heads)
        weights = [match.state[f"{h}.weight"] for h in heads if f"{h}.weight" in match.state]
        classes = len(weights[0]) if weights and weights[0].dim() else 0
        requested = arguments.get("num_classes")
        if classes != model.num_classes:
            if not classes and requested:
                why = f" ({'; '.join(match.remarks)})" if match.from_transformers else ""
                raise InputError(
                    f"{str(file)!r} has no classifier ({', '.join(heads)}), but num_classes is "
                    f"{requested}: drop num_classes to build {name} without a classifier{why}"
                )
            model = _create_model(name, False, {**arguments, "num_classes": classes})
            remarks += (_remark_on_classes(classes, requested),)
    if match.from_transformers:
        remarks += apply_config(read_transformers_config(file.parent), name, model)
    load_weights(model, match.state, source)
    loaded = LoadedWeights(
        name=name,
        source=str(file),
        file=str(file),
        sha256=file_sha256(*files.parts),
        matched=len(match.state),
        total=len(match.state),
        unexpected=match.unexpected,
        remarks=remarks,
        resampled=match.resampled,
    )
    return model, loaded


def _why_mismatched(
    name: str, file: Path, source: str, match: MatchedState, mismatch: Mismatch
) -> str:
    is_part = re.search(r"-\d{5}-of-\d{5}\.", file.name)
    if is_transformers_folder(file.parent) and not (match.from_transformers or is_part):
        return why_not_translated(file.parent)
    translated = ", with transformers' names translated to timm's," * match.from_transformers
    text = f"the weights of {source!r}{translated} do not fit {name}: {mismatch}"
    if is_part:
        return f"{text}; the file is one of several with the model's weights: give their folder"
    if mismatch.reshaped and not (mismatch.missing or mismatch.unexpected):
        return (
            f"{text}; if they are of another image size, give it as teacher_size, or of a student "
            "as data.image_size"
        )
    with_biases = f"{name.split('.')[0]}_qkvb"
    are_biases = all(n.endswith("qkv.bias") for n in mismatch.unexpected)
    if are_biases and not mismatch.missing and timm.is_model(with_biases):
        return f"{text}; {with_biases} has these biases"
    return text


def _refuse_another_classifier(
    name: str, file: Path, state: StateDict, heads: tuple[str, ...]
) -> None:
    """Raise an InputError if the file's classifier is not the one layer that the model has."""
    inside = [n for n in state if n.startswith(tuple(f"{head}." for head in heads))]
    others = [n for n in inside if n.rpartition(".")[0] not in heads]
    if others:
        raise InputError(
            f"the classifier in {str(file)!r} ({shortened_list(tuple(others))}) is not the single "
            f"linear layer of {name}: build the model in Python and give ScaleKD the module, or "
            "remove these tensors from the file to distil only features"
        )


def _remark_on_classes(classes: int, requested: int | None) -> str:
    if not classes:
        return "it has no classifier"
    instead = "" if requested is None else f", not the {requested} requested"
    return f"{classes} classes as in the file{instead}"


def classifier_names(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the modules that compute the logits."""
    return _names(pretrained_config(model).get("classifier"))


def _names(value: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return the names in an entry of timm's configuration: none, one or several."""
    return (value,) if isinstance(value, str) else tuple(value or ())


def _check_name(name: str) -> None:
    if name.startswith(("local-dir:", "hf-hub:", "hf_hub:")):
        folder = Path(name.partition(":")[2])
        if name.startswith("local-dir:"):
            _check_folder(folder)
        return
    if timm.is_model(name.split(".")[0]):
        return
    near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.4)
    hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() lists all names"
    raise InputError(f"no model is named {name!r}; {hint}")


def _check_folder(folder: Path) -> None:
    """Raise an InputError unless `folder` has the configuration of a timm model."""
    file = folder / "config.json"
    if not os.path.lexists(file):
        raise InputError(
            f"no config.json in {str(folder)!r}: give local-dir: the folder of a timm model"
        )
    try:
        config = parse_json(read_text(file, repr(str(file)), limit=MAX_CONFIG_BYTES))
    except ValueError as error:
        raise InputError(f"{str(file)!r} cannot be read as JSON: {one_line(error)}") from error
    if is_transformers_folder(folder):
        raise InputError(why_not_timm(folder))
    if not (isinstance(config, dict) and isinstance(config.get("architecture"), str)):
        raise InputError(
            f"{str(file)!r} names no architecture of timm: give local-dir: a "
            "folder that timm's save_for_hf or scalekd exported"
        )


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
    except InputError:  # of a file of weights, which says what is wrong with it
        raise
    except TypeError as error:
        raise InputError(f"{name} does not take these arguments: {error}") from error
    except Exception as error:
        if not pretrained:
            raise InputError(
                f"{name} cannot be built with {arguments}: {one_line(error)}"
            ) from error
        raise InputError(
            f"the pretrained weights of {name} cannot be loaded ({one_line(error)}); give a file "
            "of weights in their place, or random to do without them"
        ) from error
    return model
