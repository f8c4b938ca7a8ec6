"""The input that a model wants: channels, size, normalisation."""

from collections.abc import Sequence
from dataclasses import dataclass

import timm.data
import torch
from timm.layers import PatchEmbed
from torch import Tensor, nn

from scalekd.errors import InputError


@dataclass(frozen=True)
class InputConfig:
    """Channels, (height, width), and the mean and standard deviation of each channel."""

    channels: int
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def input_config(model: nn.Module, size: tuple[int, int] | None = None) -> InputConfig:
    """What `model` was made and trained for; `size` where the user says another one.

    The size is the one that the model is bound to (a ViT's positions), else its configuration's.

    Raises:
        InputError: `size` is not two numbers.
    """
    check_size(size)
    config = timm.data.resolve_model_data_config(model)
    channels, bound = _first_layer(model)
    if channels is None:
        channels = config["input_size"][0]
    size = tuple(size or bound or config["input_size"][-2:])
    mean, std = tuple(config["mean"]), tuple(config["std"])
    if len(mean) != channels:
        # timm keeps the three-channel statistics of a model whose first layer was made smaller.
        mean = (sum(mean) / len(mean),) * channels
        std = (sum(std) / len(std),) * channels
    return InputConfig(channels, size, mean, std)


def renormalization(given: InputConfig, wanted: InputConfig) -> tuple[Tensor, Tensor]:
    """Scale and shift, (1, channels, 1, 1), that make images normalised as `given` as `wanted`."""

    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor(values).view(1, -1, 1, 1)

    std = column(wanted.std)
    return column(given.std) / std, (column(given.mean) - column(wanted.mean)) / std


def check_size(size: object) -> None:
    """InputError unless it is None or (height, width)."""
    pair = isinstance(size, Sequence) and [type(side) for side in size] == [int, int]
    if size is not None and not pair:
        raise InputError(f"the size of the images is {size!r}: it must be (height, width)")


def _first_layer(model: nn.Module) -> tuple[int | None, tuple[int, int] | None]:
    """Channels that the first convolution takes, and the image size that its embedding is bound to.

    None where the images are rearranged before they reach it, or there is none.
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
