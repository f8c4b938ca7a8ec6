"""A recipe: every setting of a distillation, as data that is checked when it is made."""

import difflib
import itertools
import json
import math
import os
import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from timm.optim import list_optimizers

from scalekd.baselines import Dist, FeatureDistillation, Ofa, Relations, Rsd, Vkd
from scalekd.errors import InputError
from scalekd.kinds import check_kinds
from scalekd.method import LossWeights
from scalekd.networks import FeatureSelection
from scalekd.networks.input_config import MAX_SIDE, Interpolation
from scalekd.networks.teacher.frozen import PrefixTokens

LARGEST = {
    "data.workers": 256,
    "data.mixup": 1e3,
    "data.cutmix": 1e3,
    "optim.lr": 1e36,
    "optim.lr_batch_size": 2**24,
    "optim.weight_decay": 1e3,
    "optim.clip": 1e9,
    "optim.poly_power": 100,
    "epochs": 10**6,
    "batch_size": 2**24,
    "temperature": 1e3,
    "validate_every": 10**6,
    "max_skipped": 10**9,
    "log_every": 10**9,
    "save_minutes": 1e6,
    "save_steps": 10**9,
}
"""The largest value of settings: more is a slip, and would overflow or fill the memory."""

PATHS = "teacher", "teacher_weights", "student_weights", "teacher_classes", "cache"
"""Settings that may name files or folders."""

MAX_WEIGHT, MAX_HEADS, MAX_SEEDS, MAX_FOLDER_BYTES = 1e4, 1024, 1000, 200
MAX_ARGUMENT = 10**6
"""Largest number among the arguments of a model."""

SET_ELSEWHERE = {
    "name": "{model}",
    "model_name": "{model}",
    "weights": "{prefix}weights",
    "pretrained": "{prefix}weights",
    "checkpoint_path": "{prefix}weights",
    "weights_key": "{prefix}weights_key",
    "size": "{size}",
}
"""Arguments by which a model is built that have a setting of their own, and which."""

RUN_FOLDER_FILE = re.compile(
    r"student|checkpoints|trackers|.*\.(yaml|json|jsonl|png|log|ckpt|part|lock)|\..*", re.IGNORECASE
)
"""Names that a run folder itself uses."""

RECIPES = Path(__file__).with_name("recipes")
DEFAULT_RECIPE = "digits"

Method = Literal[
    "supervised", "logit_kd", "fd", "dist", "ofa", "rsd", "relations", "vkd", "scalekd"
]
"""How a student is trained; all but scalekd are baselines (docs/baselines.md)."""

Tracker = Literal["csv", "tensorboard", "wandb", "mlflow"]
Precision = Literal["32-true", "16-mixed", "bf16-mixed"]


@dataclass(frozen=True)
class Data:
    """Images and their augmentation.

    Args:
        root: Where the images are: a folder with train/CLASS/*.jpg and val/CLASS/*.jpg; a folder
            with CLASS/*.jpg alone, of which a part is held out to validate on; a CSV, TSV or
            Parquet file with the columns path and label, and perhaps split; a folder of WebDataset
            tar files, train/*.tar and val/*.tar; a folder of images without classes, for training
            without labels; hf:NAME or hf:FOLDER for a Hugging Face dataset; fashion-mnist, which is
            found or downloaded, fashion-mnist:choosing or fashion-mnist:final (docs/data.md); or
            digits, which is packaged. Required unless --recipe or --config gives it.
        image_size: Size of the images in pixels, in a distillation of the student's images: one
            number for square images, or [height, width]. By default the size that the model is
            configured for.
        mean: Mean of each channel by which the images are normalised, in a distillation the
            student's images, for values from 0 to 1, for example [0.485,0.456,0.406]. By default
            that of the model. Not for the digits.
        std: Standard deviation of each channel by which the images are normalised, as mean. By
            default that of the model. Not for the digits.
        crop: Share of a validation image's sides that is looked at, more than 0 and at most 1: the
            image is resized to image_size divided by crop, and cropped from the centre. By default
            0.875, and in evaluate what the model's configuration says. An exported student's
            configuration says what was measured. Not for the digits.
        interpolation: How validation images are resized. By default bilinear, and in evaluate what
            the model's configuration says. An exported student's configuration says what was
            measured. Not for the digits.
        val_share: Share of the images, more than 0 and less than 1, that is held out of training to
            validate on where the images have no validation split of their own. It is about this
            share of each class, chosen by a hash of the images' names, so that it stays the same
            when images are added. By default 0.1; evaluate measures on all images of such a folder
            or table unless it is given.
        labels: Whether the images are used with labels. false trains without labels on a folder
            whose folders are no classes, or on a table without a column of labels; true refuses
            images without labels. By default labels are used where there are any.
        train_images: Number of training images to use, the same number from each class. By default
            all of them.
        epoch_images: Number of images in an epoch, drawn at random; batch_size or more, and at most
            as many as there are. By default all training images once.
        crop_area: Smallest share of a training image's area, more than 0 and at most 1, that its
            random crop keeps. By default 0.08. Not for the digits.
        auto_augment: Augmentation policy by timm's name, for example rand-m9-n2-mstd0.5
            (RandAugment) or 3a (3-Augment). By default none. Not for the digits.
        color_jitter: Strength of random changes of brightness, contrast and saturation, from 0
            (off) to 1. Only without auto_augment or with 3a. Not for the digits.
        erasing: Probability, from 0 (off) to 1, of erasing a random rectangle of a training image.
            Not for the digits.
        mixup: Alpha of Mixup, 0 or more, which blends each image and its label with another of the
            batch; 0 switches it off. If cutmix is on too, each batch is mixed by one of them.
        cutmix: Alpha of CutMix, 0 or more, which pastes a rectangle of one image into another and
            mixes their labels; 0 switches it off. If mixup is on too, each batch is mixed by one of
            them.
        corrupt_images: What to do with an image that cannot be read. stop ends the run and names
            the image; skip puts the next readable image in its place in training, and does not
            measure it in validation.
        workers: Number of processes that load images, or in evaluate and probe of threads;
            0 loads them in the main process. By default the number of CPU cores that may be used,
            at most 16.
    """

    root: str
    image_size: int | tuple[int, int] | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    crop: float | None = None
    interpolation: Interpolation | None = None
    val_share: float | None = None
    labels: bool | None = None
    train_images: int | None = None
    epoch_images: int | None = None
    auto_augment: str | None = None
    color_jitter: float = 0.0
    erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    corrupt_images: Literal["stop", "skip"] = "stop"
    workers: int | None = None
    crop_area: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", expand_home(self.root))
        check_kinds(self, "data.")
        check_name("data.root", self.root)
        check_largest(self, "data.")
        if self.val_share is not None and not 0 < self.val_share < 1:
            raise InputError(
                f"data.val_share is {self.val_share}: it must be more than 0 and less than 1"
            )
        for name in ("train_images", "epoch_images"):
            value = getattr(self, name)
            if value is not None:
                check_positive(**{f"data.{name}": value})
        if self.size is not None and not 0 < min(self.size) <= max(self.size) <= MAX_SIDE:
            raise InputError(
                f"data.image_size is {self.image_size}: it must be one number, or height and "
                f"width, each more than 0 and at most {MAX_SIDE}"
            )
        _check_statistics("data.", self.mean, self.std)
        for name in ("crop", "crop_area"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise InputError(f"data.{name} is {value}: it must be more than 0 and at most 1")
        if not (self.workers or 0) >= 0:
            raise InputError(f"data.workers is {self.workers}: it must be 0 or more")
        if not 0 <= self.erasing <= 1:
            raise InputError(f"data.erasing is {self.erasing}: it must be in [0, 1]")
        if not 0 <= self.color_jitter <= 1:
            raise InputError(f"data.color_jitter is {self.color_jitter}: it must be in [0, 1]")
        for name in ("mixup", "cutmix"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"data.{name} is {value}: it must be 0 or more")
        if self.color_jitter and self.auto_augment and "3a" not in self.auto_augment:
            raise InputError(
                f"data.color_jitter is {self.color_jitter} and data.auto_augment is "
                f"{self.auto_augment!r}, with which timm does not use it: drop one of the two, or "
                "take 3a"
            )

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) of the student's images in pixels; None for the model's own size."""
        if self.image_size is None or isinstance(self.image_size, tuple):
            return self.image_size
        return self.image_size, self.image_size


@dataclass(frozen=True)
class Optim:
    """Optimizer and learning rate: linear warm-up, then a cosine, or drops to a tenth.

    Args:
        name: Optimizer by timm's name, for example adamw, lamb, sgd or momentum.
        lr: Learning rate after the warm-up; more than 0.
        lr_batch_size: Batch size that lr is meant for: with another batch_size the learning rate
            changes in proportion. By default lr is used as it is with any batch size.
        weight_decay: Weight decay, 0 or more. Biases, norms and positional embeddings are exempt,
            unless decay_all is true.
        decay_all: Apply weight decay to all parameters, biases and norms included.
        warmup_epochs: Epochs over which the learning rate rises linearly to lr; may be a fraction,
            and must be less than epochs.
        min_lr: Learning rate at the end of the cosine schedule, 0 or more.
        drops: Epochs at which the learning rate falls to a tenth, for example [30,60,90], in place
            of the cosine; may be fractions. By default the cosine is used.
        restarts: Epochs at which the cosine starts again at lr, without warm-up, and falls over the
            epochs to the next restart or to the end (warm restarts), for example [100]. A finished
            run that is prolonged gets one (docs/resuming.md). Not with drops.
        clip: Largest norm of the gradients, to which larger ones are scaled down; 0 switches
            clipping off.
        poly_power: Power of the polynomial by which the learning rate falls from lr to min_lr, more
            than 0, in place of the cosine: 1.0 is a straight line. By default the cosine is used.
            Not with drops or restarts.
    """

    name: str = "adamw"
    lr: float = 5e-4
    lr_batch_size: int | None = None
    weight_decay: float = 0.05
    decay_all: bool = False
    warmup_epochs: float = 5.0
    min_lr: float = 0.0
    drops: list[float] = field(default_factory=list)
    restarts: list[int] = field(default_factory=list)
    clip: float = 5.0
    poly_power: float | None = None

    def __post_init__(self) -> None:
        check_kinds(self, "optim.")

    def learning_rate(self, batch_size: int) -> float:
        """The learning rate after the warm-up: lr, in proportion to the batch size."""
        return self.lr * batch_size / (self.lr_batch_size or batch_size)

    def check(self, epochs: int, batch_size: int) -> None:
        """Raise InputError where a training of so many epochs cannot be optimised like this."""
        check_largest(self, "optim.")
        if self.lr_batch_size is not None:
            check_positive(**{"optim.lr_batch_size": self.lr_batch_size})
        check_positive(**{"optim.lr": self.lr})
        if self.min_lr > (learning_rate := self.learning_rate(batch_size)) > 0:
            raise InputError(
                f"optim.min_lr is {self.min_lr}: it must be at most the learning rate, "
                f"{learning_rate:.3g}"
            )
        for name in ("weight_decay", "warmup_epochs", "min_lr", "clip"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"optim.{name} is {value}: it must be 0 or more")
        self._check_schedule(epochs)
        if self.name not in (known := list_optimizers()):
            near = difflib.get_close_matches(self.name, known, n=3) or ["adamw", "sgd"]
            raise InputError(
                f"optim.name is {self.name!r}, which is no optimizer of timm's; it has, for "
                f"example, {', '.join(near)}"
            )

    def shortened(self, epochs: int) -> "Optim":
        """The same with a schedule that fits into so few epochs."""
        return replace(
            self,
            warmup_epochs=min(self.warmup_epochs, epochs / 2),
            min_lr=0.0,  # the rate of a small batch may be below it
            drops=[epochs / 2] if self.drops else [],
            restarts=[],
        )

    def _check_schedule(self, epochs: int) -> None:
        if self.warmup_epochs >= epochs:
            raise InputError(
                f"optim.warmup_epochs is {self.warmup_epochs} and epochs is {epochs}: "
                "the warm-up must be shorter than the training"
            )
        if any(not 0 < drop < epochs for drop in self.drops):
            raise InputError(
                f"optim.drops are {self.drops}: they must lie between 0 and the {epochs} epochs"
            )
        if any(second <= first for first, second in itertools.pairwise(self.drops)):
            raise InputError(f"optim.drops are {self.drops}: they must rise")
        if self.restarts and self.drops:
            raise InputError(
                f"optim.restarts are {self.restarts} and optim.drops are {self.drops}: restarts "
                "are of the cosine, which drops replace; drop one of the two"
            )
        bounds = [self.warmup_epochs, *self.restarts, epochs]
        if any(second <= first for first, second in itertools.pairwise(bounds)):
            raise InputError(
                f"optim.restarts are {self.restarts}: they must rise, and lie between the "
                f"warm-up's {self.warmup_epochs:g} and the {epochs} epochs"
            )
        if self.poly_power is not None:
            check_positive(**{"optim.poly_power": self.poly_power})
            if self.drops or self.restarts:
                raise InputError(
                    f"optim.poly_power is {self.poly_power}, and optim.drops or optim.restarts are "
                    "given: take one schedule"
                )


class RunSettings(Protocol):
    """The settings of a training, as a run folder and its trackers need them; a `Recipe` is one."""

    @property
    def epochs(self) -> int:
        """Epochs to train."""

    @property
    def optim(self) -> Optim:
        """Optimizer and learning rate."""

    @property
    def trackers(self) -> list[Tracker]:
        """Where metrics are sent in addition to metrics.jsonl."""

    @property
    def log_every(self) -> int:
        """Steps between two records of the metrics."""

    @property
    def save_minutes(self) -> float:
        """Minutes between two checkpoints."""

    @property
    def save_steps(self) -> int | None:
        """Steps between two checkpoints; None for no such rule."""

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """All settings as plain data, those that have a default with it."""

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain data, as in a YAML file."""


@dataclass(frozen=True)
class Student:
    """One more student that learns from the recipe's teacher; see `Recipe.more_students`.

    Args:
        name: Student model by its timm name.
        args: Further arguments of timm's create_model for this student.
        folder: Name of this student's run folder within --out. By default its name.
        features: Which two of this student's features are projected.
        heads: Attention heads of this student's two projectors, as [penultimate, final]. By default
            those of the paper for its pairs, and otherwise one head for each 64 channels.
        optim: Optimizer and learning rate of this student. By default the recipe's.
        weights: Weights of this student's loss terms. By default the recipe's.
        ema: Decay of the moving average of this student's weights. By default the recipe's.
        student_weights: Weights that this student starts from, as the recipe's student_weights. By
            default random.
        student_weights_key: Key of the weights in a file that holds several networks.
    """

    name: str
    args: dict[str, Any] = field(default_factory=dict)
    folder: str | None = None
    features: FeatureSelection = field(default_factory=FeatureSelection)
    heads: tuple[int, int] | None = None
    optim: Optim | None = None
    weights: LossWeights | None = None
    ema: float | None = None
    student_weights: str = "random"
    student_weights_key: str | None = None

    def __post_init__(self) -> None:
        check_kinds(self, "more_students: ")
        check_name("more_students: name", self.name)
        student_weights = expand_home(self.student_weights)
        object.__setattr__(self, "student_weights", student_weights)
        check_name("more_students: student_weights", student_weights)
        if self.folder is not None:
            _check_folder_name(self.folder)


@dataclass(frozen=True)
class Recipe:
    """A distillation and the runs that it is compared with.

    Args:
        teacher: Teacher model: a timm name, or local-dir:FOLDER for a folder that timm saved.
            `scalekd distill` needs one, from here or from --recipe or --config.
        student: Student model by its timm name; it starts from student_weights. Required unless
            --recipe or --config gives it.
        data: Images and their augmentation.
        teacher_weights: Weights of the teacher: pretrained (timm's, downloaded if need be), a file
            (.safetensors, or a torch checkpoint as trainers write them), a folder that
            transformers wrote, or random.
        teacher_weights_key: Key of the weights in a file that holds several networks, for example
            model_ema, with dots for depth. By default the only network in the file, or of a network
            and its average over training steps (EMA) the average.
        teacher_args: Further arguments of timm's create_model for the teacher, for example
            '{img_size: 224}'.
        teacher_size: Size, as [height, width] in pixels, at which the teacher sees the images. By
            default the size that the teacher's model is configured for.
        teacher_mean: Mean of each channel by which the teacher's images are normalised, for values
            from 0 to 1, for example [0.5,0.5,0.5]. By default that of the teacher's model, which a
            teacher of your own may not have been trained with.
        teacher_std: Standard deviation of each channel by which the teacher's images are
            normalised, as teacher_mean. By default that of the teacher's model.
        teacher_classes: Order of the teacher's classes: data for that of the images' classes;
            sorted by code point, as torchvision sorts folders, class10 before class2; natural as
            timm's data sets sort them, class2 before class10; or a text file with a class's name on
            each line. By default the order of the names in the teacher's configuration if it has
            them, and otherwise data.
        teacher_features: Which two of the teacher's features are used. Its tail is the part of the
            network after the penultimate feature; the student's projected tokens run through it.
        student_weights: Weights that the student starts from: random, as in the paper; pretrained
            (timm's, downloaded if need be); a file (.safetensors, or a torch checkpoint as trainers
            write them); or the folder of a model, of timm or transformers, or of an earlier run. A
            classifier for other classes than the images' is not loaded: it starts from random
            values.
        student_weights_key: Key of the weights in a file that holds several networks, as
            teacher_weights_key.
        student_args: Further arguments of timm's create_model for the student, for example
            '{drop_path_rate: 0.1}'.
        student_features: Which two of the student's features are projected.
        more_students: Further students that learn from the same passes of the teacher, interleaved,
            each in a run folder of its own: timm names, or in YAML settings of their own (see
            --more_students.help and docs/many-students.md). By default none.
        epochs: Number of epochs to train: passes over the training images, or over
            data.epoch_images of them.
        batch_size: Number of images in an optimizer step, on all devices together; a multiple of
            the devices times accumulate.
        optim: Optimizer and learning rate.
        task: Task loss, of the student's logits and the labels: cross_entropy; bce, the binary
            cross-entropy's mean over the classes; or bce_sum, its sum, as in the ScaleKD authors'
            code.
        label_smoothing: Label smoothing of the task loss: the share of a label, from 0 to less than
            1, that is spread evenly over all classes.
        ema: Decay, between 0 and 1, for example 0.9999, of an exponential moving average of the
            student's weights over steps; the average is then what is measured and exported. By
            default there is no average.
        weights: Weights of the loss terms, 0 or more: --weights.tpp_original,
            --weights.tpp_alternative, --weights.final_original, --weights.final_alternative and
            --weights.logits (at most 1: the task loss has the rest). 0 switches a term off. By
            default 0.08, 0.06, 0.08, 0.06 and 0.5, as in the ScaleKD authors' code; logits is 0 if
            the teacher has no classifier. tpp terms compare features after the teacher's tail,
            final terms the final features; original views compare them as they are, alternative
            views without their mean over space.
        temperature: Temperature that divides the logits in logit distillation; more than 0.
        heads: Attention heads of the two projectors, as [penultimate, final]; each must divide its
            feature's channels. By default those of the paper for its pairs, and otherwise one head
            for each 64 channels.
        separable_stem: Use separable convolutions in the projectors: a cheaper step that costs some
            accuracy and is not the exact method (docs/speed.md).
        teacher_prefix: Prefix tokens, such as a class token, that are put before the student's
            tokens in the teacher's tail: own for the teacher's own tokens of the same image, or
            none as in the ScaleKD authors' code.
        one_token: What to do if a feature map is 1x1, where its alternative view, without the mean
            over space, is zero: refuse the pair, or drop that view's term from the loss.
        precision: Precision of the arithmetic: 32-true (float32), 16-mixed (float16, or bfloat16 on
            CPUs) or bf16-mixed (bfloat16). The projector of weights.final_alternative stays in
            float32.
        accumulate: Number of micro-batches that a step's batch is computed in, one after another,
            to save memory. It must divide batch_size.
        checkpoint_tail: Compute the teacher's tail a second time in the backward pass, to save the
            memory of its activations.
        checkpoint_projectors: Compute most of each projector a second time in the backward pass, to
            save the memory of its activations.
        compile: Compile the repeated blocks of teacher and student, and the projectors, with
            torch.compile.
        channels_last: Store the student's and the projectors' tensors in channels_last format,
            which is faster for CNNs on GPUs.
        deterministic: Take kernels that always add in the same order, where torch has them, so that
            a run on a GPU can be repeated and resumed bit-identically. They are slower.
        sync_batchnorm: Compute the student's BatchNorm statistics over all devices. By default each
            device uses its own part of the batch.
        fsdp: Networks whose weights are sharded over the devices (FSDP): [student] for the student
            and everything that is trained with it, [teacher], or both. By default each device has
            all weights.
        cache: Folder of a teacher's outputs that `scalekd cache` made, which are read instead of
            running the teacher. By default the teacher is run.
        seeds: Random seeds, for example [1,2,3]; each method is trained once with each.
        compare: Methods to train for comparison with the same student, as a list: supervised
            (labels only), logit_kd (labels and the teacher's logits), or any other value of method.
            By default none.
        validate_every: Number of epochs between two validations.
        max_skipped: Number of steps in a run that may be skipped because their loss is non-finite
            (NaN or Inf); the next such step ends the run.
        log_every: Number of steps between two lines of metrics.jsonl.
        trackers: Where metrics are sent in addition to metrics.jsonl: a list of csv, tensorboard,
            wandb and mlflow (docs/monitoring.md). By default none.
        save_minutes: Minutes between two checkpoints of a run.
        save_steps: Number of steps after which a checkpoint is written as well. By default only
            save_minutes counts.
        method: Method that trains the student: scalekd, or one of the baselines that it is compared
            with (docs/baselines.md): logit_kd, fd (feature distillation), dist, ofa, rsd, relations
            or vkd.
        fd: Settings of the method fd, feature distillation.
        dist: Settings of the method dist.
        ofa: Settings of the method ofa, OFA-KD.
        rsd: Settings of the method rsd.
        relations: Settings of the method relations.
        vkd: Settings of the method vkd.
    """

    teacher: str | None
    student: str
    data: Data
    teacher_weights: str = "pretrained"
    teacher_weights_key: str | None = None
    teacher_args: dict[str, Any] = field(default_factory=dict)
    teacher_size: tuple[int, int] | None = None
    teacher_mean: list[float] | None = None
    teacher_std: list[float] | None = None
    teacher_classes: str | None = None
    teacher_features: FeatureSelection = field(default_factory=FeatureSelection)
    student_weights: str = "random"
    student_weights_key: str | None = None
    student_args: dict[str, Any] = field(default_factory=dict)
    student_features: FeatureSelection = field(default_factory=FeatureSelection)
    more_students: list[str | Student] = field(default_factory=list)
    epochs: int = 100
    batch_size: int = 128
    optim: Optim = field(default_factory=Optim)
    task: Literal["cross_entropy", "bce", "bce_sum"] = "cross_entropy"
    label_smoothing: float = 0.0
    ema: float | None = None
    weights: LossWeights | None = None
    temperature: float = 1.0
    heads: tuple[int, int] | None = None
    separable_stem: bool = False
    teacher_prefix: PrefixTokens = "own"
    one_token: Literal["refuse", "drop"] = "refuse"
    precision: Precision = "32-true"
    accumulate: int = 1
    checkpoint_tail: bool = False
    checkpoint_projectors: bool = False
    compile: bool = False
    channels_last: bool = False
    deterministic: bool = False
    sync_batchnorm: bool = False
    fsdp: list[Literal["student", "teacher"]] = field(default_factory=list)
    cache: str | None = None
    seeds: list[int] = field(default_factory=lambda: [0])
    compare: list[Method] = field(default_factory=list)
    validate_every: int = 1
    max_skipped: int = 0
    log_every: int = 10
    trackers: list[Tracker] = field(default_factory=list)
    save_minutes: float = 5.0
    save_steps: int | None = None
    method: Method = "scalekd"
    fd: FeatureDistillation = field(default_factory=FeatureDistillation)
    dist: Dist = field(default_factory=Dist)
    ofa: Ofa = field(default_factory=Ofa)
    rsd: Rsd = field(default_factory=Rsd)
    relations: Relations = field(default_factory=Relations)
    vkd: Vkd = field(default_factory=Vkd)

    def __post_init__(self) -> None:
        for name in PATHS:
            object.__setattr__(self, name, expand_home(getattr(self, name)))
        check_kinds(self)
        for name in ("student", *PATHS):
            if name != "student" or self.student:  # a cache needs none
                check_name(name, getattr(self, name))
        check_largest(self)
        check_positive(epochs=self.epochs, batch_size=self.batch_size, accumulate=self.accumulate)
        check_micro_batches(self.batch_size, self.accumulate)
        if self.channels_last and "student" in self.fsdp:
            raise InputError(
                "channels_last is true and fsdp has student, but only contiguous weights can be "
                "sharded: drop one of the two"
            )
        if self.cache is not None:
            self._check_cache()
        if self.more_students:
            self._check_students()
        self._check_methods()
        if self.ema is not None and not 0 < self.ema < 1:
            raise InputError(f"ema is {self.ema}: it must be between 0 and 1, for example 0.9999")
        _check_statistics("teacher_", self.teacher_mean, self.teacher_std)
        check_positive(validate_every=self.validate_every, temperature=self.temperature)
        check_positive(log_every=self.log_every, save_minutes=self.save_minutes)
        if self.max_skipped < 0:
            raise InputError(f"max_skipped is {self.max_skipped}: it must be 0 or more")
        if self.save_steps is not None:
            check_positive(save_steps=self.save_steps)
        self.optim.check(self.epochs, self.batch_size)
        self._check_largest_sizes()
        if not 0 <= self.label_smoothing < 1:
            raise InputError(f"label_smoothing is {self.label_smoothing}: it must be in [0, 1)")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise InputError(f"seeds are {self.seeds}: give one or more, each once")
        if not 0 <= min(self.seeds) <= max(self.seeds) < 2**32:
            raise InputError(f"seeds are {self.seeds}: each must be from 0 to {2**32 - 1}")
        if len(set(self.trackers)) < len(self.trackers):
            raise InputError(f"trackers is {self.trackers}: name each once")

    def _check_methods(self) -> None:
        if self.method == "supervised":
            raise InputError(
                "method is supervised, which has no teacher: use `scalekd train`, or give another "
                "method and --compare '[supervised]'"
            )
        if len(set(self.compare)) < len(self.compare):
            raise InputError(f"compare is {self.compare}: name each once")
        weights = self.weights or LossWeights()
        if "logit_kd" in (self.method, *self.compare) and not weights.logits:
            raise InputError(
                "weights.logits is 0, and logit_kd has no other loss under a teacher: make it more "
                "than 0, or drop logit_kd"
            )
        if self.method in self.compare:
            raise InputError(
                f"compare is {self.compare} and method is {self.method}, which it would train "
                "twice: take it out of compare"
            )

    def _check_largest_sizes(self) -> None:
        size = self.teacher_size
        if size is not None and not 0 < min(size) <= max(size) <= MAX_SIDE:
            raise InputError(
                f"teacher_size is {size}: height and width must be more than 0 and at "
                f"most {MAX_SIDE}"
            )
        if self.heads is not None and not 0 < min(self.heads) <= max(self.heads) <= MAX_HEADS:
            raise InputError(f"heads are {self.heads}: each must be from 1 to {MAX_HEADS}")
        for name, weight in asdict(self.weights or LossWeights()).items():
            if weight > MAX_WEIGHT:
                raise InputError(
                    f"the weight {name} is {weight}: it must be at most {MAX_WEIGHT:g}"
                )
        for name in ("teacher_args", "student_args"):
            check_model_arguments(name, getattr(self, name))
        if len(self.seeds) > MAX_SEEDS:
            raise InputError(f"there are {len(self.seeds)} seeds: give at most {MAX_SEEDS}")

    def _check_students(self) -> None:
        folders = list(map(student_folder_name, [self.student, *self.more_students]))
        for name in folders:
            _check_folder_name(name)
        alike = [name.casefold() for name in folders]  # on some file systems the same
        if twice := next((f for f in folders if alike.count(f.casefold()) > 1), None):
            raise InputError(
                f"student and more_students have the run folder {twice!r} twice: give one of them "
                "another folder"
            )
        self.per_student()  # checks each student's settings
        if "teacher" in self.fsdp:
            raise InputError(
                "fsdp has teacher, but more_students share the passes of an unsharded teacher: "
                "drop one of the two"
            )

    def per_student(self) -> dict[str, "Recipe"]:
        """For each student the recipe that trains it by itself, by the name of its run folder."""
        recipes = {student_folder_name(self.student): replace(self, more_students=[])}
        for other in self.more_students:
            student = Student(other) if isinstance(other, str) else other
            recipes[student_folder_name(student)] = replace(
                self,
                student=student.name,
                student_args=student.args,
                student_weights=student.student_weights,
                student_weights_key=student.student_weights_key,
                more_students=[],
                student_features=student.features,
                heads=student.heads,
                optim=student.optim or self.optim,
                weights=student.weights or self.weights,
                ema=self.ema if student.ema is None else student.ema,
            )
        return recipes

    def _check_cache(self) -> None:
        if self.teacher is None:
            raise InputError(f"cache is {self.cache!r} and there is no teacher: drop cache")
        for name in ("mixup", "cutmix"):
            if value := getattr(self.data, name):
                raise InputError(
                    f"data.{name} is {value}, but a cache stores the teacher's outputs for single "
                    "images: set it to 0 or drop cache"
                )
        if "fd" in (self.method, *self.compare) and self.fd.reads_penultimate:
            raise InputError(
                f"fd.penultimate is {self.fd.penultimate}, but a cache has only the teacher's "
                "final features: set it to 0 or drop cache"
            )
        if "teacher" in self.fsdp:
            raise InputError(
                "fsdp has teacher, of which only the tail is in memory with a cache: drop one "
                "of the two"
            )

    @property
    def learning_rate(self) -> float:
        """The learning rate after the warm-up: optim.lr, in proportion to batch_size."""
        return self.optim.learning_rate(self.batch_size)

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """All settings, those that have a default with it."""
        return cls(None, "", Data("any")).as_dict()

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain data, as in a recipe's YAML file."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))  # lists in place of tuples
        return plain


def recipe_from_settings(settings: dict[str, Any]) -> Recipe:
    """The recipe of nested settings, as its YAML file has them, read as the command line reads one.

    Raises:
        Exception: of settings that are damaged or no recipe's, nearly anything of jsonargparse's.
    """
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Recipe, as_group=False)
    return Recipe(**vars(parser.instantiate(parser.parse_object(settings))))


def flatten_settings(
    settings: dict[str, Any], prefix: str = "", separator: str = "."
) -> dict[str, Any]:
    """Nested settings as one dictionary, with names such as optim.lr."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            flat |= flatten_settings(value, f"{prefix}{name}{separator}", separator)
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def student_folder_name(student: str | Student) -> str:
    """The name of the run folder of one of several students: its folder, or the model's name."""
    if isinstance(student, Student) and student.folder is not None:
        return student.folder
    name = student if isinstance(student, str) else student.name
    return name.replace("/", "_").replace(":", "_")


def find_recipe(name: str, folder: Path = RECIPES, kind: str = "recipe") -> Path:
    """The YAML file of a packaged recipe.

    Args:
        name: of the recipe.
        folder: that has the recipes.
        kind: how an error calls them.

    Raises:
        InputError: there is no such recipe; the message lists all.
    """
    file = folder / f"{name}.yaml"
    if not file.is_file():
        known = ", ".join(sorted(f.stem for f in folder.glob("*.yaml")))
        raise InputError(f"no {kind} is named {name!r}; there are: {known}")
    return file


def _check_statistics(prefix: str, mean: list[float] | None, std: list[float] | None) -> None:
    """Raise InputError unless these can be the mean and standard deviation of images' channels."""
    for name, values in (("mean", mean), ("std", std)):
        fits = values is None or (len(values) > 0 and all(map(math.isfinite, values)))
        if not fits or (name == "std" and min(values or [1]) <= 0):
            above = ", each above 0" * (name == "std")
            raise InputError(f"{prefix}{name} is {values}: give one number a channel{above}")


def expand_home(path: Any) -> Any:
    """A path, or an address such as local-dir:~/FOLDER, with its ~ expanded."""
    if not isinstance(path, str):
        return path
    prefix, colon, rest = path.rpartition(":")
    return f"{prefix}{colon}{os.path.expanduser(rest)}" if rest[:1] == "~" else path


def check_name(setting: str, value: str | None) -> None:
    """Raise InputError where the value of a setting can be no name of a file or a model."""
    if value is not None and not value.strip():
        raise InputError(f"{setting} is {value!r}: give a name, or leave it out")
    if value is not None and max(len(os.fsencode(part)) for part in value.split("/")) > 255:
        raise InputError(f"{setting} is {value[:60]!r}…: a name in it is longer than 255 bytes")


def _check_folder_name(name: str) -> None:
    if (
        not name.strip()
        or any(character in name for character in "/\\\0")
        or RUN_FOLDER_FILE.fullmatch(name)
        or len(os.fsencode(name)) > MAX_FOLDER_BYTES
        or not name.isprintable()
    ):
        raise InputError(
            f"more_students has the folder {name[:100]!r}: it must be one name without / and \\, "
            f"of at most {MAX_FOLDER_BYTES} bytes, that does not begin with a full stop and is not "
            "the name of a file in a run folder; give the student another folder"
        )


def check_model_arguments(name: str, arguments: dict[str, Any]) -> None:
    """Check further arguments of timm's create_model.

    Args:
        name: of the setting that has them: teacher_args, student_args or model_args.
        arguments: that a user gave.

    Raises:
        InputError: one of them has a setting of its own, or a number would fill the memory.
    """
    model = name.removesuffix("_args")
    prefix = "" if model == "model" else f"{model}_"
    size = "teacher_size" if model == "teacher" else "data.image_size"
    for key in SET_ELSEWHERE.keys() & arguments.keys():
        setting = SET_ELSEWHERE[key].format(model=model, prefix=prefix, size=size)
        raise InputError(
            f"{name} has {key}, which has a setting of its own: drop it, and give {setting}"
        )
    for key, value in flatten_settings(arguments).items():
        numbers = value if isinstance(value, list | tuple) else [value]
        most = MAX_SIDE if key in ("img_size", "input_size") else MAX_ARGUMENT
        for number in numbers:
            if isinstance(number, int | float) and not -most <= number <= most:
                raise InputError(f"{name} has {key} {number}: it must be at most {most}")


def check_largest(settings: Any, prefix: str = "") -> None:
    """Raise InputError where a setting has a larger value than `LARGEST` allows."""
    for name, value in vars(settings).items():
        most = LARGEST.get(f"{prefix}{name}")
        if most is not None and isinstance(value, int | float) and value > most:
            raise InputError(f"{prefix}{name} is {value}: it must be at most {most:g}")


def check_micro_batches(batch_size: int, accumulate: int) -> None:
    """Raise InputError unless a batch can be divided into `accumulate` equal micro-batches."""
    if batch_size % accumulate:
        raise InputError(
            f"accumulate is {accumulate} and batch_size is {batch_size}: "
            "micro-batches must be equal, so batch_size must be a multiple of accumulate"
        )


def check_positive(**values: float) -> None:
    """Raise InputError unless each of the settings, by name, is more than 0 and finite."""
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise InputError(f"{name} is {value}: it must be more than 0")
