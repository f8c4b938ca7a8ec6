"""The MLP student: timm's Mixer at a size for 32x32 pixels, which none of its names has."""

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.mlp_mixer import MlpMixer

default_cfgs = generate_default_cfgs(
    {
        "evidence_mixer": {
            "num_classes": 10,
            "input_size": (1, 32, 32),
            "fixed_input_size": True,
            "crop_pct": 1.0,
            "first_conv": "stem.proj",
            "classifier": "head",
        }
    }
)


@register_model
def evidence_mixer(pretrained: bool = False, **arguments: Any) -> MlpMixer:
    """Build it: images (N, 1, 32, 32) -> four blocks of 64 tokens of 64 channels -> logits."""
    sizes = {"img_size": 32, "patch_size": 4, "num_blocks": 4, "embed_dim": 64}
    return build_model_with_cfg(MlpMixer, "evidence_mixer", pretrained, **{**sizes, **arguments})
