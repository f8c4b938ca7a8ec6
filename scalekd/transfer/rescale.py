"""Maps at other resolutions."""

from typing import Any

from timm.layers import LayerNorm2d
from torch import Tensor, nn


class Rescale(nn.Module):
    """Rescales four maps of one resolution to 4, 2, 1 and 1/2 of it, as for a plain ViT.

    Args:
        channels: of each map.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scales = nn.ModuleList(
            [
                nn.Sequential(
                    nn.ConvTranspose2d(channels, channels, kernel_size=2, stride=2),
                    LayerNorm2d(channels),
                    nn.GELU(),
                    nn.ConvTranspose2d(channels, channels, kernel_size=2, stride=2),
                ),
                nn.ConvTranspose2d(channels, channels, kernel_size=2, stride=2),
                nn.Identity(),
                nn.MaxPool2d(kernel_size=2, stride=2, ceil_mode=True),
            ]
        )

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """Rescale maps (N, channels, H, W)."""
        return [scale(level) for scale, level in zip(self.scales, levels, strict=True)]


def resize_maps(maps: Tensor, size: Any) -> Tensor:
    """Resize maps (N, channels, H, W) to `size` by bilinear interpolation."""
    if maps.shape[2:] == tuple(size):
        return maps
    return nn.functional.interpolate(maps, tuple(size), mode="bilinear", align_corners=False)
