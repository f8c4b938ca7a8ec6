"""Small frozen teachers, what they are called with, and a check of their tails."""

from collections.abc import Callable

import timm
import torch
from helpers.small_models import (
    SIZE,
    deit_distilled,
    images,
    mixer,
    resnet,
    swin,
    tokens,
    vit,
    vit_mean,
)
from torch import Tensor, nn

from scalekd import FrozenTeacher

TEACHERS: dict[str, Callable[..., nn.Module]] = {
    "Swin": swin,
    "ViT": vit,
    "ViT without prefix": vit_mean,
    "DeiT distilled": deit_distilled,
    "ResNet": resnet,
    "Mixer": mixer,
    "EVA-02": lambda: timm.create_model(
        "eva02_tiny_patch14_224", img_size=56, depth=4, embed_dim=48, num_heads=2, num_classes=5
    ),
    "BEiT": lambda: timm.create_model(
        "beit_base_patch16_224", img_size=64, depth=4, embed_dim=48, num_heads=2, num_classes=5
    ),
    "DINOv2 with registers": lambda: timm.create_model(
        "vit_small_patch14_reg4_dinov2", img_size=56, depth=4, embed_dim=48, num_heads=2
    ),
}


def freeze(model: nn.Module) -> FrozenTeacher:
    """Freeze a small model at its small size, which a few families do not have in themselves."""
    bound = getattr(getattr(model, "patch_embed", None), "img_size", None)
    return FrozenTeacher(model, None if bound else SIZE)


def images_for(teacher: FrozenTeacher, batch: int = 2) -> Tensor:
    """Images of the teacher's size."""
    return images(batch, teacher.input.size)


def tokens_for(teacher: FrozenTeacher, batch: int) -> Tensor:
    """Tokens on the teacher's penultimate grid, which want gradients."""
    assert teacher.shapes.penultimate is not None
    channels, height, width = teacher.shapes.penultimate
    return images(batch, (height * width, channels), channels=1)[:, 0].requires_grad_()


def other_tokens(feature: Tensor, seed: int = 1) -> Tensor:
    """The tokens of a map (N, C, H, W) plus noise, as a projector might give them."""
    own = tokens(feature)
    generator = torch.Generator().manual_seed(seed)
    return own + own.std() * torch.randn(own.shape, generator=generator)


def count_hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def check_tail(teacher: FrozenTeacher) -> None:
    """The tail returns the teacher's final feature, and another one on other tokens."""
    assert teacher.difference <= 1e-4
    seen = teacher(images(3, teacher.input.size, seed=5))
    given, final = tokens(seen.penultimate), tokens(seen.final)
    torch.testing.assert_close(teacher.tail(given), final, atol=1e-5, rtol=1e-4)
    other = teacher.tail(given + given.std() * torch.randn_like(given))
    assert (other - final).abs().max() > 0.01 * final.abs().max()
