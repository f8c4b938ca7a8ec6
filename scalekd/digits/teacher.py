"""The packaged teacher: a Swin of half a million parameters for the 32x32 digits.

It is timm's SwinTransformer with another stem: a Swin this narrow learns the clutter far better
through three overlapping convolutions than through timm's single patch convolution. So it is also
an example of a teacher that no timm name builds: any module will do that has timm's
`forward_intermediates` and `forward_head`.
"""

from pathlib import Path
from typing import Any

import timm
from safetensors.torch import load_file
from timm.models import register_model
from timm.models.swin_transformer import SwinTransformer
from torch import nn

from scalekd.digits.images import CLASSES, MEAN, SIZE, STD

EMBED = 64
WEIGHTS = Path(__file__).with_name("teacher.safetensors")


def build_digits_teacher(**arguments: Any) -> SwinTransformer:
    """Build the untrained teacher: (N, 1, 32, 32) -> stages of 64x8x8 and 128x4x4 -> 10 logits."""
    model: SwinTransformer = timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=SIZE,
        in_chans=1,
        num_classes=CLASSES,
        window_size=4,
        embed_dim=EMBED,
        depths=(2, 2),
        num_heads=(4, 8),
        drop_path_rate=0.0,
        pretrained_cfg_overlay={"mean": (MEAN,), "std": (STD,), "input_size": (1, SIZE, SIZE)},
        **arguments,
    )
    model.patch_embed.proj = nn.Sequential(
        nn.Conv2d(1, EMBED // 2, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(EMBED // 2),
        nn.ReLU(inplace=True),
        nn.Conv2d(EMBED // 2, EMBED, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(EMBED),
        nn.ReLU(inplace=True),
        nn.Conv2d(EMBED, EMBED, 3, padding=1),
    )
    return model


@register_model  # type: ignore[untyped-decorator]
def scalekd_digits_swin(pretrained: bool = False, **arguments: Any) -> SwinTransformer:
    """Build the teacher by name: importing this module registers the name with timm."""
    # timm passes its own options to every entry point, as None where they are not set.
    model = build_digits_teacher(**{k: v for k, v in arguments.items() if v is not None})
    if pretrained:
        model.load_state_dict(load_file(WEIGHTS))
    return model
