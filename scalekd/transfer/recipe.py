"""What the settings of all transfers have in common, as data that is checked when it is made."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from scalekd.errors import InputError
from scalekd.kinds import check_kinds
from scalekd.networks.input_config import MAX_SIDE
from scalekd.recipe import (
    Optim,
    Precision,
    Tracker,
    check_largest,
    check_micro_batches,
    check_model_arguments,
    check_name,
    check_positive,
    expand_home,
)

MAX_CLASSES = 2**14
"""Most classes: label maps travel in 16 bits."""


@dataclass(frozen=True)
class TransferData:
    """Annotated images.

    Args:
        root: Folder of the images and their annotations. Required unless --recipe or --config gives
            it.
        flip: Probability, from 0 to 1, of mirroring a training image.
        epoch_images: Number of images in an epoch, drawn at random. By default all training images
            once.
        corrupt_images: What to do with an image that cannot be read. stop ends the run and names
            the image; skip puts the next readable image in its place in training, and does not
            measure it in validation.
        workers: Number of processes that load images; 0 loads them in the training process. By
            default the number of CPU cores that may be used, at most 16.
    """

    root: str
    flip: float = 0.5
    epoch_images: int | None = None
    corrupt_images: Literal["stop", "skip"] = "stop"
    workers: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", expand_home(self.root))
        check_kinds(self, "data.")
        check_name("data.root", self.root)
        check_largest(self, "data.")
        check_shares("data.", flip=self.flip)
        if self.epoch_images is not None:
            check_positive(**{"data.epoch_images": self.epoch_images})
        if not (self.workers or 0) >= 0:
            raise InputError(f"data.workers is {self.workers}: it must be 0 or more")


@dataclass(frozen=True)
class TransferRecipe:
    """A training of a network on a student, or any timm model, as its backbone.

    Args:
        backbone: Backbone: the folder of an exported student (or a run folder, whose student is
            taken), or timm:NAME for one of timm's models. Required unless --recipe or --config
            gives it.
        data: Annotated images, and their augmentation.
        backbone_weights: Weights of the backbone: pretrained (those of the folder, or timm's,
            downloaded if need be), a file, or random.
        backbone_args: Further arguments of timm's create_model for the backbone, for example
            '{drop_path_rate: 0.3}'.
        frozen: Train on features of the backbone as it is: with head linear this is the linear
            probe.
        epochs: Number of epochs to train: passes over the training images, or over
            data.epoch_images of them.
        steps: Number of optimizer steps to train, in place of epochs.
        batch_size: Number of images in an optimizer step, on all devices together; a multiple of
            the devices times accumulate.
        optim: Optimizer and learning rate.
        precision: Precision of the arithmetic: 32-true (float32), 16-mixed (float16, or bfloat16 on
            CPUs) or bf16-mixed (bfloat16).
        accumulate: Number of micro-batches that a step's batch is computed in, one after another,
            to save memory. It must divide batch_size.
        sync_batchnorm: Compute BatchNorm statistics over all devices. By default each device uses
            its own part of the batch.
        seed: Random seed of the head, the augmentation and the order of the images.
        validate_every: Number of epochs between two validations.
        max_skipped: Number of steps that may be skipped because their loss is non-finite (NaN or
            Inf); the next such step ends the run.
        log_every: Number of steps between two lines of metrics.jsonl.
        trackers: Where metrics are sent in addition to metrics.jsonl: a list of csv, tensorboard,
            wandb and mlflow (docs/monitoring.md). By default none.
        save_minutes: Minutes between two checkpoints of a run.
        save_steps: Number of steps after which a checkpoint is written as well. By default only
            save_minutes counts.
    """

    backbone: str
    data: TransferData
    backbone_weights: str = "pretrained"
    backbone_args: dict[str, Any] = field(default_factory=dict)
    frozen: bool = False
    epochs: int = 100
    steps: int | None = None
    batch_size: int = 16
    optim: Optim = field(
        default_factory=lambda: Optim(
            lr=6e-5, weight_decay=0.01, warmup_epochs=0.0, clip=0.0, poly_power=1.0
        )
    )
    precision: Precision = "32-true"
    accumulate: int = 1
    sync_batchnorm: bool = False
    seed: int = 0
    validate_every: int = 1
    max_skipped: int = 0
    log_every: int = 10
    trackers: list[Tracker] = field(default_factory=list)
    save_minutes: float = 5.0
    save_steps: int | None = None

    def __post_init__(self) -> None:
        for name in ("backbone", "backbone_weights"):
            object.__setattr__(self, name, expand_home(getattr(self, name)))
        check_kinds(self)
        for name in ("backbone", "backbone_weights"):
            check_name(name, getattr(self, name))
        check_largest(self)
        check_model_arguments("backbone_args", self.backbone_args)
        check_positive(epochs=self.epochs, batch_size=self.batch_size, accumulate=self.accumulate)
        check_positive(validate_every=self.validate_every, log_every=self.log_every)
        check_positive(save_minutes=self.save_minutes)
        for name in ("steps", "save_steps"):
            if getattr(self, name) is not None:
                check_positive(**{name: getattr(self, name)})
        check_micro_batches(self.batch_size, self.accumulate)
        if self.max_skipped < 0:
            raise InputError(f"max_skipped is {self.max_skipped}: it must be 0 or more")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed is {self.seed}: it must be from 0 to {2**32 - 1}")
        self.optim.check(self.epochs, self.batch_size)

    @property
    def learning_rate(self) -> float:
        """The learning rate after the warm-up: optim.lr, in proportion to batch_size."""
        return self.optim.learning_rate(self.batch_size)

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """All settings, those that have a default with it."""
        data: Any = cls.__dataclass_fields__["data"].type
        return cls("any", data("any")).as_dict()

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain data, as in a recipe's YAML file."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))  # lists in place of tuples
        return plain


def check_shares(prefix: str, **shares: float) -> None:
    """Raise InputError for a setting that is not from 0 to 1."""
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise InputError(f"{prefix}{name} is {share}: it must be in [0, 1]")


def check_sides(prefix: str, **sides: tuple[int, ...]) -> None:
    """Raise InputError for a setting with a size in pixels that no image has."""
    for name, values in sides.items():
        if not values or not 0 < min(values) <= max(values) <= MAX_SIDE:
            given = values[0] if len(values) == 1 else list(values)
            raise InputError(f"{prefix}{name} is {given}: it must be from 1 to {MAX_SIDE} pixels")
