"""`--smoke`: shrink any recipe to a run of about a minute on two cores, through the same code."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from scalekd.distributed import ranks
from scalekd.recipe import Recipe, Student

SIDE = 64
CLASSES = 4
STEPS_PER_EPOCH, EPOCHS, BATCH, MICRO_BATCH = 2, 2, 4, 2


def shrink_to_smoke_test(recipe: Recipe, folder: Path) -> Recipe:
    """Shrink a recipe to four steps; teacher, student, losses, optimizer and augmentation stay.

    The images are noise, which is written to `folder`; the teacher's weights are random, and a
    cache is not read. A step has at least two images on each device. The digits and their teacher,
    which are packaged, are used as they are, with fewer images an epoch.

    Args:
        recipe: any recipe.
        folder: an empty folder, which must exist until the run has ended.

    Returns:
        The shrunk recipe.
    """
    shortened = replace(
        recipe,
        optim=recipe.optim.shortened(EPOCHS),
        more_students=[
            replace(
                s,
                args=_without_classes(s.args),
                optim=s.optim.shortened(EPOCHS) if s.optim else None,
                student_weights="random",
            )
            if isinstance(s, Student)
            else s
            for s in recipe.more_students
        ],
        epochs=EPOCHS,
        seeds=recipe.seeds[:1],
        validate_every=1,
        cache=None,
    )
    if recipe.data.root == "digits":
        images = STEPS_PER_EPOCH * recipe.batch_size
        return replace(shortened, data=replace(recipe.data, epoch_images=images))
    accumulate = min(recipe.accumulate, BATCH // MICRO_BATCH)
    batch_size = max(BATCH, ranks.world_size() * accumulate * MICRO_BATCH)
    _write_noise(folder, batch_size)
    resized = {"img_size": SIDE} if "img_size" in recipe.teacher_args else {}
    data = replace(
        recipe.data,
        root=str(folder),
        image_size=SIDE,
        train_images=None,
        epoch_images=None,
        val_share=None,
        labels=None,
    )
    return replace(
        shortened,
        data=replace(data, workers=0),
        teacher_weights="random",
        student_weights="random",
        teacher_args={**recipe.teacher_args, **resized, "num_classes": CLASSES},
        teacher_size=(SIDE, SIDE),
        teacher_classes=None,
        student_args=_without_classes(recipe.student_args),
        batch_size=batch_size,
        accumulate=accumulate,
    )


def _without_classes(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if name != "num_classes"}


def _write_noise(folder: Path, batch_size: int) -> None:
    """Write train/ and val/ with the images of an epoch, each class with another mean grey."""
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for label in range(CLASSES):
            (folder / split / str(label)).mkdir(parents=True)
            for index in range(STEPS_PER_EPOCH * batch_size // CLASSES):
                noise = generator.integers(0, 128, (SIDE, SIDE, 3)) + 32 * label
                picture = Image.fromarray(noise.astype(np.uint8))
                picture.save(folder / split / str(label) / f"{index}.png")
