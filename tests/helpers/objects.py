"""Small folders of images with boxes and masks, and detections of them that take seconds."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from scalekd.recipe import Optim
from scalekd.transfer.detection.recipe import DetectData, DetectRecipe

CLASSES = ("wide", "high")
SIDE = 48


def draw_image(number: int, side: int = SIDE) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Noise with up to three rectangles (side, side, 3), and COCO's annotations of them."""
    generator = np.random.default_rng(number)
    pixels = generator.integers(0, 100, (side, side, 3))
    annotations = []
    for _ in range(number % 4):
        label = int(generator.integers(2))
        height, width = (10, 22) if label == 0 else (22, 10)
        top, left = (int(value) for value in generator.integers(0, side - 22, size=2))
        pixels[top : top + height, left : left + width] = 150 + 80 * label
        right, bottom = left + width, top + height
        annotations.append(
            {
                "category_id": 3 + 4 * label,
                "bbox": [left, top, width, height],
                "area": width * height,
                "iscrowd": 0,
                "segmentation": [[left, top, right, top, right, bottom, left, bottom]],
            }
        )
    return pixels.astype(np.uint8), annotations


def coco_folder(root: Path, training: int = 8, validation: int = 3) -> Path:
    """Write images in COCO's layout: ids with gaps, a name that is not ASCII, a crowd in run
    lengths, and images without objects."""
    for split, count, first in (("train", training, 0), ("val", validation, 101)):
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        (root / split).mkdir(parents=True)
        for number in range(count):
            pixels, found = draw_image(first + number)
            name = "Möwe.png" if number == 1 else f"{number}.png"
            Image.fromarray(pixels).save(root / split / name)
            images.append({"id": 7 * number + 2, "file_name": name, "height": SIDE, "width": SIDE})
            if number == 2:  # a crowd over the upper left quarter, column by column
                quarter = SIDE // 2
                counts = [0, *[quarter, quarter] * (quarter - 1), quarter]
                counts.append(SIDE * SIDE - sum(counts))
                found.append(
                    {
                        "category_id": 3,
                        "bbox": [0, 0, quarter, quarter],
                        "area": quarter**2,
                        "iscrowd": 1,
                        "segmentation": {"size": [SIDE, SIDE], "counts": counts},
                    }
                )
            for annotation in found:
                own = {"id": 11 * len(annotations) + 5, "image_id": 7 * number + 2}
                annotations.append({**own, **annotation})
        categories = [{"id": 7, "name": "high"}, {"id": 3, "name": "wide"}]
        write_coco(root, split, images, annotations, categories)
    return root


def write_coco(
    root: Path,
    split: str,
    images: list[dict[str, Any]],
    annotations: list[dict[str, Any]],
    categories: list[dict[str, Any]],
) -> None:
    """Write a split's file of annotations."""
    (root / "annotations").mkdir(exist_ok=True)
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / f"annotations/instances_{split}.json").write_text(json.dumps(content))


def change_coco(root: Path, split: str, part: str, index: int, **changes: Any) -> None:
    """Change an entry of a split's file of annotations; a value of None removes it."""
    file = root / f"annotations/instances_{split}.json"
    content = json.loads(file.read_text())
    content[part][index].update(changes)
    for name in [name for name, value in changes.items() if value is None]:
        del content[part][index][name]
    file.write_text(json.dumps(content))


def tiny_detection(root: object, **changes: Any) -> DetectRecipe:
    """timm's smallest ResNet under a narrow Mask R-CNN, for two epochs of two steps."""
    recipe = DetectRecipe(
        "timm:test_resnet",
        DetectData(str(root), short_side=SIDE, long_side=64, workers=0),
        backbone_weights="random",
        head_channels=8,
        anchor_scale=4.0,
        epochs=2,
        batch_size=4,
        optim=Optim(lr=1e-3, warmup_epochs=0),
        log_every=1,
        seed=3,
    )
    return replace(recipe, **changes)
