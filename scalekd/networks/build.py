"""Models by name, with weights from where the user says."""

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
import torch
from huggingface_hub import constants as hub
from timm.layers import PatchEmbed, set_fused_attn, to_2tuple
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from scalekd.errors import InputError
from scalekd.networks.input_config import check_size
from scalekd.networks.pretrained import (
    LoadedWeights,
    Mismatch,
    file_sha256,
    load_weights,
    match_state,
    read_weights,
    record_loads,
)

Size = tuple[int, int]
"""Height and width in pixels."""


def build_model(
    name: str, weights: str | Path, size: Size | None = None, **arguments: Any
) -> tuple[nn.Module, LoadedWeights]:
    """A timm model with the weights asked for, and what was loaded.

    Args:
        name: one of timm's, also with a pretrained tag, `local-dir:FOLDER` or `hf-hub:ID`.
        weights: "pretrained" (of timm's hub, or of the folder), "random", or a file: safetensors,
            or a state dict saved by torch. A file's classifier decides the number of classes;
            without one the model is built without.
        size: (height, width) of its images. Loaded weights are resampled to it where the model is
            bound to a size; those that take any need nothing. Default the model's own.
        **arguments: of `timm.create_model`.

    Raises:
        InputError: an unknown name, weights that cannot be had, a file that holds something else
            than plain tensors or does not fit, a size that the model cannot take.
    """
    _prepare(name)
    if weights == "random":
        return _random(name, size, arguments)
    if weights == "pretrained":
        model, loaded = _pretrained(name, arguments)
    else:
        model, loaded = _from_file(name, Path(weights), arguments)
    remarks = resize(name, model, size, arguments.get("img_size"))
    return model, replace(loaded, remarks=loaded.remarks + remarks)


def build_without_weights(
    name: str, change: Callable[[nn.Module], None] | None = None, **arguments: Any
) -> nn.Module:
    """As `build_model(name, "random")`, for looking at structure: fast, and with cheap parameters.

    They are finite, the same each time and nowhere all alike; buffers are as in any model. The
    state of the random generators is not changed. `change` is called with the model before it is
    filled, which is what takes the time.

    Raises:
        InputError: an unknown name, or arguments that it does not take.
    """
    _prepare(name)
    mode = _NoRandomFills()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        # The one of torch's fills that draws again until the values please it.
        trunc_normal_ = patch.object(
            nn.init, "trunc_normal_", mode.instead_of(nn.init.trunc_normal_)
        )
        with mode, trunc_normal_:
            model = _create(name, False, arguments)
        if change is not None:
            change(model)
        _fill(model, mode.skipped)
    return model


class _NoRandomFills(TorchFunctionMode):
    """Parameters that are to be filled at random stay as they were allocated.

    skipped: those parameters by address; held here, so that no address is used again.
    """

    RANDOM = ("uniform_", "normal_")  # also with xavier_ and kaiming_ before
    LATER = ("mul_", "div_", "add_", "sub_", "clamp_", "erfinv_", "zero_", "fill_", "copy_")

    def __init__(self) -> None:
        super().__init__()
        self.skipped: dict[int, Tensor] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name.endswith(self.RANDOM):
            return self.instead_of(func)(*args, **(kwargs or {}))
        # What is done to a skipped parameter later, also as `.data`, is as idle.
        if name in self.LATER and args[0].data_ptr() in self.skipped:
            return args[0]
        return func(*args, **(kwargs or {}))

    def instead_of(self, fill: Any) -> Any:
        """`fill`, which skips parameters."""

        def skip(*given: Any, **others: Any) -> Any:
            tensor = (*given, *others.values())[0]
            if isinstance(tensor, nn.Parameter):
                self.skipped[tensor.data_ptr()] = tensor
            return tensor if tensor.data_ptr() in self.skipped else fill(*given, **others)

        return skip


@torch.no_grad()
def _fill(model: nn.Module, skipped: dict[int, Tensor]) -> None:
    """Values for the `skipped` parameters, and a little noise on the others, from one block.

    Norms that begin at zero get ones: what is behind them would be next to nothing.
    """
    period = 65537  # prime, so that no two rows of a matrix come out alike
    block = torch.randn(2 * period, generator=torch.Generator().manual_seed(0))
    begin = 0
    for name, parameter in model.named_parameters():
        count, fresh = parameter.numel(), parameter.data_ptr() in skipped
        if not count or not parameter.is_floating_point():
            continue
        if parameter.dim() == 1 and name.endswith("weight") and not (fresh or parameter.any()):
            parameter.fill_(1)
        std = (len(parameter) / count) ** 0.5 if fresh and parameter.dim() > 1 else 0.02
        noise = (std * block[begin : begin + period]).to(parameter)
        begin = (begin + count) % period
        flat, whole = parameter.view(-1), count // period * period
        parts = (flat[:whole].view(-1, period), noise), (flat[whole:], noise[: count - whole])
        for part, values in parts:
            # Written once and without copies: touching so much memory is what takes the time.
            part.copy_(values) if fresh else part.add_(values)


def _prepare(name: str) -> None:
    _known(name)
    # timm leaves fused attention off for Swin: on, it is a third faster and 1e-6 apart.
    set_fused_attn(True, experimental=True)


def _random(
    name: str, size: Size | None, arguments: dict[str, Any]
) -> tuple[nn.Module, LoadedWeights]:
    if size is not None and "img_size" not in arguments:
        try:
            model = _create(name, False, {**arguments, "img_size": size})
            return model, LoadedWeights.nothing(name, model)
        except InputError as error:  # a network that takes any size has no such argument
            if not (isinstance(error.__cause__, TypeError) and "img_size" in str(error.__cause__)):
                raise
    model = _create(name, False, arguments)
    resize(name, model, size, arguments.get("img_size"))
    return model, LoadedWeights.nothing(name, model)


def _pretrained(name: str, arguments: dict[str, Any]) -> tuple[nn.Module, LoadedWeights]:
    with record_loads() as loads:
        model = _create(name, True, arguments)
    load = next((load for load in reversed(loads) if load.module is model), None)
    if load is None:
        raise InputError(
            f"pretrained weights of {name} were asked for and nothing was seen being loaded into "
            "it; give a file with --teacher_weights FILE, or --teacher_weights random"
        )
    total = len(model.state_dict())
    loaded = LoadedWeights(
        name,
        _source(name, model, load.file),
        load.file,
        file_sha256(load.file) if load.file else None,
        total - len(load.missing),
        total,
        load.missing,
        load.unexpected,
    )
    heads = tuple(f"{head}." for head in _classifiers(model))
    if any(not tensor.startswith(heads) for tensor in load.missing):
        # timm is lenient about all tensors where only the classes differ.
        raise InputError(f"timm left more than a classifier of {name} at random: {loaded}")
    return model, loaded


def _source(name: str, model: nn.Module, file: str | None) -> str:
    """Where `file` came from, by what it is called: a configuration may name what was not used."""
    hub_id, url = (
        pretrained_config(model).get("hf_hub_id") or "",
        pretrained_config(model).get("url") or "",
    )
    if name.startswith("local-dir:"):
        return name
    path = Path(file or "")
    if hub_id and "models--" + hub_id.partition("@")[0].replace("/", "--") in path.parts:
        return f"pretrained from hub {hub_id}"
    if url and Path(urlparse(url).path).name == path.name:
        return f"pretrained from {url}"
    return "pretrained"


def _from_file(name: str, file: Path, arguments: dict[str, Any]) -> tuple[nn.Module, LoadedWeights]:
    state = read_weights(file)
    model = _create(name, False, arguments)
    heads = _classifiers(model)
    found = match_state(model, state, heads)
    remarks = found.remarks
    if heads and not Mismatch.between(model, found.state, heads):
        weights = [found.state[f"{h}.weight"] for h in heads if f"{h}.weight" in found.state]
        classes = len(weights[0]) if weights else 0
        asked = arguments.get("num_classes")
        if classes != model.num_classes:
            if not classes and asked:
                raise InputError(
                    f"{str(file)!r} has no classifier ({', '.join(heads)}) and num_classes is "
                    f"{asked}: leave num_classes out to build {name} without one"
                )
            model = _create(name, False, {**arguments, "num_classes": classes})
            remarks += (_remark_on_classes(classes, asked),)
    load_weights(model, found.state, str(file))
    total = len(found.state)
    loaded = LoadedWeights(
        name,
        str(file),
        str(file),
        file_sha256(file),
        total,
        total,
        unexpected=found.unexpected,
        remarks=remarks,
    )
    return model, loaded


def _remark_on_classes(classes: int, asked: int | None) -> str:
    but = "" if asked is None else f" and not the {asked} asked for"
    return f"{classes} classes as in the file{but}" if classes else "no classifier, as in the file"


def resize(name: str, model: Any, size: Size | None, built: Any) -> tuple[str, ...]:
    """Make a model that is bound to another size ready for this one; says what was done.

    `built` is the `img_size` that it was built with, if any.

    Raises:
        InputError: it cannot be resized, or not to this size.
    """
    check_size(size)
    bound = _bound_size(model, built)
    if size is None or bound is None or bound == tuple(size):
        return ()
    sizes = f"from {bound[0]}x{bound[1]} to {size[0]}x{size[1]} pixels"
    if not hasattr(model, "set_input_size"):
        raise InputError(
            f"{name} cannot be resized {sizes}, it works at its own size alone: leave the size "
            "out, or take another model"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch's on timm's way to interpolate
            model.set_input_size(img_size=tuple(size))
    except Exception as error:  # of timm's many checks
        raise InputError(
            f"{name} cannot be resized {sizes}: {_reason(error)}; give a size that it takes"
        ) from error
    return (f"resized {sizes}, its positions resampled",)


def _bound_size(model: nn.Module, built: Any) -> Size | None:
    """The one size that `model` takes, None where it takes others too."""
    embeddings = [m for m in model.modules() if isinstance(m, PatchEmbed)]
    if embeddings:
        strict = getattr(embeddings[0], "strict_img_size", True)
        size = embeddings[0].img_size if strict else None
    else:
        fixed = pretrained_config(model).get("fixed_input_size")
        size = (built or pretrained_config(model)["input_size"][-2:]) if fixed else None
    return None if size is None else to_2tuple(size)


def pretrained_config(model: nn.Module) -> dict[str, Any]:
    """timm's configuration of a model, empty for others."""
    found: Any = getattr(model, "pretrained_cfg", None)
    return found or {}


def _classifiers(model: nn.Module) -> tuple[str, ...]:
    """Names of the modules that give the logits."""
    named = pretrained_config(model).get("classifier") or ()
    return (named,) if isinstance(named, str) else tuple(named)


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
        with (
            warnings.catch_warnings(),
            _no_waiting_without_network() if pretrained else nullcontext(),
        ):
            warnings.simplefilter("ignore", UserWarning)  # timm's remarks on its own registry
            model: nn.Module = timm.create_model(name, pretrained=pretrained, **arguments)
    except TypeError as error:
        raise InputError(f"{name} does not take these arguments: {error}") from error
    except Exception as error:
        if not pretrained:
            raise InputError(
                f"{name} cannot be built with {arguments}: {_reason(error)}"
            ) from error
        raise InputError(
            f"the pretrained weights of {name} cannot be had ({_reason(error)}); give a file with "
            "--teacher_weights FILE, or --teacher_weights random to go on without"
        ) from error
    return model


def _reason(error: Exception) -> str:
    said = " ".join(str(error).split()) or type(error).__name__
    return (said if len(said) < 400 else said[:400] + "…").rstrip(".")
