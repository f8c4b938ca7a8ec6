"""A recipe's teacher and student on the meta device (no weights), and its images, counted."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from scalekd.compatibility.check import BATCH
from scalekd.data.fashion_mnist import NAMES as FASHION_MNIST_NAMES
from scalekd.data.fashion_mnist import find_files
from scalekd.data.loader import images_in_epoch
from scalekd.data.open import open_source
from scalekd.data.source import Source
from scalekd.errors import InputError
from scalekd.networks import InputConfig
from scalekd.recipe import Recipe
from scalekd.scale_kd import ScaleKD
from scalekd.training.prepare import prepare_on_meta

MAX_IMAGES = 10**12

IMAGENET = "imagenet"
"""The data.root of the paper's recipes: where no such folder exists, ImageNet-1K is meant."""

IMAGENET_IMAGES, IMAGENET_CLASSES = 1_281_167, 1000


@dataclass(frozen=True)
class TrainingImages:
    """What an estimate needs of the training images.

    Attributes:
        count: Images in an epoch.
        classes: Number of classes; None without labels.
        input: Size and normalisation, where the source decides them; None where the student does.
    """

    count: int
    classes: int | None
    input: InputConfig | None = None

    def source(self) -> Source:
        """A source of these classes and this input that raises when an image is read."""
        return Source.without_images(self.classes, self.input)


def count_training_images(recipe: Recipe, images: int | None = None) -> TrainingImages:
    """Count the recipe's training images where data.root exists.

    Args:
        recipe: The recipe whose `data` are counted.
        images: Training images, in place of the count. Default: those of data.root, or
            ImageNet-1K where that is `imagenet` and there is no such folder.

    Raises:
        InputError: `images` is less than 1, or is not given and data.root does not exist.
    """
    data = recipe.data
    if images is not None and not 1 <= images <= MAX_IMAGES:
        raise InputError(f"images is {images}: it must be from 1 to {MAX_IMAGES}")
    fashion_mnist = data.root in FASHION_MNIST_NAMES and find_files() is not None
    if data.root == "digits" or fashion_mnist or Path(data.root).exists():
        source = open_source(data)
        any_input = InputConfig(3, (224, 224), (0.5,) * 3, (0.5,) * 3)  # no image is loaded
        count = len(source.training_set(any_input, recipe.seeds[0]))  # type: ignore[arg-type]
        return TrainingImages(images_in_epoch(data, images or count), source.classes, source.input)
    if images is None and data.root != IMAGENET:
        raise InputError(
            f"data.root is {data.root!r}, and there is no such folder to count images in: give "
            f"their number with --images, or leave --data.root {IMAGENET} for ImageNet-1K"
        )
    count = images or data.train_images or IMAGENET_IMAGES
    return TrainingImages(images_in_epoch(data, count), IMAGENET_CLASSES)


def build_pair_on_meta(recipe: Recipe, images: TrainingImages) -> ScaleKD:
    """Build the recipe's pair on the meta device, and verify the teacher's tail on a reduced copy.

    Raises:
        InputError: The recipe has no teacher, or the pair cannot work.
    """
    return prepare_on_meta(recipe, images.source()).build_pair_on_meta()


def count_tail_gflop(pair: ScaleKD) -> float:
    """GFLOP an image of the teacher's tail, forward, for all views of a pair on the meta device."""
    teacher, shape = pair.teacher, pair.teacher.shapes.penultimate
    assert shape is not None
    teacher(torch.empty(BATCH, teacher.input.channels, *teacher.input.size))
    with FlopCounterMode(display=False) as counter:
        teacher.tail(torch.empty(BATCH, shape[1] * shape[2], shape[0]))
    return float(len(pair.criterion.penultimate) * counter.get_total_flops() / BATCH / 1e9)
