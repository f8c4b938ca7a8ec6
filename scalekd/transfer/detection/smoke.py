"""`--smoke`: shrink a detection to a run of about a minute on two cores, by the same code."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from scalekd.transfer.detection.recipe import DetectRecipe
from scalekd.transfer.smoke import shrink_recipe

SIDE, IMAGES, BATCH = 64, 4, 2


def shrink_to_smoke_test(recipe: DetectRecipe, folder: Path) -> DetectRecipe:
    """Shrink a recipe to four steps; backbone, head, optimizer and augmentation stay.

    The images are noise in COCO's layout, which is written to `folder`; the backbone's weights are
    random, but those of a folder.

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
        short_side=SIDE,
        long_side=2 * SIDE,
        epoch_images=None,
        workers=0,
    )
    return shrink_recipe(recipe, data=data, batch_size=BATCH)


def write_noise(folder: Path) -> None:
    """Write images of noise with one bright rectangle each, of the class "wide" or "high"."""
    generator = np.random.default_rng(0)
    (folder / "annotations").mkdir()
    for split, count in (("train", IMAGES), ("val", 2)):
        (folder / split).mkdir()
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number in range(count):
            height, width = (16, 40) if number % 2 == 0 else (40, 16)
            top, left = (int(value) for value in generator.integers(0, SIDE - 40, size=2))
            pixels = generator.integers(0, 128, (SIDE, SIDE, 3))
            pixels[top : top + height, left : left + width] += 100
            name = f"{number}.png"
            Image.fromarray(pixels.astype(np.uint8)).save(folder / split / name)
            images.append({"id": number, "file_name": name, "height": SIDE, "width": SIDE})
            right, bottom = left + width, top + height
            annotations.append(
                {
                    "id": number + 1,
                    "image_id": number,
                    "category_id": 1 + number % 2,
                    "bbox": [left, top, width, height],
                    "area": width * height,
                    "iscrowd": 0,
                    "segmentation": [[left, top, right, top, right, bottom, left, bottom]],
                }
            )
        categories = [{"id": 1, "name": "wide"}, {"id": 2, "name": "high"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
