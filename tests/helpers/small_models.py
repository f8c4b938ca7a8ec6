"""Small members of the families, with no zeros or ones left that would hide a mistake."""

from collections.abc import Callable
from typing import Any, TypeVar

import timm
import torch
from timm.models.metaformer import LayerNorm2dNoBias, MetaFormer, SepConv
from timm.models.mlp_mixer import MlpMixer
from torch import Tensor, nn

from scalekd.errors import InputError

Made = TypeVar("Made")

SIZE = (64, 64)
CLASSES = 5
SWIN = {"img_size": 64, "window_size": 4, "embed_dim": 24, "depths": (2, 2), "num_heads": (1, 2)}
EVA = {"img_size": 56, "embed_dim": 48, "depth": 4, "num_heads": 2}
VIT = {"img_size": 64, "embed_dim": 32, "depth": 6, "num_heads": 2}


def make(name: str, **arguments: Any) -> nn.Module:
    """timm's model of this name in eval mode, every parameter and statistic moved at random."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = timm.create_model(name, **{"num_classes": CLASSES, **arguments})
    return lively(model)


def lively(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.1, 0.1, generator=generator)
                module.running_var.uniform_(0.9, 1.1, generator=generator)
    return model.eval()


def resnet(**arguments: Any) -> nn.Module:
    return make("test_resnet", **arguments)


def mobilenet(**arguments: Any) -> nn.Module:
    return make("mobilenetv1_100", **arguments)


def convnext(**arguments: Any) -> nn.Module:
    return make("test_convnext", **arguments)


def swin(**arguments: Any) -> nn.Module:
    """64x64 -> 24x16x16 -> 48x8x8; windows of 4x4, shifted in every second block."""
    return make("swin_tiny_patch4_window7_224", **{**SWIN, **arguments})


def vit(**arguments: Any) -> nn.Module:
    """64x64 -> 6 blocks of 32x4x4, with a class token."""
    return make("vit_tiny_patch16_224", **{**VIT, **arguments})


def vit_mean(**arguments: Any) -> nn.Module:
    """No class token: mean pooling, timm's norm after it."""
    return vit(class_token=False, global_pool="avg", **arguments)


def deit(**arguments: Any) -> nn.Module:
    return make("deit_tiny_patch16_224", **{**VIT, **arguments})


def deit_mean(**arguments: Any) -> nn.Module:
    return deit(class_token=False, global_pool="avg", **arguments)


def deit_distilled(**arguments: Any) -> nn.Module:
    """Two prefix tokens, two heads."""
    return make("deit_tiny_distilled_patch16_224", **{**VIT, **arguments})


def mixer(**arguments: Any) -> nn.Module:
    """Built by its class: timm's names for it take no width or depth."""
    sizes = {"img_size": 64, "embed_dim": 32, "num_blocks": 6, "num_classes": CLASSES}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return lively(MlpMixer(**{**sizes, **arguments}))


def registers(**arguments: Any) -> nn.Module:
    """A class token and four registers."""
    return make("vit_small_patch14_reg4_dinov2", **{**EVA, **arguments})


def beit(**arguments: Any) -> nn.Module:
    """A class token, biases by relative position in every block, and the norm after pooling."""
    return make("beit_base_patch16_224", **{**EVA, "img_size": 64, **arguments})


def eva02(**arguments: Any) -> nn.Module:
    """A class token, rotary embeddings handed to every block, and the norm after pooling."""
    return make("eva02_tiny_patch14_224", **{**EVA, **arguments})


def cait(**arguments: Any) -> nn.Module:
    """Its class token comes after its blocks of patches."""
    return make("cait_xxs24_224", **{**EVA, "img_size": 64, "embed_dim": 32, **arguments})


def hiera(**arguments: Any) -> nn.Module:
    """Its tokens go by mask unit, not by row."""
    sizes = {"img_size": 64, "embed_dim": 16, "num_heads": 1, "stages": (1, 1, 2, 1)}
    return make("hiera_tiny_224", **{**sizes, **arguments})


def levit(**arguments: Any) -> nn.Module:
    """Three stages; 128x128 -> 16x8x8 -> 24x4x4 -> 32x2x2."""
    sizes = {"img_size": 128, "embed_dim": (16, 24, 32), "key_dim": 8, "num_heads": (2, 2, 2)}
    return make("levit_128s", **{**sizes, "depth": (1, 1, 2), **arguments})


def convformer(**arguments: Any) -> nn.Module:
    """Built by its class, as the Mixer; its head has the norm, after the pooling."""
    sizes = {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32), "num_classes": CLASSES}
    kind = {"token_mixers": SepConv, "use_mlp_head": True, "norm_layers": LayerNorm2dNoBias}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return lively(MetaFormer(**{**sizes, **kind, **arguments}))


FAMILIES: dict[str, Callable[..., nn.Module]] = {
    "ResNet": resnet,
    "MobileNet-V1": mobilenet,
    "ConvNeXt": convnext,
    "Swin": swin,
    "ViT": vit,
    "ViT, mean pooling": vit_mean,
    "DeiT": deit,
    "DeiT, mean pooling": deit_mean,
    "DeiT distilled": deit_distilled,
    "Mixer": mixer,
}


def images(
    batch: int = 2, size: tuple[int, int] = SIZE, channels: int = 3, seed: int = 0
) -> Tensor:
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(seed))


def tokens(features: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, H*W, C)."""
    return features.flatten(2).transpose(1, 2)


def unless_refused(make: Callable[[], Made]) -> Made | None:
    """What `make` gives, or None where it raises an InputError, whose message is one line."""
    try:
        return make()
    except InputError as error:
        message = str(error)
    assert message
    assert "\n" not in message
    return None
