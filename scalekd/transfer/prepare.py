"""What a segmentation is made of: its images, its backbone, and the learner that is trained."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

from scalekd.data.loader import ImageLoader, build_loaders
from scalekd.data.seeding import seed_generators
from scalekd.data.source import Source
from scalekd.device import best_device
from scalekd.distiller import count_parameters
from scalekd.distributed import ranks
from scalekd.errors import InputError, one_line
from scalekd.networks import InputConfig
from scalekd.notes import Note
from scalekd.training.dry_run import dry_run, notes_without_gradient
from scalekd.transfer.backbone import OpenedBackbone, open_backbone
from scalekd.transfer.images import open_labelled_images
from scalekd.transfer.inference import Inference
from scalekd.transfer.recipe import SegmentRecipe
from scalekd.transfer.segmenter import SegmentationLearner, SegmenterSpec
from scalekd.transfer.validation import predict_classes


@dataclass(frozen=True)
class PreparedSegmentation:
    """A recipe with its images and its backbone.

    Attributes:
        recipe: the recipe.
        source: its images.
        spec: what builds the segmenter.
        opened: the backbone with its weights.
    """

    recipe: SegmentRecipe
    source: Source
    spec: SegmenterSpec
    opened: OpenedBackbone

    @property
    def input(self) -> InputConfig:
        """Crop size and normalisation of the images."""
        return self.opened.input

    @property
    def identity(self) -> dict[str, Any]:
        """What must be the same when the run resumes, and in all its ranks, by name."""
        weights = self.opened.weights
        return {
            "number of images": self.source.splits[0].images,
            "set of images": self.source.identity,
            "set of validation images": self.source.validation_identity,
            "backbone": f"{self.spec.backbone.architecture} {weights.sha256 or weights.source}",
        }

    def build_learner(self) -> SegmentationLearner:
        """What the run trains, on the CPU; every backbone gets the head that the seed draws."""
        seed_generators(self.recipe.seed)
        segmenter = self.spec.build(copy.deepcopy(self.opened.model))
        return SegmentationLearner(segmenter, self.recipe.auxiliary)

    def open_loaders(self, start_step: int = 0) -> tuple[ImageLoader, DataLoader[Any]]:
        """The training loader from a step on, and the loader of single validation images."""
        recipe = self.recipe
        training, validation = build_loaders(
            self.source,
            recipe.data,
            self.input,
            batch_size=recipe.batch_size,
            seed=recipe.seed,
            epochs=recipe.epochs,
            start_step=start_step,
            micro_batches=recipe.accumulate,
            validation_batch_size=1,  # their sizes differ
            steps=recipe.steps,
        )
        assert validation is not None
        return training, validation


def prepare_segmentation(recipe: SegmentRecipe) -> PreparedSegmentation:
    """Open a recipe's images and its backbone.

    Raises:
        InputError: the images or the backbone cannot be used.
    """
    source = open_labelled_images(recipe.data)
    seed_generators(recipe.seed)  # of a backbone that is random, as asked
    opened = open_backbone(
        recipe.backbone, recipe.backbone_weights, recipe.backbone_args, recipe.data.crop
    )
    spec = SegmenterSpec(
        backbone=opened.spec,
        head=recipe.head,
        head_channels=recipe.head_channels,
        has_auxiliary=recipe.has_auxiliary,
        frozen=recipe.frozen,
        class_names=source.class_names,
    )
    return PreparedSegmentation(recipe=recipe, source=source, spec=spec, opened=opened)


@dataclass(frozen=True)
class SegmentationSummary:
    """A segmenter as it is before training.

    Attributes:
        backbone_parameters: their number.
        head_parameters: their number, the norms of the levels included.
        gflop: of a training step, for each image.
        notes: remarks for the person who trains.
    """

    backbone_parameters: int
    head_parameters: int
    gflop: float
    notes: list[Note]


def try_segmentation(
    prepared: PreparedSegmentation, learner: SegmentationLearner
) -> SegmentationSummary:
    """Try a step on two images and the inference of a validation image, on a copy of `learner`.

    Raises:
        InputError: the segmenter cannot be trained on such crops, or cannot segment such images.
    """
    recipe = prepared.recipe
    _check_micro_batch(recipe, learner)
    batches, validation = prepared.open_loaders()
    tried = copy.deepcopy(learner).to(best_device())
    height, width = recipe.data.crop
    with _refusing(
        f"the backbone {recipe.backbone!r} cannot be trained on crops of {height}x{width} pixels",
        "give another --data.crop_size",
    ):
        gflop = dry_run(tried, batches)
    without_gradient = notes_without_gradient(tried)
    images, labels = validation.dataset[0]
    with _refusing(
        f"a validation image of {images.shape[1]}x{images.shape[2]} pixels cannot be segmented "
        f"with the backbone {recipe.backbone!r}",
        "give --inference sliding",
    ):
        predict_classes(
            tried.student.eval(),
            images[None],
            tuple(labels.shape),
            inference=Inference.of(recipe),
            input=prepared.input,
            precision=recipe.precision,
        )
    backbone = count_parameters(learner.student.backbone.levels)
    return SegmentationSummary(
        backbone_parameters=backbone,
        head_parameters=count_parameters(learner.student) - backbone,
        gflop=gflop,
        notes=[*prepared.source.notes, prepared.opened.weights.note, *without_gradient],
    )


def _check_micro_batch(recipe: SegmentRecipe, learner: SegmentationLearner) -> None:
    images = recipe.batch_size // ranks.world_size() // recipe.accumulate
    learner.train()
    normed = any(isinstance(m, _BatchNorm) and m.training for m in learner.modules())
    if images == 1 and normed:
        raise InputError(
            f"batch_size is {recipe.batch_size}: a micro-batch of 1 image on each device is too "
            "small for BatchNorm, which needs at least 2; make it larger"
        )


@contextmanager
def _refusing(what: str, remedy: str) -> Iterator[None]:
    """Refuse what a network does not take: timm and torch check sizes by many kinds of errors."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError, ValueError, IndexError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{what} ({one_line(error)}): {remedy}") from error
