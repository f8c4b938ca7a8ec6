"""The paper's Mixer-B/14, which timm lacks: twelve blocks of width 768, patches of 14 pixels."""

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.mlp_mixer import MlpMixer

default_cfgs = generate_default_cfgs(
    {
        "mixer_b14_224": {
            "num_classes": 1000,
            "input_size": (3, 224, 224),
            "fixed_input_size": True,
            "crop_pct": 0.875,
            "interpolation": "bicubic",
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
            "first_conv": "stem.proj",
            "classifier": "head",
        }
    }
)


@register_model  # type: ignore[untyped-decorator]
def mixer_b14_224(pretrained: bool = False, **arguments: Any) -> MlpMixer:
    """Build Mixer-B/14; timm finds it by name once this module is imported. It has no weights."""
    sizes = {"patch_size": 14, "num_blocks": 12, "embed_dim": 768}
    return build_model_with_cfg(MlpMixer, "mixer_b14_224", pretrained, **sizes, **arguments)
