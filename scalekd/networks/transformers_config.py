"""What the files beside a transformers model tell that its tensors do not.

config.json has the names of the classes, the number of attention heads and the activation;
preprocessor_config.json has the normalisation of the images.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data import ImageNetInfo, infer_imagenet_subset
from timm.layers import Mlp
from torch import Tensor
from torch.nn import functional

from scalekd.errors import InputError, one_line
from scalekd.networks.input_config import input_config, pretrained_config, set_statistics
from scalekd.reading import is_number, is_whole, parse_json, read_text

MAX_CONFIG_BYTES = 2**25
"""Largest JSON file of a model: it may have the names and descriptions of many classes."""

IN_PYTHON = (
    "load it with transformers in Python and give ScaleKD the module, as "
    "examples/transformers_teacher.py does"
)
"""What messages propose for a model that timm does not have."""

_tanh_gelu = partial(functional.gelu, approximate="tanh")

ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "gelu": (functional.gelu, "gelu"),
    "gelu_fast": (_tanh_gelu, "gelu_tanh"),
    "gelu_new": (_tanh_gelu, "gelu_tanh"),
    "gelu_pytorch_tanh": (_tanh_gelu, "gelu_tanh"),
    "quick_gelu": (lambda x: x * torch.sigmoid(1.702 * x), "quick_gelu"),
    "relu": (functional.relu, "relu"),
    "silu": (functional.silu, "silu"),
    "swish": (functional.silu, "silu"),
}
"""Activations by transformers' names: what they compute, and timm's names."""


@dataclass(frozen=True)
class TransformersConfig:
    """What the files tell; None and empty where they do not.

    Attributes:
        source: The folder.
        label_names: Names of the classes, by label; empty where they are only LABEL_0, LABEL_1 ...
        heads: Heads of the attention in each stage, or one number for all.
        activation: transformers' name of the activation.
        mean, std: Of each channel, for images with values from 0 to 1.
    """

    source: Path
    label_names: tuple[str, ...] = ()
    heads: int | tuple[int, ...] | None = None
    activation: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def is_transformers_folder(folder: Path) -> bool:
    """Return whether `folder` has the config.json of a model of transformers, not of timm."""
    try:
        text = (folder / "config.json").read_text(errors="replace")
    except OSError:
        return False
    is_other = re.search('"(model_type|transformers_version)"', text)
    return '"architecture"' not in text and is_other is not None


def why_not_timm(folder: Path) -> str:
    """Return a message about a transformers folder that is given in place of a timm model's."""
    return (
        f"{str(folder)!r} is a model of transformers, not of timm: name its architecture as timm "
        f"does and give the folder as its weights, or {IN_PYTHON}"
    )


def why_not_translated(folder: Path) -> str:
    """Return a message about a transformers folder whose tensors have no names in timm."""
    return (
        f"{str(folder)!r} is a model of transformers with no tensor "
        "embeddings.patch_embeddings.projection.weight, so it is not a ViT, DeiT, Swin, DINOv2, "
        f"DINOv3 or SigLIP: {IN_PYTHON}"
    )


def read_transformers_config(folder: Path) -> TransformersConfig:
    """Read config.json and preprocessor_config.json of a folder, if they are there.

    Raises:
        InputError: a file cannot be read, or has a mean or standard deviation that is none.
    """
    if not is_transformers_folder(folder):
        return TransformersConfig(folder)
    config = _read_json(folder / "config.json")
    vision = config.get("vision_config")
    vision = vision if isinstance(vision, dict) else config
    heads = vision.get("num_attention_heads", vision.get("num_heads"))
    if isinstance(heads, list) and all(map(is_whole, heads)):
        heads = tuple(heads)
    activation = vision.get("hidden_act")
    mean, std = _read_statistics(folder / "preprocessor_config.json")
    return TransformersConfig(
        source=folder,
        label_names=_label_names(config.get("id2label")),
        heads=heads if is_whole(heads) or isinstance(heads, tuple) else None,
        activation=activation if isinstance(activation, str) else None,
        mean=mean,
        std=std,
    )


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = parse_json(read_text(file, repr(str(file)), limit=MAX_CONFIG_BYTES))
    except ValueError as error:
        raise InputError(f"{str(file)!r} cannot be read as JSON: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise InputError(f"{str(file)!r} holds no settings by name")
    return content


def _label_names(id2label: object) -> tuple[str, ...]:
    if not isinstance(id2label, dict):
        return ()
    names = tuple(str(id2label.get(str(label), "")) for label in range(len(id2label)))
    is_known = all(names) and len(set(names)) == len(names)
    return names if is_known and not all(re.match(r"LABEL_\d+$", n) for n in names) else ()


def _read_statistics(
    file: Path,
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Return the mean and standard deviation by which the processor normalises images."""
    if not file.exists():
        return None, None
    config = _read_json(file)
    mean, std = config.get("image_mean"), config.get("image_std")
    if not config.get("do_normalize", True):
        mean, std = [0.0], [1.0]
    if mean is None or std is None:
        return None, None
    scale: Any = config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1
    are_lists = isinstance(mean, list) and isinstance(std, list) and len(mean) == len(std) > 0
    are_numbers = are_lists and all(map(is_number, [*mean, *std])) and min(std) > 0
    if not (are_numbers and is_number(scale, least=1e-9)):
        raise InputError(
            f"{str(file)!r} has the image_mean {mean!r}, image_std {std!r} and rescale_factor "
            f"{scale!r}, which cannot normalise images: correct the file, or take it away and give "
            "the mean and standard deviation as options"
        )
    # A processor multiplies pixels from 0 to 255 by the factor first.
    white = 1.0 if abs(255 * scale - 1) < 1e-6 else 255 * scale
    return tuple(value / white for value in mean), tuple(value / white for value in std)


def apply_config(config: TransformersConfig, name: str, model: Any) -> tuple[str, ...]:
    """Write class names and normalisation into the timm configuration of a model.

    Args:
        config: beside the weights.
        name: of the model, for messages.
        model: of timm, with the number of classes in the weights; it is changed in place.

    Returns:
        Remarks on what was used.

    Raises:
        InputError: the model has other attention heads or another activation than the weights,
            which no tensor shows.
    """
    _check_heads(config, name, model)
    remarks = [*_check_activation(config, name, model)]
    names = config.label_names
    if names and len(names) == model.num_classes and not _are_imagenets(names, model):
        model.pretrained_cfg = {**pretrained_config(model), "label_names": list(names)}
        remarks.append(f"its classes {names[0]} ... {names[-1]} are named by config.json")
    before = input_config(model)
    set_statistics(model, mean=config.mean, std=config.std)
    after = input_config(model)
    if not np.allclose((before.mean, before.std), (after.mean, after.std), atol=1e-4):
        mean, std = ("[" + ", ".join(f"{v:.4g}" for v in s) + "]" for s in (after.mean, after.std))
        remarks.append(
            f"its images have the mean {mean} and standard deviation {std} of "
            "preprocessor_config.json"
        )
    return tuple(remarks)


def _are_imagenets(names: tuple[str, ...], model: Any) -> bool:
    """Return whether the names are those that timm knows already, together with the synsets."""
    subset = infer_imagenet_subset(model)
    if not subset:
        return False
    known = ImageNetInfo(subset)
    same = sum(name == known.index_to_description(label) for label, name in enumerate(names))
    return bool(same > len(names) / 2)


def _check_heads(config: TransformersConfig, name: str, model: Any) -> None:
    if config.heads is None:
        return
    expected = config.heads if isinstance(config.heads, tuple) else (config.heads,)
    blocks = (m for n, m in model.named_modules() if n.endswith(".attn"))
    actual = tuple(dict.fromkeys(m.num_heads for m in blocks if hasattr(m, "num_heads")))
    if actual and actual != tuple(dict.fromkeys(expected)):
        counts = [" ".join(map(str, heads)) for heads in (expected, actual)]
        raise InputError(
            f"config.json in {str(config.source)!r} says {counts[0]} attention heads, and {name} "
            f"has {counts[1]}: name the architecture of the weights, or build this one with other "
            "num_heads (in teacher_args or student_args)"
        )


def _check_activation(config: TransformersConfig, name: str, model: Any) -> tuple[str, ...]:
    known = ACTIVATIONS.get(config.activation or "")
    mlp = next((m for m in model.modules() if isinstance(m, Mlp)), None)
    if known is None or mlp is None:  # gated layers have one of their own in both libraries
        return ()
    function, timm_name = known
    points = torch.linspace(-4, 4, 101)
    difference = float((function(points) - mlp.act(points)).abs().max())
    if difference < 1e-5:
        return ()
    text = (
        f"config.json in {str(config.source)!r} says the activation {config.activation}, and "
        f"{name} has {type(mlp.act).__name__}"
    )
    remedy = f"act_layer={timm_name} (in teacher_args or student_args)"
    if difference > 1e-3:  # between GELU and its approximation, which timm's SigLIP has not always
        raise InputError(
            f"{text}: name the architecture of the weights, or build this one with {remedy}"
        )
    return (f"{text}, at most {difference:.1g} apart: exact with {remedy}",)
