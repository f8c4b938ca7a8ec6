"""A recipe's pair without weights: all that its shapes tell, before any is loaded."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch.utils.flop_counter import FlopCounterMode

from scalekd.compatibility.check import BATCH
from scalekd.data.open import open_source
from scalekd.data.source import Source
from scalekd.distiller import ScaleKD
from scalekd.errors import InputError
from scalekd.networks import InputConfig, build_model
from scalekd.networks.teacher.reduced_copy import verify_on_reduced_copy
from scalekd.recipe import Recipe
from scalekd.training.run import pair_of, student_spec

IMAGENET = "imagenet"
"""The data.root of the paper's recipes: where no such folder is, ImageNet-1K is meant."""

IMAGENET_IMAGES, IMAGENET_CLASSES = 1_281_167, 1000


@dataclass(frozen=True)
class TrainingImages:
    """What an estimate needs to know of the training images.

    count: how many make an epoch.
    classes: None without labels.
    input: what they are, where their source decides; None where the student does.
    """

    count: int
    classes: int | None
    input: InputConfig | None = None

    def source(self) -> Source:
        """As a source that no image can be had from."""
        return Source(self.classes, 0, self.input, _none, None)


def count_training_images(recipe: Recipe, images: int | None = None) -> TrainingImages:
    """The recipe's training images, counted where they are there.

    Args:
        recipe: whose `data` are meant.
        images: how many there are, if they are not there.

    Raises:
        InputError: nothing says how many there are.
    """
    data = recipe.data
    if images is not None and images < 1:
        raise InputError(f"images is {images}: it must be 1 or more")
    if data.root == "digits" or Path(data.root).exists():
        source = open_source(data)
        any_input = InputConfig(3, (224, 224), (0.5,) * 3, (0.5,) * 3)  # none is loaded
        count = len(source.training_set(any_input, recipe.seeds[0]))  # type: ignore[arg-type]
        count = images or min(count, data.epoch_images or count)
        return TrainingImages(count, source.classes, source.input)
    if images is None and data.root != IMAGENET:
        raise InputError(
            f"there is no folder {data.root!r} to count images in: say how many with --images, or "
            f"leave --data.root {IMAGENET} for ImageNet-1K"
        )
    return TrainingImages(images or data.epoch_images or IMAGENET_IMAGES, IMAGENET_CLASSES)


def _none(*_: Any) -> NoReturn:
    raise AssertionError("an estimate reads no image")


def build_on_meta(recipe: Recipe, images: TrainingImages) -> ScaleKD:
    """The pair on the meta device; its teacher's tail is verified on a small copy.

    Raises:
        InputError: there is no teacher, or the pair cannot work.
    """
    if recipe.teacher is None:
        raise InputError("there is no teacher to estimate a distillation with: name one")
    arguments, size = recipe.teacher_args, recipe.teacher_size
    with torch.device("meta"):
        whole, _ = build_model(recipe.teacher, "random", size, **arguments)
    verified = verify_on_reduced_copy(
        recipe.teacher, whole, arguments, size, recipe.teacher_features, recipe.teacher_prefix
    )
    teacher = verified.teacher.with_model(whole, size)
    with torch.device("meta"):
        student = student_spec(recipe, images.source(), teacher).build()
        return pair_of(recipe, teacher, student, recipe.weights)


def tail_gflop(pair: ScaleKD) -> float:
    """An image: what the teacher's tail takes forward, for all views; on the meta device."""
    teacher, shape = pair.teacher, pair.teacher.shapes.penultimate
    assert shape is not None
    teacher(torch.empty(BATCH, teacher.input.channels, *teacher.input.size))
    with FlopCounterMode(display=False) as counter:
        teacher.tail(torch.empty(BATCH, shape[1] * shape[2], shape[0]))
    return float(len(pair.criterion.penultimate) * counter.get_total_flops() / BATCH / 1e9)
