"""What the smoke tests of all transfers shrink alike."""

from dataclasses import replace
from typing import Any, TypeVar

from scalekd.transfer.recipe import TransferData, TransferRecipe

EPOCHS = 2

AnyRecipe = TypeVar("AnyRecipe", bound=TransferRecipe)


def shrink_recipe(
    recipe: AnyRecipe, *, data: TransferData, batch_size: int, **changes: Any
) -> AnyRecipe:
    """A recipe for two epochs of `data`; backbone, head and optimizer stay.

    The backbone's weights are random, but those of a folder.

    Args:
        recipe: any recipe.
        data: its images in place of its own.
        batch_size: images of a step; a device computes at least two at once.
        changes: settings that only one kind of recipe has.
    """
    is_timm = recipe.backbone.startswith("timm:")
    return replace(
        recipe,
        epochs=EPOCHS,
        steps=None,
        optim=recipe.optim.shortened(EPOCHS),
        data=data,
        backbone_weights="random" if is_timm else recipe.backbone_weights,
        batch_size=batch_size,
        accumulate=min(recipe.accumulate, batch_size // 2),
        validate_every=1,
        **changes,
    )
