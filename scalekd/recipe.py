"""Everything that decides a training run, as data."""

import difflib
import json
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from timm.optim import list_optimizers

from scalekd.errors import InputError
from scalekd.method import LossWeights
from scalekd.networks import FeatureSelection
from scalekd.networks.teacher.frozen import PrefixTokens

RECIPES = Path(__file__).with_name("recipes")
DEFAULT = "digits"

Baseline = Literal["supervised", "logit_kd"]
Tracker = Literal["csv", "tensorboard", "wandb", "mlflow"]
Precision = Literal["32-true", "16-mixed", "bf16-mixed"]


@dataclass(frozen=True)
class Data:
    """Images and what is done to them.

    Args:
        root: a folder with train/CLASS/*.jpg and val/CLASS/*.jpg; one of WebDataset shards,
            train/*.tar and val/*.tar; a flat one of images, which is training without labels;
            hf:NAME or hf:FOLDER, a dataset of Hugging Face; or `digits` (packaged).
        image_size: of the student's images in pixels: a side, or [height, width]; default the
            student's own.
        train_images: how many training images may be used, as many of each class; default all.
        epoch_images: how many images make an epoch; default all of them once.
        auto_augment: timm's policy, for example rand-m9-n2-mstd0.5, or 3a (not for the digits).
        color_jitter: of brightness, contrast and saturation (not for the digits).
        erasing: probability of random erasing (not for the digits).
        mixup: alpha of Mixup: images and labels mixed with the batch's next; 0 for none.
        cutmix: alpha of CutMix; with both on, each batch is mixed by one of the two.
        corrupt_images: stop at an image that cannot be read, or skip it: another takes its place in
            training, and it is not measured in validation.
        workers: loading processes; default the cores that the run may use, at most 16.
    """

    root: str
    image_size: int | tuple[int, int] | None = None
    train_images: int | None = None
    epoch_images: int | None = None
    auto_augment: str | None = None
    color_jitter: float = 0.0
    erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    corrupt_images: Literal["stop", "skip"] = "stop"
    workers: int | None = None

    def __post_init__(self) -> None:
        for name in ("train_images", "epoch_images"):
            value = getattr(self, name)
            if value is not None:
                _positive(**{f"data.{name}": value})
        if self.size is not None and not (len(self.size) == 2 and min(self.size) > 0):
            raise InputError(
                f"data.image_size is {self.image_size}: it must be a side, or height and width, "
                "each more than 0"
            )
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
                f"data.color_jitter is {self.color_jitter} and data.auto_augment "
                f"{self.auto_augment!r}, beside which timm does not use it: leave one of them out, "
                "or take 3a"
            )

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) of the student's images, where `image_size` says it."""
        if self.image_size is None or isinstance(self.image_size, tuple):
            return self.image_size
        return self.image_size, self.image_size


@dataclass(frozen=True)
class Optim:
    """The optimizer and its schedule: linear warm-up, then cosine to `min_lr`, or drops.

    Args:
        name: timm's name of the optimizer.
        lr: learning rate after the warm-up.
        lr_batch_size: images a step that lr is for: with another batch_size it changes in
            proportion. Default: lr is for any.
        weight_decay: of all but biases, norms and positions.
        decay_all: whether of these too.
        warmup_epochs: epochs of warm-up, also a fraction of one.
        min_lr: learning rate at the end of the cosine.
        drops: epochs at which the rate falls to a tenth, in place of the cosine.
        clip: largest gradient norm; 0 for no clipping.
    """

    name: str = "adamw"
    lr: float = 5e-4
    lr_batch_size: int | None = None
    weight_decay: float = 0.05
    decay_all: bool = False
    warmup_epochs: float = 5.0
    min_lr: float = 0.0
    drops: list[float] = field(default_factory=list)
    clip: float = 5.0


@dataclass(frozen=True)
class Student:
    """One more student under the recipe's teacher; what is not said here is as the recipe says.

    Args:
        name: a timm name; trained from random initialisation.
        args: more arguments for timm's create_model.
        folder: of its run, within --out; default its name.
        features: which of its features.
        heads: attention heads of its two projectors; default the paper's, or one for 64 channels.
        optim: its optimizer.
        weights: of its loss's terms.
        ema: decay of an average of its weights over the steps.
    """

    name: str
    args: dict[str, Any] = field(default_factory=dict)
    folder: str | None = None
    features: FeatureSelection = field(default_factory=FeatureSelection)
    heads: tuple[int, int] | None = None
    optim: Optim | None = None
    weights: LossWeights | None = None
    ema: float | None = None


@dataclass(frozen=True)
class Recipe:
    """One distillation, and what it is compared with.

    Args:
        teacher: a timm name, or local-dir:FOLDER; None where the student is trained alone.
        student: a timm name; trained from random initialisation.
        data: the images.
        teacher_weights: pretrained, a file of weights, or random.
        teacher_args: more arguments for timm's create_model.
        student_args: more arguments for timm's create_model.
        more_students: others that learn from the same passes of the teacher, by turns, each in a
            run folder of its own: names, or with arguments (docs/many-students.md).
        epochs: passes over the data (or over data.epoch_images).
        batch_size: images a step.
        accumulate: parts that a step's batch is computed in, one after another, to fit in memory.
        optim: the optimizer.
        weights: of the loss's terms, --weights.logits and so on; 0 switches one off.
        temperature: of the logits.
        heads: attention heads of the two projectors; default the paper's, or one for 64 channels.
        separable_stem: of the projectors, for a cheaper step at some accuracy (docs/speed.md); not
            the exact method.
        task: loss of the student's logits and the labels: cross-entropy, or binary cross-entropy
            over the classes, their mean (bce) or their sum (bce_sum, as in the released code).
        label_smoothing: of it.
        ema: decay of an average of the student's weights over the steps, which is then what is
            measured and exported; default none.
        teacher_size: (height, width) that the teacher works at; default its own.
        teacher_features: which of the teacher's features; the tail follows the penultimate one.
        student_features: which of the student's features.
        teacher_prefix: the prefix tokens in the teacher's tail; none as in the released code.
        one_token: refuse or drop alternative views of one-token grids.
        compile: the repeated blocks of teacher and student, and the projectors, by torch.compile.
        channels_last: the memory layout of the student and the projectors, for CNNs.
        checkpoint_tail: compute the teacher's tail anew in the backward pass, to save memory.
        sync_batchnorm: of the student's norms over all devices, in place of each device's share.
        fsdp: whose weights are kept in pieces, one on each of several devices: those of the
            teacher, and of the student with all that trains beside it.
        precision: of the arithmetic; the final alternative view is float32 in all of them.
        cache: a folder that `scalekd cache` made, read in place of the teacher's passes.
        seeds: one run for each.
        compare: the same student trained without a teacher (alone), by logits only (logits).
        validate_every: epochs between two measurements on the validation images.
        max_skipped: steps of a run that may be left out because their loss is no number.
        log_every: steps between two lines of metrics.jsonl.
        trackers: who is told the metrics besides, while a run trains (docs/monitoring.md).
        save_minutes: between two checkpoints of a run.
        save_steps: the same in steps, where that comes sooner.
    """

    teacher: str | None
    student: str
    data: Data
    teacher_weights: str = "pretrained"
    teacher_args: dict[str, Any] = field(default_factory=dict)
    student_args: dict[str, Any] = field(default_factory=dict)
    more_students: list[str | Student] = field(default_factory=list)
    epochs: int = 100
    batch_size: int = 128
    accumulate: int = 1
    optim: Optim = field(default_factory=Optim)
    weights: LossWeights | None = None
    temperature: float = 1.0
    heads: tuple[int, int] | None = None
    separable_stem: bool = False
    task: Literal["cross_entropy", "bce", "bce_sum"] = "cross_entropy"
    label_smoothing: float = 0.0
    ema: float | None = None
    teacher_size: tuple[int, int] | None = None
    teacher_features: FeatureSelection = field(default_factory=FeatureSelection)
    student_features: FeatureSelection = field(default_factory=FeatureSelection)
    teacher_prefix: PrefixTokens = "own"
    one_token: Literal["refuse", "drop"] = "refuse"
    compile: bool = False
    channels_last: bool = False
    checkpoint_tail: bool = False
    sync_batchnorm: bool = False
    fsdp: list[Literal["student", "teacher"]] = field(default_factory=list)
    precision: Precision = "32-true"
    cache: str | None = None
    seeds: list[int] = field(default_factory=lambda: [0])
    compare: list[Baseline] = field(default_factory=list)
    validate_every: int = 1
    max_skipped: int = 0
    log_every: int = 10
    trackers: list[Tracker] = field(default_factory=list)
    save_minutes: float = 5.0
    save_steps: int | None = None

    def __post_init__(self) -> None:
        _positive(epochs=self.epochs, batch_size=self.batch_size, accumulate=self.accumulate)
        if self.batch_size % self.accumulate:
            raise InputError(
                f"accumulate is {self.accumulate} and batch_size {self.batch_size}: the parts must "
                "be equal, so batch_size a multiple of accumulate"
            )
        if self.channels_last and "student" in self.fsdp:
            raise InputError(
                "channels_last is true and fsdp has student, whose pieces are of contiguous "
                "weights: leave one of the two out"
            )
        if self.cache is not None:
            self._check_cache()
        if self.more_students:
            self._check_students()
        if self.ema is not None and not 0 < self.ema < 1:
            raise InputError(f"ema is {self.ema}: it must be between 0 and 1, for example 0.9999")
        if self.optim.lr_batch_size is not None:
            _positive(**{"optim.lr_batch_size": self.optim.lr_batch_size})
        _positive(validate_every=self.validate_every, temperature=self.temperature)
        _positive(log_every=self.log_every, save_minutes=self.save_minutes)
        if self.max_skipped < 0:
            raise InputError(f"max_skipped is {self.max_skipped}: it must be 0 or more")
        if self.save_steps is not None:
            _positive(save_steps=self.save_steps)
        _positive(**{"optim.lr": self.optim.lr})
        for name in ("weight_decay", "warmup_epochs", "min_lr", "clip"):
            value = getattr(self.optim, name)
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"optim.{name} is {value}: it must be 0 or more")
        if not 0 <= self.label_smoothing < 1:
            raise InputError(f"label_smoothing is {self.label_smoothing}: it must be in [0, 1)")
        if self.optim.warmup_epochs >= self.epochs:
            raise InputError(
                f"optim.warmup_epochs is {self.optim.warmup_epochs} and epochs is {self.epochs}: "
                "the warm-up must be shorter than the training"
            )
        if any(not 0 < drop < self.epochs for drop in self.optim.drops):
            raise InputError(
                f"optim.drops are {self.optim.drops}: they must lie between 0 and the "
                f"{self.epochs} epochs"
            )
        if self.optim.name not in (known := list_optimizers()):
            near = difflib.get_close_matches(self.optim.name, known, n=3) or ["adamw", "sgd"]
            raise InputError(
                f"optim.name is {self.optim.name!r}, which timm does not know; it has, for "
                f"example, {', '.join(near)}"
            )
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise InputError(f"seeds are {self.seeds}: give one or more, each once")
        if not 0 <= min(self.seeds) <= max(self.seeds) < 2**32:
            raise InputError(f"seeds are {self.seeds}: they must be 0 to {2**32 - 1}")
        if len(set(self.trackers)) < len(self.trackers):
            raise InputError(f"trackers is {self.trackers}: name each once")
        if len(set(self.compare)) < len(self.compare):
            raise InputError(f"compare is {self.compare}: name each once")

    def _check_students(self) -> None:
        folders = list(map(student_folder_name, [self.student, *self.more_students]))
        if twice := next((f for f in folders if folders.count(f) > 1), None):
            raise InputError(
                f"student and more_students would have the run folder {twice!r} twice: give one of "
                "them another name by its folder"
            )
        self.apart()  # what does not fit in one of them is said now
        if "teacher" in self.fsdp:
            raise InputError(
                "fsdp has teacher, whose one pass more_students share: leave one of the two out"
            )

    def apart(self) -> dict[str, "Recipe"]:
        """Each student's own recipe, as if it learnt alone, by its run folder's name."""
        recipes = {student_folder_name(self.student): replace(self, more_students=[])}
        for other in self.more_students:
            student = Student(other) if isinstance(other, str) else other
            recipes[student_folder_name(student)] = replace(
                self,
                student=student.name,
                student_args=student.args,
                more_students=[],
                student_features=student.features,
                heads=student.heads,
                optim=student.optim or self.optim,
                weights=student.weights or self.weights,
                ema=student.ema or self.ema,
            )
        return recipes

    def _check_cache(self) -> None:
        if self.teacher is None:
            raise InputError(f"cache is {self.cache!r} and there is no teacher: leave it out")
        for name in ("mixup", "cutmix"):
            if value := getattr(self.data, name):
                raise InputError(
                    f"data.{name} is {value}, and a cache keeps what the teacher says of single "
                    "images: set it to 0, or leave the cache out"
                )
        if "teacher" in self.fsdp:
            raise InputError(
                "fsdp has teacher, of which a cache leaves no more than the tail in memory: leave "
                "one of the two out"
            )

    @property
    def learning_rate(self) -> float:
        """optim.lr for this batch_size."""
        return self.optim.lr * self.batch_size / (self.optim.lr_batch_size or self.batch_size)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as in a recipe's YAML file."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))  # lists in place of tuples
        return plain


def flatten_settings(plain: dict[str, Any], path: str = "", separator: str = ".") -> dict[str, Any]:
    """Nested settings by dotted names."""
    dotted: dict[str, Any] = {}
    for name, value in plain.items():
        nested = isinstance(value, dict) and value
        full = f"{path}{name}"
        dotted |= (
            flatten_settings(value, f"{full}{separator}", separator) if nested else {full: value}
        )
    return dotted


def student_folder_name(student: str | Student) -> str:
    """Of the run of one of several students."""
    name = student if isinstance(student, str) else student.folder or student.name
    return name.replace("/", "_").replace(":", "_")


def find_recipe(name: str) -> Path:
    """The file of a packaged recipe."""
    file = RECIPES / f"{name}.yaml"
    if not file.is_file():
        known = ", ".join(sorted(f.stem for f in RECIPES.glob("*.yaml")))
        raise InputError(f"no recipe is named {name!r}; there are: {known}")
    return file


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"{name} is {value}: it must be more than 0")
