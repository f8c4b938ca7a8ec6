"""The images that a model takes: channels, size and normalisation; resizing a model."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import timm.data
import torch
from timm.layers import PatchEmbed, to_2tuple
from torch import Tensor, nn

from scalekd.errors import InputError, one_line

MAX_SIDE = 4096
"""Largest height and width of images, in pixels."""

Size = tuple[int, int]
"""Height and width in pixels."""

Interpolation = Literal["bilinear", "bicubic"]
"""How an image is resized."""

DEFAULT_CROP = 0.875
"""Share of a validation image's sides that is looked at, unless a model or a recipe says another:
224 of 256 pixels."""


@dataclass(frozen=True)
class InputConfig:
    """The images that a model takes, and how validation images are made out of pictures.

    Args:
        channels: Number of channels.
        size: (height, width) in pixels.
        mean: Mean of each channel, for images x with values in [0, 1]: normalised images are
            (x - mean) / std.
        std: Standard deviation of each channel, as `mean`.
        crop: Share of a validation image's sides that is kept: the image is resized to size / crop.
        crop_mode: timm's: "center" keeps the aspect ratio and crops from the centre, "squash" gives
            the aspect ratio up, "border" keeps it and adds borders.
        interpolation: Interpolation with which validation images are resized.
    """

    channels: int
    size: Size
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: float = DEFAULT_CROP
    crop_mode: str = "center"
    interpolation: str = "bilinear"


def input_config(model: nn.Module, size: Size | None = None) -> InputConfig:
    """Return the input that `model` was built and trained for, as timm's configuration has it.

    Args:
        model: a timm model.
        size: (height, width) that the user chose; default the size that the model is bound to
            (by a ViT's position embeddings), else the size in its timm configuration.

    Raises:
        InputError: `size` is not two integers.
    """
    check_size(size)
    config = timm.data.resolve_model_data_config(model)
    channels, bound_size = _first_layer(model)
    if channels is None:
        channels = config["input_size"][0]
    size = tuple(size or bound_size or config["input_size"][-2:])
    mean, std = tuple(config["mean"]), tuple(config["std"])
    if len(mean) != channels:
        # timm keeps three-channel statistics if the first layer was built for another number.
        mean = (sum(mean) / len(mean),) * channels
        std = (sum(std) / len(std),) * channels
    return InputConfig(
        channels=channels,
        size=size,
        mean=mean,
        std=std,
        crop=config["crop_pct"],
        crop_mode=config["crop_mode"],
        interpolation=config["interpolation"],
    )


def set_statistics(
    model: Any, *, mean: Sequence[float] | None, std: Sequence[float] | None
) -> None:
    """Write the mean and standard deviation of a model's images into its timm configuration.

    Args:
        model: a timm model.
        mean, std: of each channel; None leaves the model's own.
    """
    changes = {"mean": mean, "std": std}
    changes = {name: tuple(values) for name, values in changes.items() if values is not None}
    if changes:
        model.pretrained_cfg = {**pretrained_config(model), **changes}


def check_statistics(
    prefix: str, channels: int, *, mean: Sequence[float] | None, std: Sequence[float] | None
) -> None:
    """Raise InputError where `prefix`mean or `prefix`std is not one number for each channel."""
    for name, values in (("mean", mean), ("std", std)):
        if values is not None and len(values) != channels:
            raise InputError(
                f"{prefix}{name} is {list(values)} for images of {channels} channels: give one "
                "number a channel"
            )


def normalize(pixels: Tensor, images: InputConfig) -> Tensor:
    """Normalise pixels (N, channels, H, W) with values from 0 to 1 as a model takes them."""
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (images.mean, images.std))
    return (pixels - mean) / std


def normalize_bytes(images: Tensor, config: InputConfig) -> Tensor:
    """Normalise images (..., channels, H, W) of bytes; others are normalised already and returned.

    The arithmetic is that of torchvision's transforms, so on a CPU the result is bit-identical.
    """
    if images.dtype != torch.uint8:
        return images
    mean, std = (
        torch.tensor(values, device=images.device).view(-1, 1, 1)
        for values in (config.mean, config.std)
    )
    return images.to(torch.float32).div_(255).sub_(mean).div_(std)


def renormalization(source: InputConfig, target: InputConfig) -> tuple[Tensor, Tensor]:
    """Return the scale and shift from images normalised as `source` to `target`'s normalisation.

    With means m, m' and standard deviations s, s' of source and target, the pixels are
    `s * x + m`, so `x' = (s * x + m - m') / s' = scale * x + shift`.

    Returns:
        Scale and shift, (1, channels, 1, 1) each.
    """

    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor(values).view(1, -1, 1, 1)

    std = column(target.std)
    return column(source.std) / std, (column(source.mean) - column(target.mean)) / std


def check_size(size: object) -> None:
    """Raise InputError unless `size` is None or (height, width)."""
    is_pair = isinstance(size, Sequence) and [type(side) for side in size] == [int, int]
    if size is not None and not is_pair:
        raise InputError(f"the size of the images is {size!r}: it must be (height, width)")


def pretrained_config(model: nn.Module) -> dict[str, Any]:
    """Return timm's configuration of a model; an empty one if timm did not build it."""
    config: Any = getattr(model, "pretrained_cfg", None)
    return config or {}


def resize(
    name: str, model: Any, size: Size | None, built_size: int | Size | None
) -> tuple[str, ...]:
    """Resize a model that is bound to one image size, in place.

    Args:
        name: of the model, for messages.
        model: a timm model; one that accepts any size is left unchanged.
        size: (height, width) that it shall work at; None leaves it unchanged.
        built_size: the `img_size` that the model was built with, if any.

    Returns:
        One remark on what was resized, or none.

    Raises:
        InputError: the model cannot be resized, or not to this size.
    """
    check_size(size)
    bound_size = _bound_size(model, built_size)
    if size is None or bound_size is None or bound_size == tuple(size):
        return ()
    sizes = f"from {bound_size[0]}x{bound_size[1]} to {size[0]}x{size[1]} pixels"
    if not hasattr(model, "set_input_size"):
        raise InputError(
            f"{name} cannot be resized {sizes}, because it works only at its own size: drop the "
            "size, or choose another model"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch's, on how timm interpolates
            model.set_input_size(img_size=tuple(size))
    except Exception as error:  # timm checks sizes in many places, with different errors
        raise InputError(
            f"{name} cannot be resized {sizes}: {one_line(error)}; give a size that it accepts"
        ) from error
    return (f"resized {sizes}, position embeddings resampled",)


def _bound_size(model: nn.Module, built_size: int | Size | None) -> Size | None:
    """Return the one image size that `model` accepts, or None if it accepts others, too."""
    embeddings = [m for m in model.modules() if isinstance(m, PatchEmbed)]
    if embeddings:
        strict = getattr(embeddings[0], "strict_img_size", True)
        size = embeddings[0].img_size if strict else None
    else:
        fixed = pretrained_config(model).get("fixed_input_size")
        size = (built_size or pretrained_config(model)["input_size"][-2:]) if fixed else None
    return None if size is None else to_2tuple(size)


def _first_layer(model: nn.Module) -> tuple[int | None, Size | None]:
    """Return the first convolution's input channels and its patch embedding's image size.

    Both are None if there is no convolution, or the images are rearranged before they reach it.
    """
    convolution = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    rearranged = any(
        kind in type(m).__name__ for m in model.modules() for kind in ("SpaceToDepth", "Dct")
    )
    if convolution is None or rearranged:
        return None, None
    embeddings = (m for m in model.modules() if isinstance(m, PatchEmbed))
    first = next((e for e in embeddings if convolution in list(e.modules())), None)
    return convolution.in_channels, first.img_size if first else None
