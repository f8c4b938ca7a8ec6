"""The smallest distillations: of image folders, and of the digits."""

from dataclasses import replace
from typing import Any

from scalekd.recipe import Data, Optim, Recipe


def tiny(root: object, **changes: Any) -> Recipe:
    """timm's smallest models on images in `root` at 64 pixels, for one epoch in batches of four."""
    recipe = Recipe(
        "test_vit",
        "test_resnet",
        Data(str(root), 64, workers=0),
        teacher_weights="random",
        teacher_args={"img_size": 64},
        epochs=1,
        batch_size=4,
        optim=Optim(warmup_epochs=0),
        seeds=[1],
    )
    return replace(recipe, **changes)


def tiny_cacheable(root: object, **changes: Any) -> Recipe:
    """`tiny` with augmentation, so that each epoch sees other views, and for three epochs.

    The teacher has the images' three classes, so that logits are distilled. The learning rate is
    very small, because training amplifies the rounding of cached outputs.
    """
    recipe = tiny(
        root,
        data=Data(str(root), 64, workers=0, color_jitter=0.4),
        teacher_args={"img_size": 64, "num_classes": 3},
        optim=Optim(lr=1e-6, warmup_epochs=0),
        epochs=3,
        log_every=1,
    )
    return replace(recipe, **changes)


def tiny_digits(**changes: Any) -> Recipe:
    """A ResNet of two blocks under the digits' teacher, for two steps of 32 images."""
    recipe = Recipe(
        "scalekd_digits_swin",
        "resnetv2_18",
        Data("digits", train_images=100, epoch_images=64),
        student_args={"layers": [1, 1], "channels": [16, 32], "stem_chs": 8, "stem_type": "deep"},
        epochs=1,
        batch_size=32,
        optim=Optim(warmup_epochs=0),
        seeds=[1],
    )
    return replace(recipe, **changes)
