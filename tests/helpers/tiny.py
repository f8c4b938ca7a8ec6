"""The smallest distillation of images of one's own."""

from dataclasses import replace
from typing import Any

from scalekd.recipe import Data, Optim, Recipe


def tiny(root: object, **changes: Any) -> Recipe:
    """timm's smallest models at 64 pixels, for one epoch of batches of four."""
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
