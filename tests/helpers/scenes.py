"""Small folders of images with label maps, and segmentations of them that take seconds."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from scalekd.recipe import Optim
from scalekd.transfer.segmentation.recipe import SegmentData, SegmentRecipe

CLASSES = ("sky", "sea", "sand")


def scene(number: int, side: int = 48) -> tuple[np.ndarray, np.ndarray]:
    """Three bands of colours with noise (side, side, 3), and the class of each pixel."""
    generator = np.random.default_rng(number)
    bounds = np.sort(generator.integers(4, side - 4, size=2))
    labels = np.searchsorted(bounds, np.arange(side), side="right").astype(np.uint8)
    labels = np.repeat(labels[:, None], side, axis=1)
    colours = np.array([[90, 140, 230], [20, 60, 120], [220, 190, 120]])[labels]
    noisy = colours + generator.normal(0, 10, colours.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8), labels


def ade20k_folder(root: Path, training: int = 8, validation: int = 3, side: int = 48) -> Path:
    """Write scenes in the layout of ADE20K; one has no ASCII name, and one ignored pixels."""
    for split, count, first in (("training", training, 0), ("validation", validation, 100)):
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True)
        for number in range(count):
            pixels, labels = scene(first + number, side)
            name = "Küste" if number == 1 else f"{number}"
            if number == 2:
                labels[:5] = 255
            Image.fromarray(pixels).save(root / "images" / split / f"{name}.png")
            Image.fromarray(labels).save(root / "annotations" / split / f"{name}.png")
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return root


def voc_folder(root: Path) -> Path:
    """Write four scenes in the layout of Pascal VOC: palettes, and borders of 255."""
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for number in range(4):
        pixels, labels = scene(number)
        labels[:, 0] = 255
        Image.fromarray(pixels).save(root / "JPEGImages" / f"20{number}.jpg")
        stored = Image.fromarray(labels).convert("P")
        stored.putdata(labels.ravel().tolist())
        stored.putpalette([value % 256 for value in range(768)])
        stored.save(root / "SegmentationClass" / f"20{number}.png")
    (root / "ImageSets/Segmentation/train.txt").write_text("200\n201\n202\n")
    (root / "ImageSets/Segmentation/val.txt").write_text("203\n\n")
    return root


def tiny_segmentation(root: object, **changes: Any) -> SegmentRecipe:
    """timm's smallest ResNet under a narrow UPerNet, for two epochs of two steps."""
    recipe = SegmentRecipe(
        "timm:test_resnet",
        SegmentData(str(root), crop_size=32, workers=0),
        backbone_weights="random",
        head_channels=8,
        epochs=2,
        batch_size=4,
        optim=Optim(lr=1e-3, warmup_epochs=0, poly_power=1.0),
        log_every=1,
        seed=3,
    )
    return replace(recipe, **changes)
