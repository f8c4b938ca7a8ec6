"""The packaged teacher: a Swin of half a million parameters for the 32x32 digits.

It is timm's SwinTransformer with another stem: a Swin this narrow learns the clutter far better
through three overlapping convolutions than through timm's single patch convolution. It is also an
example of a model of one's own that timm builds by name, with all arguments of `create_model`.
"""

from pathlib import Path
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.swin_transformer import SwinTransformer
from torch import nn

from scalekd.digits.images import CLASSES, MEAN, SIZE, STD

EMBED = 64
WEIGHTS = Path(__file__).with_name("teacher.safetensors")

default_cfgs = generate_default_cfgs(
    {
        "scalekd_digits_swin": {
            "file": str(WEIGHTS),
            "num_classes": CLASSES,
            "input_size": (1, SIZE, SIZE),
            "fixed_input_size": True,
            "crop_pct": 1.0,
            "interpolation": "bicubic",
            "mean": (MEAN,),
            "std": (STD,),
            "first_conv": "patch_embed.proj.0",
            "classifier": "head.fc",
            "license": "apache-2.0",
        }
    }
)


@register_model  # type: ignore[untyped-decorator]
def scalekd_digits_swin(pretrained: bool = False, **arguments: Any) -> SwinTransformer:
    """Build the teacher, which timm finds by name once this module is imported.

    (N, 1, 32, 32) -> stages of 64x8x8 and 128x4x4 -> 10 logits. As for timm's own models, other
    `num_classes` make a new classifier, and other `in_chans` adapt the first convolution.
    """
    shape = {"window_size": 4, "embed_dim": EMBED, "depths": (2, 2), "num_heads": (4, 8)}
    return build_model_with_cfg(
        _build_with_stem,
        "scalekd_digits_swin",
        pretrained,
        feature_cfg={"flatten_sequential": True, "out_indices": (0, 1)},
        **{**shape, "drop_path_rate": 0.0, **arguments},
    )


def _build_with_stem(*, embed_dim: int, **arguments: Any) -> SwinTransformer:
    model = SwinTransformer(embed_dim=embed_dim, **arguments)
    model.patch_embed.proj = nn.Sequential(
        nn.Conv2d(arguments["in_chans"], embed_dim // 2, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(embed_dim // 2),
        nn.ReLU(inplace=True),
        nn.Conv2d(embed_dim // 2, embed_dim, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(embed_dim),
        nn.ReLU(inplace=True),
        nn.Conv2d(embed_dim, embed_dim, 3, padding=1),
    )
    return model
