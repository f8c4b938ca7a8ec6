"""Scenes with known labels: items of Fashion-MNIST, or digits, pasted on cluttered canvases.

    python experiments/transfer/scenes.py OUT --training 400 --validation 100 --seed 0

OUT gets images/ and annotations/ in the layout of ADE20K with classes.txt (0 is the background),
and annotations/instances_training.json and instances_validation.json in COCO's format: boxes,
masks as polygons, those with holes and of crowds as run lengths, images without any item. Training
and validation have different originals. Everything depends on the seed.
"""

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as masks
from scipy import ndimage

from scalekd.data.fashion_mnist import CLASSES, HELD_OUT, find_files, read_split
from scalekd.digits.images import load_originals
from scalekd.errors import InputError

SIDES = 96, 160
SCALES = 0.9, 1.9
MOST_ITEMS, FRAGMENTS = 6, 10
EMPTY, CROWD = 0.08, 0.1
"""Shares of scenes without any item, and with a crowd of small ones."""

LEAST_VISIBLE = 25
"""Pixels of an item that must be seen, or it is not annotated as one."""


PARTS = {
    "train": ("train", slice(10_000)),
    "choosing": ("train", slice(-HELD_OUT, None)),
    "test": ("test", slice(None)),
}
"""Of Fashion-MNIST's originals: the split, and which of it. No part has one of another."""


@dataclass(frozen=True)
class Originals:
    """Grey images (28, 28) of 0 to 255 on black, with their classes and the classes' names."""

    images: list[np.ndarray]
    labels: list[int]
    names: tuple[str, ...]


def read_originals(part: str) -> Originals:
    """A part of the originals, of `PARTS`: of Fashion-MNIST where it is there, or the digits.

    Raises:
        InputError: the part is "choosing", which the digits have not.
    """
    if (folder := find_files()) is not None:
        split, which = PARTS[part]
        samples: Any = read_split(folder, split, which).samples
        images = [np.asarray(samples[number][0].convert("L")) for number in range(len(samples))]
        return Originals(images, samples.targets, CLASSES)
    if part == "choosing":
        raise InputError("Fashion-MNIST is not on this machine: install dataset-fashion-mnist")
    digits = load_originals(part)
    images = [(255 * image).byte().numpy() for image in digits.images]
    return Originals(images, digits.labels.tolist(), tuple(map(str, range(10))))


@dataclass
class Scene:
    """A canvas (H, W, 3), the number of the instance at each pixel (0 for none), and the class of
    each instance with whether it is a crowd."""

    pixels: np.ndarray
    instances: np.ndarray
    found: list[tuple[int, bool]] = field(default_factory=list)

    def paste(
        self, item: np.ndarray, top: int, left: int, tint: np.ndarray, number: int | None
    ) -> None:
        """Paste a grey item, cut where the canvas ends; `number` None is clutter, which also covers
        items."""
        height, width = self.instances.shape
        rows = slice(max(0, top), min(height, top + item.shape[0]))
        columns = slice(max(0, left), min(width, left + item.shape[1]))
        item = item[
            rows.start - top : max(rows.start, rows.stop) - top,
            columns.start - left : max(columns.start, columns.stop) - left,
        ]
        mask = ndimage.binary_fill_holes(item > 25)
        assert mask is not None
        colours = item[..., None] / 255 * tint
        self.pixels[rows, columns][mask] = colours[mask].astype(np.uint8)
        self.instances[rows, columns][mask] = number or 0


def draw_scene(originals: Originals, generator: np.random.Generator) -> Scene:
    """Draw a smooth background, fragments of items as clutter, and items over each other."""
    height, width = generator.integers(SIDES[0], SIDES[1] + 1, size=2)
    coarse = generator.uniform(20, 190, size=(6, 6, 3))
    smooth = ndimage.zoom(coarse, (height / 6, width / 6, 1), order=1)[:height, :width]
    noise = generator.normal(0, 12, size=(height, width, 1))
    scene = Scene(
        np.clip(smooth + noise, 0, 255).astype(np.uint8), np.zeros((height, width), np.int32)
    )
    for _ in range(FRAGMENTS):
        _paste_fragment(scene, originals, generator)
    if generator.random() < EMPTY:
        return scene
    if generator.random() < CROWD:
        _paste_crowd(scene, originals, generator)
    for _ in range(generator.integers(1, MOST_ITEMS + 1)):
        number = int(generator.integers(len(originals.images)))
        item = _scaled(originals.images[number], generator.uniform(*SCALES))
        scene.found.append((originals.labels[number], False))
        _paste_anywhere(scene, item, generator, len(scene.found))
    return scene


def _paste_fragment(scene: Scene, originals: Originals, generator: np.random.Generator) -> None:
    item = originals.images[int(generator.integers(len(originals.images)))]
    top, left = generator.integers(0, 18, size=2)
    fragment = np.rot90(item[top : top + 9, left : left + 9], int(generator.integers(4)))
    _paste_anywhere(scene, fragment, generator, None)


def _paste_crowd(scene: Scene, originals: Originals, generator: np.random.Generator) -> None:
    """Paste many small items of one class close together, which are one crowd."""
    label = int(generator.integers(len(originals.names)))
    numbers = [n for n, other in enumerate(originals.labels[:2000]) if other == label]
    scene.found.append((label, True))
    height, width = scene.instances.shape
    top, left = generator.integers(0, (height - 40, width - 40))
    for _ in range(10):
        item = _scaled(originals.images[int(generator.choice(numbers))], 0.5)
        down, right = generator.integers(0, 36, size=2)
        tint = generator.uniform(0.5, 1.0, size=3) * 255
        scene.paste(item, int(top + down), int(left + right), tint, len(scene.found))


def _paste_anywhere(
    scene: Scene, item: np.ndarray, generator: np.random.Generator, number: int | None
) -> None:
    """Paste an item, of which at least half of each side is on the canvas."""
    places = [
        int(generator.integers(-side // 2, size - side // 2))
        for side, size in zip(item.shape, scene.instances.shape, strict=True)
    ]
    tint = generator.uniform(0.5, 1.0, size=3) * 255
    scene.paste(item, *places, tint, number)


def _scaled(item: np.ndarray, scale: float) -> np.ndarray:
    side = round(item.shape[0] * scale)
    return np.asarray(Image.fromarray(item).resize((side, side), Image.Resampling.BILINEAR))


def class_map(scene: Scene) -> np.ndarray:
    """The class of each pixel in 8 bits: 0 for the background, 1 for the first class of items."""
    table = np.array([0, *(label + 1 for label, _ in scene.found)], dtype=np.uint8)
    return table[scene.instances]


def coco_annotations(scene: Scene, image: int, first: int) -> list[dict[str, Any]]:
    """The instances of a scene that are seen, in COCO's format; identifiers count from `first`."""
    annotations: list[dict[str, Any]] = []
    for number, (label, is_crowd) in enumerate(scene.found, 1):
        mask = scene.instances == number
        if mask.sum() < LEAST_VISIBLE:
            continue
        rows, columns = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
        box = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
        annotations.append(
            {
                "id": first + len(annotations),
                "image_id": image,
                "category_id": label + 1,
                "bbox": [int(value) for value in box],
                "area": int(mask.sum()),
                "iscrowd": int(is_crowd),
                "segmentation": run_lengths(mask) if is_crowd else polygons(mask),
            }
        )
    return annotations


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """COCO's run lengths of a mask: column by column, zeros first."""
    flat = mask.ravel(order="F").astype(np.int8)
    ends = np.flatnonzero(np.diff(flat)) + 1
    lengths = np.diff([0, *ends.tolist(), len(flat)]).tolist()
    return {"size": list(mask.shape), "counts": [0, *lengths] if flat[0] else lengths}


def polygons(mask: np.ndarray) -> Any:
    """COCO's polygons of a mask, one along the edges of the pixels of each of its parts; its run
    lengths where polygons are not exact, as for a hole."""
    parts, count = ndimage.label(mask)
    found = [outline(parts == number) for number in range(1, count + 1)]
    drawn = masks.merge(masks.frPyObjects(found, *mask.shape))
    return found if (masks.decode(drawn) == mask).all() else run_lengths(mask)


def outline(part: np.ndarray) -> list[int]:
    """The corners x, y, x, y, ... of the outer edge of a part, clockwise."""
    filled = np.pad(part, 1)
    steps: dict[tuple[int, int], list[tuple[int, int]]] = {}
    sides = (-1, 0, 0, 0, 1, 0), (0, 1, 1, 0, 0, 1), (1, 0, 1, 1, -1, 0), (0, -1, 0, 1, 0, -1)
    for row, column in np.argwhere(part).tolist():
        for down, right, x, y, across, along in sides:
            if not filled[row + 1 + down, column + 1 + right]:
                steps.setdefault((column + x, row + y), []).append((across, along))
    first = place = next(iter(steps))  # the top left corner of the first pixel
    direction = (0, -1)
    corners: list[int] = []
    while not corners or place != first:
        turned = -direction[1], direction[0]  # right, which stays at a pixel where two touch
        choices = steps[place]
        step = turned if turned in choices else choices[0]
        choices.remove(step)
        if step != direction:
            corners += place
        direction, place = step, (place[0] + step[0], place[1] + step[1])
    return corners


def write_scenes(
    out: Path, *, training: int, validation: int, seed: int = 0, validation_part: str = "test"
) -> None:
    """Write a data set of scenes to the new folder `out`; the validation scenes have the originals
    of a part of `PARTS`, "test" or "choosing"."""
    names: tuple[str, ...] = ()
    splits = (("training", "train", training), ("validation", validation_part, validation))
    for split, part, count in splits:
        originals = read_originals(part)
        names = originals.names
        for kind in ("images", "annotations"):
            (out / kind / split).mkdir(parents=True)
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number in range(count):
            generator = np.random.default_rng([seed, split == "validation", number])
            scene = draw_scene(originals, generator)
            name, (height, width) = f"{number:05}", scene.instances.shape
            Image.fromarray(scene.pixels).save(out / "images" / split / f"{name}.png")
            Image.fromarray(class_map(scene)).save(out / "annotations" / split / f"{name}.png")
            size = {"height": int(height), "width": int(width)}
            images.append({"id": number, "file_name": f"{name}.png", **size})
            annotations += coco_annotations(scene, number, len(annotations) + 1)
        categories = [{"id": n, "name": name} for n, name in enumerate(names, 1)]
        coco = {"images": images, "annotations": annotations, "categories": categories}
        (out / "annotations" / f"instances_{split}.json").write_text(json.dumps(coco))
    (out / "classes.txt").write_text("\n".join(["background", *names]) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a data set of scenes.")
    parser.add_argument("out", type=Path, help="Folder to write, which must not exist.")
    parser.add_argument("--training", type=int, default=400, help="Training images.")
    parser.add_argument("--validation", type=int, default=100, help="Validation images.")
    parser.add_argument("--seed", type=int, default=0, help="Random seed.")
    options = parser.parse_args()
    options.out.mkdir(parents=True)
    write_scenes(
        options.out,
        training=options.training,
        validation=options.validation,
        seed=options.seed,
    )


if __name__ == "__main__":
    main()
