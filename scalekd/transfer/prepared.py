"""What a transfer is made of: its images, its backbone, and what is done with them.

Each kind of transfer has a subclass of `PreparedTransfer`; `run.py` trains any of them.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

from scalekd.data.loader import ImageLoader, build_loaders
from scalekd.data.sampler import ResumableBatchSampler
from scalekd.data.seeding import seed_generators
from scalekd.data.source import Source
from scalekd.device import best_device
from scalekd.distiller import count_parameters
from scalekd.distributed import ranks
from scalekd.errors import InputError, one_line
from scalekd.networks import InputConfig
from scalekd.notes import Note
from scalekd.runs.system_info import describe_machine, describe_versions
from scalekd.step import Learner
from scalekd.training.batch import Batch, MicroBatch
from scalekd.training.dry_run import dry_run, notes_without_gradient
from scalekd.training.run import TrainingRun
from scalekd.training.validation import ScoredValidation
from scalekd.transfer.backbone import BackboneSpec, OpenedBackbone
from scalekd.transfer.network_folder import save_network
from scalekd.transfer.recipe import TransferRecipe
from scalekd.transfer.run_folder import Task, TransferFolder

EXAMPLES = 8
"""Validation images on the page of predictions."""


@dataclass(frozen=True, kw_only=True)
class PreparedTransfer(ABC):
    """A recipe with its images and its backbone.

    Attributes:
        recipe: the recipe.
        source: its images.
        spec: a dataclass of plain data, which builds the network.
        opened: the backbone with its weights.
    """

    task: ClassVar[Task]

    recipe: TransferRecipe
    source: Source
    spec: Any
    opened: OpenedBackbone

    @abstractmethod
    def build_network(self, model: nn.Module) -> Learner:
        """The learner with a random head on `model`, the backbone's timm model."""

    @abstractmethod
    def try_validation(self, learner: Learner, item: Any) -> None:
        """Predict for the validation image `item`, by a learner on the device that trains.

        Raises:
            InputError: the network cannot.
        """

    @abstractmethod
    def build_validation(
        self, batches: DataLoader[Any], every_steps: int, state: dict[str, Any] | None
    ) -> ScoredValidation:
        """The validation of a run, from a checkpoint's state on."""

    @abstractmethod
    def write_outcome(self, training: TrainingRun, folder: TransferFolder, corrupt: int) -> str:
        """Write what a finished run leaves: its network, its scores and its pictures.

        Args:
            training: the run.
            folder: its run folder.
            corrupt: images that could not be read.

        Returns:
            Its scores in a few words.

        Raises:
            OSError: the disk is full, for example.
        """

    @property
    def backbone_spec(self) -> BackboneSpec:
        """What builds the backbone."""
        return self.opened.spec

    @property
    def input(self) -> InputConfig:
        """Channels, size and normalisation of the images."""
        return self.opened.input

    @property
    def identity(self) -> dict[str, Any]:
        """What must be the same when the run resumes, and in all its ranks, by name."""
        weights = self.opened.weights
        return {
            "number of images": self.source.splits[0].images,
            "set of images": self.source.identity,
            "set of validation images": self.source.validation_identity,
            "backbone": f"{self.backbone_spec.architecture} {weights.sha256 or weights.source}",
        }

    def to_batch(
        self, items: Sequence[Any], device: torch.device, config: InputConfig
    ) -> MicroBatch:
        """Make a micro-batch of what the loader gives."""
        return Batch.from_loader(items, device, config)

    def build_learner(self) -> Learner:
        """What the run trains, on the CPU; every backbone gets the head that the seed draws."""
        seed_generators(self.recipe.seed)
        return self.build_network(copy.deepcopy(self.opened.model))

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
        sampler = training.batch_sampler
        assert isinstance(sampler, ResumableBatchSampler)
        check_schedule(recipe, sampler.steps_per_epoch)
        return training, validation

    def save_network(self, training: TrainingRun, folder: TransferFolder) -> nn.Module:
        """Write the trained network to the run folder; gives it in eval mode."""
        network = training.loop.evaluated_student
        folder.clear_network()
        weights = {name: tensor.cpu() for name, tensor in network.state_dict().items()}
        save_network(weights, self.spec, folder.network)
        return network.eval()

    def conditions(self, training: TrainingRun) -> dict[str, Any]:
        """How a finished run was trained and measured, for its file of scores."""
        recipe = self.recipe
        return {
            "task": self.task.title,
            "backbone": recipe.backbone,
            "weights": str(self.opened.weights),
            "head": self.spec.head,
            "frozen": recipe.frozen,
            "seed": recipe.seed,
            "training_images": self.source.splits[0].images,
            "validation_images": self.source.splits[1].images,
            "steps": training.loop.step,
            "seconds": training.metrics.seconds,
            "images_per_second": training.metrics.images_per_second,
            "loss": training.metrics.mean_terms(),
            "devices": ranks.world_size(),
            "machine": describe_machine(),
            "versions": describe_versions(),
        }


@dataclass(frozen=True)
class TransferSummary:
    """A network as it is before training.

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


def try_transfer(prepared: PreparedTransfer, learner: Learner) -> TransferSummary:
    """Try a step on two images and the inference of a validation image, on a copy of `learner`.

    Raises:
        InputError: the network cannot be trained on such images, or cannot predict for them.
    """
    check_micro_batch(prepared.recipe, learner, ranks.world_size())
    batches, validation = prepared.open_loaders()
    tried = copy.deepcopy(learner).to(best_device())
    with refusing(
        f"the backbone {prepared.recipe.backbone!r} cannot be trained on these images",
        "give another size of the images (--data), or another backbone",
    ):
        gflop = dry_run(tried, batches, prepared.to_batch)
    without_gradient = notes_without_gradient(tried)
    tried.student.eval()
    prepared.try_validation(tried, validation.dataset[0])
    levels: Any = learner.student.backbone
    backbone = count_parameters(levels.levels)
    return TransferSummary(
        backbone_parameters=backbone,
        head_parameters=count_parameters(learner.student) - backbone,
        gflop=gflop,
        notes=[*prepared.source.notes, prepared.opened.weights.note, *without_gradient],
    )


def check_schedule(recipe: TransferRecipe, steps_per_epoch: int) -> None:
    """Raise InputError where `steps` end before the learning rate has done what the recipe says,
    whose times are in epochs."""
    optim, steps = recipe.optim, recipe.steps
    if steps is None:
        return
    times: dict[str, Sequence[float]] = {
        "warmup_epochs": [optim.warmup_epochs],
        "drops": optim.drops,
        "restarts": optim.restarts,
    }
    for name, epochs in times.items():
        if epochs and max(epochs) * steps_per_epoch >= steps:
            raise InputError(
                f"steps is {steps}, which ends before epoch {max(epochs):g} of optim.{name}: an "
                f"epoch has {steps_per_epoch} steps here; give --optim.{name} within "
                f"{steps / steps_per_epoch:.3g} epochs, or more steps"
            )


def check_micro_batch(recipe: TransferRecipe, learner: Learner, devices: int) -> None:
    """Raise InputError where a device computes one image at once, and BatchNorm needs more."""
    images = recipe.batch_size // devices // recipe.accumulate
    learner.train()
    normed = any(isinstance(m, _BatchNorm) and m.training for m in learner.modules())
    if images == 1 and normed:
        raise InputError(
            f"batch_size is {recipe.batch_size}: a micro-batch of 1 image on each device is too "
            "small for BatchNorm, which needs at least 2; make it larger"
        )


def evenly_spread(images: Any) -> list[Any]:
    """`EXAMPLES` items of a validation set, evenly spread over it; all of a smaller one."""
    count = min(EXAMPLES, len(images))
    return [images[number * len(images) // count] for number in range(count)]


@contextmanager
def refusing(what: str, remedy: str) -> Iterator[None]:
    """Refuse what a network does not take: timm and torch check sizes by many kinds of errors."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError, ValueError, IndexError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{what} ({one_line(error)}): {remedy}") from error
