"""The settings of a segmentation, as data that is checked when it is made."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
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
    find_recipe,
)

RECIPES = Path(__file__).with_name("recipes")

MAX_CLASSES = 2**14
"""Most classes: label maps travel in 16 bits."""


@dataclass(frozen=True)
class SegmentData:
    """Images with a label map each, and how crops of them are made.

    Args:
        root: Folder of the images in the layout of ADE20K (images/training, images/validation,
            annotations/training, annotations/validation) or of Pascal VOC (JPEGImages,
            SegmentationClass, ImageSets/Segmentation/train.txt and val.txt). A label map is a PNG
            of 8 or 16 bits, or with a palette, whose values are numbers of classes. Required unless
            --recipe or --config gives it.
        classes: Number of classes. By default that of the names in the folder, which are the lines
            of classes.txt, or objectInfo150.txt of ADE20K; of Pascal VOC 21.
        reduce_zero_label: Whether the label 0 means no class, and the label 1 is the first class,
            as in ADE20K.
        ignore_label: Label of pixels that are neither trained on nor measured.
        crop_size: Size of the training crops in pixels: one number, or [height, width].
        short_side: Length in pixels to which the short side of an image is resized, before the
            random scale in training. By default images keep their size.
        scale: Range of the random factor by which a training image is resized, as [smallest,
            largest].
        flip: Probability, from 0 to 1, of mirroring a training crop.
        max_class_share: Largest share of a training crop, more than 0 and at most 1, that one class
            may take; up to ten other crops are drawn where it takes more.
        color_jitter: Strength, from 0 (off) to 1, of random changes of brightness, contrast and
            saturation of a training crop.
        epoch_images: Number of images in an epoch, drawn at random. By default all training images
            once.
        corrupt_images: What to do with an image that cannot be read. stop ends the run and names
            the image; skip puts the next readable image in its place in training, and does not
            measure it in validation.
        workers: Number of processes that load images; 0 loads them in the training process. By
            default the number of CPU cores that may be used, at most 16.
    """

    root: str
    classes: int | None = None
    reduce_zero_label: bool = False
    ignore_label: int = 255
    crop_size: int | tuple[int, int] = 512
    short_side: int | None = None
    scale: tuple[float, float] = (0.5, 2.0)
    flip: float = 0.5
    max_class_share: float = 1.0
    color_jitter: float = 0.0
    epoch_images: int | None = None
    corrupt_images: Literal["stop", "skip"] = "stop"
    workers: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", expand_home(self.root))
        check_kinds(self, "data.")
        check_name("data.root", self.root)
        check_largest(self, "data.")
        if self.classes is not None and not 2 <= self.classes <= MAX_CLASSES:
            raise InputError(f"data.classes is {self.classes}: it must be from 2 to {MAX_CLASSES}")
        if not 0 <= self.ignore_label < 2**16:
            raise InputError(f"data.ignore_label is {self.ignore_label}: it must be 0 to 65535")
        short_side = 1 if self.short_side is None else self.short_side
        sides = {"crop_size": self.crop, "short_side": (short_side,)}
        for name, values in sides.items():
            if not 0 < min(values) <= max(values) <= MAX_SIDE:
                given = getattr(self, name)
                raise InputError(f"data.{name} is {given}: it must be from 1 to {MAX_SIDE} pixels")
        if not 0.01 <= self.scale[0] <= self.scale[1] <= 100:
            raise InputError(
                f"data.scale is {list(self.scale)}: give two numbers from 0.01 to 100, the smaller "
                "one first"
            )
        for name in ("flip", "color_jitter"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"data.{name} is {getattr(self, name)}: it must be in [0, 1]")
        if not 0 < self.max_class_share <= 1:
            raise InputError(
                f"data.max_class_share is {self.max_class_share}: it must be more than 0 and at "
                "most 1"
            )
        if self.epoch_images is not None:
            check_positive(**{"data.epoch_images": self.epoch_images})
        if not (self.workers or 0) >= 0:
            raise InputError(f"data.workers is {self.workers}: it must be 0 or more")

    @property
    def crop(self) -> tuple[int, int]:
        """(height, width) of the training crops in pixels."""
        return self.crop_size if isinstance(self.crop_size, tuple) else (self.crop_size,) * 2


@dataclass(frozen=True)
class SegmentRecipe:
    """A semantic segmentation with a student, or any timm model, as its backbone.

    Args:
        backbone: Backbone: the folder of an exported student (or a run folder, whose student is
            taken), or timm:NAME for one of timm's models. Required unless --recipe or --config
            gives it.
        data: Images with label maps, and their augmentation.
        backbone_weights: Weights of the backbone: pretrained (those of the folder, or timm's,
            downloaded if need be), a file, or random.
        backbone_args: Further arguments of timm's create_model for the backbone, for example
            '{drop_path_rate: 0.3}'.
        head: Network on top of the backbone: upernet, UPerNet with an auxiliary head; or linear,
            one 1x1 convolution on the features of all levels.
        head_channels: Number of channels inside UPerNet. Its auxiliary head has half as many.
        auxiliary: Weight of the loss of UPerNet's auxiliary head; 0 switches it off.
        frozen: Train the head alone on features of the backbone as it is: with head linear the
            linear probe.
        epochs: Number of epochs to train: passes over the training images, or over
            data.epoch_images of them.
        steps: Number of optimizer steps to train, in place of epochs.
        batch_size: Number of images in an optimizer step, on all devices together; a multiple of
            the devices times accumulate.
        optim: Optimizer and learning rate.
        inference: How a validation image is segmented: whole, or by sliding windows of the crops'
            size whose logits are averaged.
        stride: Pixels between two sliding windows. By default two thirds of a window.
        precision: Precision of the arithmetic: 32-true (float32), 16-mixed (float16, or bfloat16 on
            CPUs) or bf16-mixed (bfloat16).
        accumulate: Number of micro-batches that a step's batch is computed in, one after another,
            to save memory. It must divide batch_size.
        sync_batchnorm: Compute BatchNorm statistics over all devices. By default each device uses
            its own part of the batch.
        seed: Random seed of the head, the crops and their order.
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
    data: SegmentData
    backbone_weights: str = "pretrained"
    backbone_args: dict[str, Any] = field(default_factory=dict)
    head: Literal["upernet", "linear"] = "upernet"
    head_channels: int = 512
    auxiliary: float = 0.4
    frozen: bool = False
    epochs: int = 100
    steps: int | None = None
    batch_size: int = 16
    optim: Optim = field(
        default_factory=lambda: Optim(
            lr=6e-5, weight_decay=0.01, warmup_epochs=0.0, clip=0.0, poly_power=1.0
        )
    )
    inference: Literal["whole", "sliding"] = "whole"
    stride: int | None = None
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
        check_positive(save_minutes=self.save_minutes, head_channels=self.head_channels)
        for name in ("steps", "stride", "save_steps"):
            if getattr(self, name) is not None:
                check_positive(**{name: getattr(self, name)})
        if self.head_channels % 2 or self.head_channels > 2**14:
            raise InputError(
                f"head_channels is {self.head_channels}: it must be even and at most {2**14}"
            )
        if not 0 <= self.auxiliary <= 1000:
            raise InputError(f"auxiliary is {self.auxiliary}: it must be from 0 to 1000")
        check_micro_batches(self.batch_size, self.accumulate)
        if self.max_skipped < 0:
            raise InputError(f"max_skipped is {self.max_skipped}: it must be 0 or more")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed is {self.seed}: it must be from 0 to {2**32 - 1}")
        if self.stride is not None and self.stride > min(self.data.crop):
            raise InputError(
                f"stride is {self.stride} and a window has {self.data.crop} pixels: a larger "
                "stride would leave pixels out"
            )
        self.optim.check(self.epochs, self.batch_size)

    @property
    def learning_rate(self) -> float:
        """The learning rate after the warm-up: optim.lr, in proportion to batch_size."""
        return self.optim.learning_rate(self.batch_size)

    @property
    def has_auxiliary(self) -> bool:
        """Whether the head has an auxiliary one."""
        return self.head == "upernet" and self.auxiliary > 0

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """All settings, those that have a default with it."""
        return cls("any", SegmentData("any")).as_dict()

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain data, as in a recipe's YAML file."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))  # lists in place of tuples
        return plain


def find_transfer_recipe(name: str) -> Path:
    """The YAML file of a packaged recipe of a transfer.

    Raises:
        InputError: there is no such recipe; the message lists all.
    """
    return find_recipe(name, RECIPES, "recipe of a transfer")
