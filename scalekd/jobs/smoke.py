"""`--smoke`: shrink any recipe to a run of about a minute on two cores, through the same code."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from scalekd.recipe import Recipe, Student

SIDE = 64
CLASSES = 4
STEPS_PER_EPOCH, EPOCHS, BATCH = 2, 2, 4


def shrink_to_smoke_test(recipe: Recipe, folder: Path) -> Recipe:
    """Shrink a recipe to four steps; teacher, student, losses, optimizer and augmentation stay.

    The images are noise, which is written to `folder`; the teacher's weights are random, and a
    cache is not read. The digits and their teacher, which are packaged, are used as they are, with
    fewer images an epoch.

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
                s, optim=s.optim.shortened(EPOCHS) if s.optim else None, student_weights="random"
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
    _write_noise(folder)
    resized = {"img_size": SIDE} if "img_size" in recipe.teacher_args else {}
    data = replace(
        recipe.data, root=str(folder), image_size=SIDE, train_images=None, epoch_images=None
    )
    return replace(
        shortened,
        data=replace(data, workers=0),
        teacher_weights="random",
        student_weights="random",
        teacher_args={**recipe.teacher_args, **resized, "num_classes": CLASSES},
        teacher_size=(SIDE, SIDE),
        batch_size=BATCH,
        accumulate=min(recipe.accumulate, BATCH // 2),
    )


def _write_noise(folder: Path) -> None:
    """Write train/ and val/ with the images of an epoch, each class with another mean grey."""
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for label in range(CLASSES):
            (folder / split / str(label)).mkdir(parents=True)
            for index in range(STEPS_PER_EPOCH * BATCH // CLASSES):
                noise = generator.integers(0, 128, (SIDE, SIDE, 3)) + 32 * label
                picture = Image.fromarray(noise.astype(np.uint8))
                picture.save(folder / split / str(label) / f"{index}.png")
