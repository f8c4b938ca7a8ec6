"""Any recipe as a run of about a minute on two cores, through the same code."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from scalekd.recipe import Optim, Recipe, Student

SIDE = 64
CLASSES = 4
STEPS_PER_EPOCH, EPOCHS, BATCH = 2, 2, 4


def shrink_to_smoke_test(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with its teacher, student, losses, optimizer and augmentation, and little else.

    The images are noise, written to `folder`; the teacher is random, and no cache is of it. Of the
    digits, which are packaged with their teacher, there are only fewer.

    Args:
        recipe: any.
        folder: an empty one; it must be there as long as the run.
    """
    short = replace(
        recipe,
        optim=_shorter(recipe.optim),
        more_students=[
            replace(s, optim=_shorter(s.optim)) if isinstance(s, Student) and s.optim else s
            for s in recipe.more_students
        ],
        epochs=EPOCHS,
        seeds=recipe.seeds[:1],
        validate_every=1,
        cache=None,
    )
    if recipe.data.root == "digits":
        images = STEPS_PER_EPOCH * recipe.batch_size
        return replace(short, data=replace(recipe.data, epoch_images=images))
    _noise(folder)
    resized = {"img_size": SIDE} if "img_size" in recipe.teacher_args else {}
    data = replace(
        recipe.data, root=str(folder), image_size=SIDE, train_images=None, epoch_images=None
    )
    return replace(
        short,
        data=replace(data, workers=0),
        teacher_weights="random",
        teacher_args={**recipe.teacher_args, **resized, "num_classes": CLASSES},
        teacher_size=(SIDE, SIDE),
        batch_size=BATCH,
        accumulate=min(recipe.accumulate, BATCH // 2),
    )


def _shorter(optim: Optim) -> Optim:
    return replace(
        optim,
        warmup_epochs=min(optim.warmup_epochs, EPOCHS / 2),
        drops=[EPOCHS / 2] if optim.drops else [],
    )


def _noise(folder: Path) -> None:
    """train/ and val/ of as many images as two epochs' steps need, each class of another grey."""
    numbers = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in range(CLASSES):
            (folder / split / str(name)).mkdir(parents=True)
            for index in range(STEPS_PER_EPOCH * BATCH // CLASSES):
                noise = numbers.integers(0, 128, (SIDE, SIDE, 3)) + 32 * name
                picture = Image.fromarray(noise.astype(np.uint8))
                picture.save(folder / split / str(name) / f"{index}.png")
