"""Feature pyramids: from a backbone's levels to maps of one width, as torchvision's detectors take
them."""

import math
from collections import OrderedDict

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from scalekd.errors import InputError
from scalekd.transfer.backbone import Backbone
from scalekd.transfer.rescale import Rescale, resize_maps


class FeaturePyramid(nn.Module):
    """A backbone with torchvision's FPN, or, where it has one grid, with a simple feature pyramid.

    A further level is the last one, of which every second token is taken.

    Args:
        backbone: gives the levels.
        width: channels of each map.

    Attributes:
        out_channels: channels of each map.
        names: of the maps that regions are cut from: all but the further one.
        strides: pixels of the image between two tokens of each map, the further one included.

    Raises:
        InputError: a stride is no power of two, from which torchvision could not cut regions.

    Example:
        >>> import timm
        >>> pyramid = FeaturePyramid(Backbone(timm.create_model("test_resnet")), width=8)
        >>> maps = pyramid(torch.zeros(1, 3, 64, 64))
        >>> {name: tuple(found.shape) for name, found in maps.items()}["pool"], pyramid.strides
        ((1, 8, 1, 1), [4, 8, 16, 32, 64])
    """

    def __init__(self, backbone: Backbone, width: int) -> None:
        super().__init__()
        self.backbone, self.out_channels = backbone, width
        if backbone.has_one_grid:
            self.rescale: nn.Module = SimplePyramid(backbone.channels[0], width)
        else:
            self.rescale = FeaturePyramidNetwork(backbone.channels, width)
        self.further = LastLevelMaxPool()
        self.strides = pyramid_strides(backbone)
        self.names = [str(number) for number in range(len(self.strides) - 1)]
        if any(math.frexp(stride)[0] != 0.5 or stride < 1 for stride in self.strides):
            raise InputError(
                f"the backbone has levels of {backbone.strides} pixels a token: a feature pyramid "
                "needs powers of two, and 4 or more of a network with one grid (a ViT of patches "
                "of 14 pixels is rebuilt by --backbone_args '{patch_size: 16}')"
            )

    def forward(self, images: Tensor) -> "OrderedDict[str, Tensor]":
        """Compute maps (N, width, H / stride, W / stride) of images (N, channels, H, W)."""
        levels = self.backbone(images)
        named = self.rescale(OrderedDict(zip(self.names, levels, strict=False)))
        maps, names = self.further(list(named.values()), levels, list(named))
        return OrderedDict(zip(names, maps, strict=True))


def pyramid_strides(backbone: Backbone) -> list[float]:
    """Pixels of the image between two tokens of each map of a backbone's pyramid."""
    strides: list[float] = [*backbone.strides]
    if backbone.has_one_grid:
        strides = [strides[0] / 4, strides[0] / 2, strides[0], strides[0] * 2]
    return [*strides, 2 * strides[-1]]


class SimplePyramid(nn.Module):
    """The simple feature pyramid of ViTDet (arXiv:2203.16527): four scales of a ViT's last map.

    Each is followed by a 1x1 and a 3x3 convolution, both with LayerNorm.

    Args:
        channels: of the map.
        width: channels of each scale.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.scales = Rescale(channels)
        self.outputs = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, width, kernel_size=1, bias=False),
                LayerNorm2d(width),
                nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False),
                LayerNorm2d(width),
            )
            for _ in range(4)
        )

    def forward(self, levels: "OrderedDict[str, Tensor]") -> "OrderedDict[str, Tensor]":
        """Rescale the only map (N, channels, H, W) to 4, 2, 1 and 1/2 of its resolution."""
        (level,) = levels.values()
        maps = self.scales([level] * 4)
        outputs = zip(self.outputs, maps, strict=True)
        return OrderedDict((str(n), output(m)) for n, (output, m) in enumerate(outputs))


class ConcatenatedLevels(nn.Module):
    """A backbone whose levels are upsampled to the largest one and concatenated, for a probe.

    Args:
        backbone: gives the levels.

    Attributes:
        out_channels: of all levels together.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.out_channels = sum(backbone.channels)

    def forward(self, images: Tensor) -> "OrderedDict[str, Tensor]":
        """Compute one map of images (N, channels, H, W)."""
        levels = self.backbone(images)
        maps = [resize_maps(level, levels[0].shape[2:]) for level in levels]
        return OrderedDict([("0", torch.cat(maps, dim=1))])
