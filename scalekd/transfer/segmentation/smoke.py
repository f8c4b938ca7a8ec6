"""`--smoke`: shrink a segmentation to a run of about a minute on two cores, by the same code."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from scalekd.transfer.segmentation.recipe import SegmentRecipe
from scalekd.transfer.smoke import shrink_recipe

SIDE, CLASSES, IMAGES, BATCH = 64, 4, 8, 4


def shrink_to_smoke_test(recipe: SegmentRecipe, folder: Path) -> SegmentRecipe:
    """Shrink a recipe to four steps; backbone, head, optimizer and augmentation stay.

    The images are noise in the layout of ADE20K, which is written to `folder`; the backbone's
    weights are random, but those of a folder.

    Args:
        recipe: any recipe.
        folder: an empty folder, which must exist until the run has ended.

    Returns:
        The shrunk recipe.
    """
    write_noise(folder)
    data = replace(
        recipe.data,
        root=str(folder),
        classes=None,
        reduce_zero_label=True,
        ignore_label=255,
        crop_size=SIDE,
        short_side=None if recipe.data.short_side is None else SIDE,
        epoch_images=None,
        workers=0,
    )
    stride = None if recipe.stride is None else SIDE // 2
    return shrink_recipe(recipe, data=data, batch_size=BATCH, stride=stride)


def write_noise(folder: Path) -> None:
    """Write images of noise, of which each quarter is one class with a mean grey of its own."""
    generator = np.random.default_rng(0)
    quarters = np.arange(SIDE) * 2 // SIDE
    labels = (2 * quarters[:, None] + quarters).astype(np.uint8)
    for split, count in (("training", IMAGES), ("validation", 2)):
        for kind in ("images", "annotations"):
            (folder / kind / split).mkdir(parents=True)
        for number in range(count):
            turned = np.rot90(labels, number)
            noise = generator.integers(0, 128, (SIDE, SIDE, 3)) + 32 * turned[..., None]
            Image.fromarray(noise.astype(np.uint8)).save(folder / f"images/{split}/{number}.png")
            stored = Image.fromarray(turned + 1)  # 0 is no class in ADE20K
            stored.save(folder / f"annotations/{split}/{number}.png")
    names = [f"quarter {number}" for number in range(CLASSES)]
    (folder / "classes.txt").write_text("\n".join(names) + "\n")
