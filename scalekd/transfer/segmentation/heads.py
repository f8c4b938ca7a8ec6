"""Heads: from a backbone's levels to logits for each pixel. UPerNet's parts are transformers'."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scalekd.errors import InputError
from scalekd.transfer.backbone import Backbone
from scalekd.transfer.rescale import Rescale, resize_maps


@dataclass(frozen=True)
class HeadOutput:
    """What a head gives.

    Attributes:
        logits: (N, classes, height, width) at the resolution of the largest level.
        auxiliary: those of the auxiliary head at that of its level; None without one, and in eval
            mode.
    """

    logits: Tensor
    auxiliary: Tensor | None = None


class LinearHead(nn.Module):
    """One 1x1 convolution on the levels, which are upsampled to the largest and concatenated.

    On a frozen backbone this is the linear probe: a norm of the levels with its own scale and shift
    computes nothing that the convolution could not.

    Args:
        channels: of each level.
        classes: number of classes.
    """

    def __init__(self, *, channels: list[int], classes: int) -> None:
        super().__init__()
        self.classifier = nn.Conv2d(sum(channels), classes, kernel_size=1)

    def forward(self, levels: list[Tensor]) -> HeadOutput:
        """Compute the logits of `levels`, maps (N, channels, H, W), the largest first."""
        size = levels[0].shape[2:]
        maps = [resize_maps(level, size) for level in levels]
        return HeadOutput(self.classifier(torch.cat(maps, dim=1)))


class UperNet(nn.Module):
    """UPerNet (arXiv:1807.10221) with an auxiliary FCN head on the level before the last.

    Pyramid pooling at 1, 2, 3 and 6, lateral convolutions, and a fusion of all levels.

    Args:
        channels: of each level.
        has_one_grid: whether all levels have one resolution; they are then rescaled to a pyramid.
        classes: number of classes.
        width: channels inside; the auxiliary head has half as many.
        has_auxiliary: whether there is an auxiliary head.

    Raises:
        InputError: transformers is not installed.
    """

    def __init__(
        self,
        *,
        channels: list[int],
        has_one_grid: bool,
        classes: int,
        width: int,
        has_auxiliary: bool,
    ) -> None:
        super().__init__()
        upernet = _import_upernet()
        config = upernet.UperNetConfig(
            hidden_size=width,
            num_labels=classes,
            pool_scales=[1, 2, 3, 6],
            auxiliary_channels=width // 2,
            auxiliary_in_channels=None,
            auxiliary_num_convs=1,
            auxiliary_concat_input=False,
        )
        self.pyramid = Rescale(channels[0]) if has_one_grid else None
        self.head = upernet.UperNetHead(config, channels)
        self.auxiliary = (
            upernet.UperNetFCNHead(config, channels, in_index=len(channels) - 2)
            if has_auxiliary
            else None
        )

    def forward(self, levels: list[Tensor]) -> HeadOutput:
        """Compute the logits of `levels`, maps (N, channels, H, W), the largest first."""
        if self.pyramid is not None:
            levels = self.pyramid(levels)
        auxiliary = None
        if self.auxiliary is not None and self.training:
            auxiliary = self.auxiliary(levels)
        return HeadOutput(self.head(levels), auxiliary)


def build_head(
    kind: str, backbone: Backbone, *, classes: int, width: int, has_auxiliary: bool
) -> LinearHead | UperNet:
    """Build the head "linear" or "upernet" for a backbone; see the classes."""
    if kind == "linear":
        return LinearHead(channels=backbone.channels, classes=classes)
    return UperNet(
        channels=backbone.channels,
        has_one_grid=backbone.has_one_grid,
        classes=classes,
        width=width,
        has_auxiliary=has_auxiliary,
    )


def _import_upernet() -> Any:
    try:
        from transformers.models.upernet import modeling_upernet
    except ImportError as error:
        raise InputError(
            "the head upernet needs transformers, which is not installed: pip install "
            "'scalekd[transfer]', or take --head linear"
        ) from error
    return modeling_upernet
