"""The classifiers that OFA-KD gives to the stages of a student."""

import math

from torch import nn

from scalekd.features import MapShape


def build_stage_head(shape: MapShape, *, last: MapShape, classes: int) -> nn.Sequential:
    """Build the classifier of one stage: from a map (N, C, H, W) to logits (N, classes).

    Args:
        shape: Channels, height and width of the stage's map.
        last: Channels, height and width of the last stage's map.
        classes: The number of classes.
    """
    halvings = round(math.log2(max(shape[1] / last[1], shape[2] / last[2], 1)))
    layers: list[nn.Module] = []
    channels = shape[0]
    for _ in range(halvings):
        wider = max(channels, min(2 * channels, last[0]))
        layers.append(separable_convolution(channels, wider, stride=2))
        channels = wider
    if not halvings:
        layers.append(separable_convolution(channels, channels, stride=1))
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)
    )


def separable_convolution(channels: int, out_channels: int, *, stride: int) -> nn.Sequential:
    """Build a depthwise 3x3 and a 1x1 convolution, each followed by BatchNorm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, out_channels, 1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )
