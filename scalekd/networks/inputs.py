"""The input that a model wants: channels, size, normalisation."""

from dataclasses import dataclass

import timm.data
from timm.layers import PatchEmbed
from torch import nn

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
    """
    convolution = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if convolution is None:
        raise InputError(f"{type(model).__name__} has no convolution to read image channels from")
    channels = convolution.in_channels
    config = timm.data.resolve_model_data_config(model)
    embeddings = [m for m in model.modules() if isinstance(m, PatchEmbed)]
    bound = embeddings[0].img_size if embeddings else None
    if size is None:
        size = tuple(bound or config["input_size"][-2:])
    mean, std = tuple(config["mean"]), tuple(config["std"])
    if len(mean) != channels:
        # timm keeps the three-channel statistics of a model whose first layer was made smaller.
        mean = (sum(mean) / len(mean),) * channels
        std = (sum(std) / len(std),) * channels
    return InputConfig(channels, size, mean, std)
