"""Backbones: feature maps of an exported student, or of any timm model, at several levels.

timm's `FeatureGetterNet` gives the maps as (N, C, H, W) for every family. Networks without
BatchNorm (Swin, ConvNeXt, ViT) end their stages in a sum without a norm: each of their levels gets
one LayerNorm, without which the levels of such backbones are not comparable.
"""

import inspect
import math
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from timm.layers import LayerNorm2d
from timm.models._features import FeatureGetterNet
from timm.models.hrnet import HighResolutionNet
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from scalekd.errors import InputError
from scalekd.networks import InputConfig, build_model, input_config
from scalekd.networks.build import build_without_weights
from scalekd.networks.input_config import Size
from scalekd.networks.pretrained import LoadedWeights
from scalekd.networks.transformers_config import MAX_CONFIG_BYTES
from scalekd.reading import read_mapping

TIMM = "timm:"

LEVELS = 4
"""Levels of a backbone that heads use, at most; of a plain ViT so many of its blocks."""


@dataclass(frozen=True)
class BackboneSpec:
    """What builds a backbone without the folder that it came from.

    Attributes:
        architecture: timm's name.
        arguments: of `timm.create_model`.
        size: (height, width) of the crops that it is built for, in pixels.
        mean: of each channel of its images.
        std: of each channel of its images.
    """

    architecture: str
    arguments: dict[str, Any]
    size: tuple[int, int]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> "BackboneSpec":
        """The spec that `dataclasses.asdict` made `plain` from.

        Raises:
            TypeError, ValueError, KeyError: it is not such a one.
        """
        inner = dict(plain)
        height, width = inner.pop("size")
        mean, std = (tuple(map(float, inner.pop(name))) for name in ("mean", "std"))
        return cls(**inner, size=(int(height), int(width)), mean=mean, std=std)

    def build(self) -> nn.Module:
        """Build the model with random weights."""
        flexibility = _flexibility(self.architecture, self.arguments)
        return flexibility.build(self.architecture, "random", self.size, self.arguments)[0]


@dataclass(frozen=True)
class OpenedBackbone:
    """A timm model with its weights, and what it takes.

    Attributes:
        model: the complete model.
        spec: what builds it again.
        weights: what was loaded into it.
        input: channels, crop size and normalisation of its images: the student's own.
    """

    model: nn.Module
    spec: BackboneSpec
    weights: LoadedWeights
    input: InputConfig


def open_backbone(
    backbone: str, weights: str, arguments: dict[str, Any], size: Size
) -> OpenedBackbone:
    """Open the model that is to be a backbone.

    Args:
        backbone: the folder of an exported student, a run folder, or timm:NAME.
        weights: "pretrained", "random" or a file; see `build_model`.
        arguments: further ones of `timm.create_model`.
        size: (height, width) of the training crops in pixels.

    Raises:
        InputError: there is no such model, it cannot be built for this size, or it takes neither
            RGB nor grey images.
    """
    name, architecture, own = _find_model(backbone)
    given = {**own, **arguments}
    flexibility = _flexibility(architecture, given)
    model, loaded = flexibility.build(name, weights, size, arguments)
    images = replace(input_config(model), size=size)
    if images.channels not in (1, 3):
        raise InputError(
            f"the backbone {backbone!r} takes images of {images.channels} channels, and images "
            "with label maps are read as RGB (3) or grey (1): take a student of 3 or 1 channels"
        )
    if flexibility.sized:  # built for the crops, not for the size that the folder was written with
        given.pop("img_size", None)
    if images.channels != 3:  # which an older timm did not write
        given["in_chans"] = images.channels
    spec = BackboneSpec(
        architecture=architecture, arguments=given, size=size, mean=images.mean, std=images.std
    )
    return OpenedBackbone(model=model, spec=spec, weights=loaded, input=images)


def _find_model(backbone: str) -> tuple[str, str, dict[str, Any]]:
    """Name for `build_model`, timm's architecture, and the arguments that an exported one has."""
    if backbone.startswith(TIMM):
        name = backbone.removeprefix(TIMM)
        return name, name, {}
    folder = Path(backbone)
    if (folder / "student" / "config.json").is_file():
        folder = folder / "student"
    if not folder.is_dir():
        raise InputError(
            f"no folder {backbone!r}; --backbone takes the folder of an exported student, or "
            "timm:NAME for a model of timm's"
        )
    build_without_weights(f"local-dir:{folder}")  # refuses what is no folder of a timm model
    file = folder / "config.json"
    config = read_mapping(file, repr(str(file)), limit=MAX_CONFIG_BYTES)
    own = config.get("model_args")
    return f"local-dir:{folder}", config["architecture"], own if isinstance(own, dict) else {}


@dataclass(frozen=True)
class _Flexibility:
    """How a timm model is built so that it takes images of any size, as far as it can.

    Attributes:
        arguments: of `timm.create_model` that free it from its size.
        sized: whether it must be built for the crops' size, because nothing frees it.
    """

    arguments: dict[str, bool]
    sized: bool

    def build(
        self, name: str, weights: str, size: Size, arguments: dict[str, Any]
    ) -> tuple[nn.Module, LoadedWeights]:
        """Build the model for crops of `size`; see `build_model`."""
        if self.sized:
            return build_model(name, weights, size, **arguments)
        model: Any
        model, loaded = build_model(name, weights, **{**self.arguments, **arguments})
        if "dynamic_img_size" in self.arguments and hasattr(model, "set_input_size"):
            # Position embeddings are resampled once for the crops, and for other images each time.
            cell = max(info["reduction"] for info in model.feature_info)
            model.set_input_size(img_size=tuple(math.ceil(side / cell) * cell for side in size))
        return model, loaded


def _flexibility(architecture: str, arguments: dict[str, Any]) -> _Flexibility:
    """Whether a model can be freed from its size is in its constructor's signature.

    timm's Swins compute their masks for each image if they are asked to, and its ViTs interpolate
    their position embeddings.
    """
    model = build_without_weights(architecture, **arguments)
    known = inspect.signature(type(model).__init__).parameters
    if "strict_img_size" in known:
        return _Flexibility({"strict_img_size": False}, sized=False)
    if "dynamic_img_size" in known:
        return _Flexibility({"dynamic_img_size": True}, sized=False)
    return _Flexibility({}, sized=True)


class Backbone(nn.Module):
    """Feature maps of a timm model at its levels.

    Args:
        model: a timm model, which loses its classifier and what is after its last level.
        frozen: whether the model is used as it is, in eval mode and without gradients; the norms of
            the levels are trained nevertheless.
        frozen_stages: of a model that is trained, so many of its first levels are not, nor is what
            comes before them.
        frozen_batchnorm: whether BatchNorm uses its stored statistics and is not trained.
        blocks: levels of a model with a single resolution; the last of them is its last block.

    Attributes:
        channels: of each level.
        strides: pixels of the image between two tokens of each level.

    Raises:
        InputError: the model has no feature maps, or too few blocks.

    Example:
        >>> import timm, torch
        >>> backbone = Backbone(timm.create_model("test_resnet"))
        >>> [tuple(level.shape) for level in backbone(torch.zeros(1, 3, 64, 64))][-1]
        (1, 96, 2, 2)
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        frozen: bool = False,
        frozen_stages: int = 0,
        frozen_batchnorm: bool = False,
        blocks: int = LEVELS,
    ) -> None:
        super().__init__()
        infos = getattr(model, "feature_info", None)
        if not infos or not hasattr(model, "forward_intermediates"):
            raise InputError(f"{type(model).__name__} has no feature maps: take another backbone")
        indices = choose_levels([info["reduction"] for info in infos], blocks)
        has_batchnorm = any(isinstance(module, _BatchNorm) for module in model.modules())
        self.channels = [int(infos[index]["num_chs"]) for index in indices]
        self.strides = [int(infos[index]["reduction"]) for index in indices]
        self.frozen, self.frozen_batchnorm = frozen, frozen_batchnorm
        exempt = getattr(model, "no_weight_decay", set)
        self._without_decay = {f"levels.model.{name}" for name in exempt()}
        self.levels = FeatureGetterNet(model, out_indices=indices, norm=False)
        self.norms = nn.ModuleList(
            nn.Identity() if has_batchnorm else LayerNorm2d(width) for width in self.channels
        )
        if frozen:
            self.levels.requires_grad_(False)
        if frozen_stages:
            names = [infos[index]["module"] for index in indices]
            self._freeze_stages([f"model.{name}." for name in names], frozen_stages)
        if frozen_batchnorm:
            for module in self._batchnorms():
                module.requires_grad_(False)

    def _freeze_stages(self, prefixes: list[str], stages: int) -> None:
        """Freeze what is made before and in the last of the first `stages` levels."""
        if stages >= len(prefixes):
            raise InputError(
                f"frozen_stages is {stages} and the backbone has {len(prefixes)} levels: give a "
                "smaller number, or --frozen true"
            )
        modules = list(self.levels.named_modules(remove_duplicate=False))
        prefix = prefixes[stages - 1]
        # The module that makes a level may have no parameters, as a ReLU of VGG.
        found = [n for n, (name, _) in enumerate(modules) if f"{name}.".startswith(prefix)]
        network: Any = self.levels.model
        if not found or isinstance(network, HighResolutionNet):  # its levels are not its stages
            raise InputError(
                f"frozen_stages is {stages}, and timm does not say which modules of a "
                f"{type(network).__name__} make its levels: give 0, or --frozen true"
            )
        last = found[-1]
        for _, module in modules[: last + 1]:
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)

    def _batchnorms(self) -> list[nn.Module]:
        return [module for module in self.levels.modules() if isinstance(module, _BatchNorm)]

    @property
    def has_one_grid(self) -> bool:
        """Whether all levels have the same size, as those of a plain ViT."""
        return len(set(self.strides)) == 1

    def forward(self, images: Tensor) -> list[Tensor]:
        """Compute the levels of images (N, channels, H, W), normalised as the model takes them.

        Images are padded with zeros, the mean colour, to a multiple of the largest stride.

        Returns:
            Maps (N, channels, H / stride, W / stride), the largest first.
        """
        cell = max(self.strides)
        height, width = images.shape[2:]
        images = nn.functional.pad(images, (0, -width % cell, 0, -height % cell))
        with torch.no_grad() if self.frozen else nullcontext():
            levels = self.levels(images)
        return [norm(level) for norm, level in zip(self.norms, levels, strict=True)]

    def padded_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of images of `size` after padding."""
        cell = max(self.strides)
        height, width = (math.ceil(side / cell) * cell for side in size)
        return height, width

    def train(self, mode: bool = True) -> "Backbone":
        """Set the mode; a frozen model stays in eval mode."""
        super().train(mode)
        if self.frozen:
            self.levels.eval()
        elif self.frozen_batchnorm:
            for module in self._batchnorms():
                module.eval()
        return self

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that timm's optimizers should not decay."""
        return self._without_decay & {name for name, _ in self.named_parameters()}


def choose_levels(reductions: list[int], blocks: int = LEVELS) -> list[int]:
    """The indices of the feature maps that are a backbone's levels.

    Args:
        reductions: pixels of the image between two tokens of each feature map, in order.
        blocks: levels of a network with a single resolution.

    Returns:
        Of a network with several resolutions the last map of each, at most the `LEVELS` smallest;
        of one with a single resolution the last block of each of `blocks` equal parts.

    Raises:
        InputError: a network with a single resolution has fewer blocks than levels.

    Example:
        >>> choose_levels([2, 4, 8, 16, 32]), choose_levels([16] * 12)
        ([1, 2, 3, 4], [2, 5, 8, 11])
    """
    last = {reduction: index for index, reduction in enumerate(reductions)}
    if len(last) > 1:
        return sorted(last.values())[-LEVELS:]
    depth = len(reductions)
    if depth < blocks:
        raise InputError(
            f"the backbone has one resolution and {depth} blocks: {blocks} or more are needed"
        )
    return [depth * part // blocks - 1 for part in range(1, blocks + 1)]
