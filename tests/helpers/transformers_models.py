"""Small models of transformers with random weights, and timm's arguments for the same networks."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from helpers.small_models import lively
from torch import Tensor, nn

CLASSES = 5
WIDTH = 32
SIDE = 32
SIZES: dict[str, Any] = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": 8,
    "layer_norm_eps": 1e-6,  # timm's; the published ViTs say 1e-12
    "initializer_range": 0.1,
}
MLP = {"intermediate_size": 4 * WIDTH}
PLAIN: dict[str, Any] = {
    "img_size": SIDE,
    "patch_size": 8,
    "embed_dim": WIDTH,
    "depth": 2,
    "num_heads": 2,
}
SWIN_SIZES: dict[str, Any] = {
    "image_size": 64,
    "embed_dim": 16,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 4,
    "layer_norm_eps": 1e-5,
    "initializer_range": 0.1,
}
SWIN: dict[str, Any] = {
    "img_size": 64,
    "embed_dim": 16,
    "depths": (2, 2),
    "num_heads": (2, 4),
    "window_size": 4,
}


@dataclass(frozen=True)
class Case:
    """A model of transformers beside timm's.

    make: builds the former.
    name, arguments: build the latter.
    has_logits: whether the classifier is translated, too.
    """

    make: Callable[[], Any]
    name: str
    arguments: dict[str, Any] = field(default_factory=lambda: PLAIN)
    has_logits: bool = False


def vit(**settings: Any) -> nn.Module:
    config = transformers.ViTConfig(**{**SIZES, **MLP, "num_labels": CLASSES, **settings})
    model: nn.Module = transformers.ViTForImageClassification(config)
    return model


def deit(kind: type) -> Callable[[], Any]:
    return lambda: kind(transformers.DeiTConfig(**SIZES, **MLP, num_labels=CLASSES))


def dinov2(kind: type, **settings: Any) -> Callable[[], Any]:
    return lambda: kind(transformers.Dinov2Config(**SIZES, num_labels=CLASSES, **settings))


def registers() -> nn.Module:
    config = transformers.Dinov2WithRegistersConfig(**SIZES, num_register_tokens=4)
    model: nn.Module = transformers.Dinov2WithRegistersModel(config)
    return model


def dinov3(**settings: Any) -> Callable[[], Any]:
    sizes = {**SIZES, **MLP, "layer_norm_eps": 1e-5, "num_register_tokens": 4, **settings}
    return lambda: transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**sizes))


def siglip(kind: type) -> Callable[[], Any]:
    vision = {**SIZES, **MLP}
    text = {
        "hidden_size": WIDTH,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "vocab_size": 50,
        "projection_size": WIDTH,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    if kind is transformers.SiglipVisionModel:
        return lambda: kind(transformers.SiglipVisionConfig(**vision))
    return lambda: kind(
        transformers.SiglipConfig(text_config=text, vision_config=vision, num_labels=CLASSES)
    )


def swin() -> nn.Module:
    config = transformers.SwinConfig(**SWIN_SIZES, num_labels=CLASSES)
    model: nn.Module = transformers.SwinForImageClassification(config)
    return model


CASES = {
    "ViT": Case(vit, "vit_tiny_patch16_224", has_logits=True),
    "ViT without classifier": Case(
        lambda: transformers.ViTModel(transformers.ViTConfig(**SIZES, **MLP)),
        "vit_tiny_patch16_224",
    ),
    "DeiT": Case(
        deit(transformers.DeiTForImageClassificationWithTeacher),
        "deit_tiny_distilled_patch16_224",
        has_logits=True,
    ),
    "DeiT with one classifier": Case(
        deit(transformers.DeiTForImageClassification),
        "deit_tiny_distilled_patch16_224",
        has_logits=True,
    ),
    "DINOv2": Case(dinov2(transformers.Dinov2Model), "vit_small_patch14_dinov2"),
    "DINOv2 with a classifier": Case(
        dinov2(transformers.Dinov2ForImageClassification), "vit_small_patch14_dinov2"
    ),
    "DINOv2 with gated layers": Case(
        dinov2(transformers.Dinov2Model, use_swiglu_ffn=True),
        "vit_giant_patch14_dinov2",
        {**PLAIN, "mlp_ratio": 5.5},
    ),
    "DINOv2 with registers": Case(registers, "vit_small_patch14_reg4_dinov2"),
    "DINOv3": Case(dinov3(), "vit_small_patch16_dinov3_qkvb"),
    "DINOv3 without biases": Case(
        dinov3(query_bias=False, value_bias=False), "vit_small_patch16_dinov3"
    ),
    "DINOv3 with gated layers": Case(
        dinov3(use_gated_mlp=True, hidden_act="silu", intermediate_size=64),
        "vit_small_plus_patch16_dinov3_qkvb",
        {**PLAIN, "mlp_ratio": 2},
    ),
    "SigLIP's image tower": Case(
        siglip(transformers.SiglipVisionModel), "vit_base_patch32_siglip_256"
    ),
    "SigLIP": Case(siglip(transformers.SiglipModel), "vit_base_patch32_siglip_256"),
    "SigLIP with a classifier": Case(
        siglip(transformers.SiglipForImageClassification),
        "vit_base_patch32_siglip_gap_256",
        has_logits=True,
    ),
    "Swin": Case(swin, "swin_tiny_patch4_window7_224", SWIN, has_logits=True),
}


def make(case: Case) -> Any:
    """Build the model of transformers with no zeros or ones left that would hide a mistake."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return lively(case.make())


def save(case: Case, folder: Path, **options: Any) -> Any:
    """Save a model of transformers as it does, and return it."""
    model = make(case)
    model.save_pretrained(folder, **options)
    return model


def final_features(model: Any, images: Tensor) -> Tensor:
    """Return all tokens after the last norm, (N, L, C)."""
    has_classifier = not type(model).__name__.endswith("Model")
    body = getattr(model, model.base_model_prefix, model) if has_classifier else model
    body = getattr(body, "vision_model", body)
    with torch.no_grad():
        output: Tensor = body(images).last_hidden_state
    return output
