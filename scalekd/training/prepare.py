"""What a recipe's runs share: images, teacher, cache, and how the student is built.

All that builds a recipe's pair starts here: training, its preflight, a cache, and, without weights
or images, `scalekd check` and `scalekd estimate`. It loads no trainer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from scalekd.baselines import LogitKd, Supervised
from scalekd.cache.store import Cache
from scalekd.data.cached import open_cache, with_cached_outputs
from scalekd.data.mixup import SmoothedBinaryCrossEntropy
from scalekd.data.open import find_layout, open_source
from scalekd.data.seeding import seed_generators
from scalekd.data.source import Source, check_channels
from scalekd.distiller import BaselineDistiller, BaselineMethod, Distiller
from scalekd.errors import InputError
from scalekd.method import LossWeights
from scalekd.networks import FrozenTeacher, InputConfig, build_model, input_config
from scalekd.networks.input_config import DEFAULT_CROP, check_statistics, set_statistics
from scalekd.networks.pretrained import LoadedWeights
from scalekd.networks.student import StudentSpec
from scalekd.networks.teacher.reduced_copy import verify_on_reduced_copy
from scalekd.recipe import Method, Recipe
from scalekd.runs.result import Run
from scalekd.scale_kd import ScaleKD
from scalekd.step import Learner
from scalekd.training.student_start import StudentStart, load_start
from scalekd.training.teacher_classes import ClassOrder, put_classes_in_order


@dataclass(frozen=True, kw_only=True)
class PreparedTeacher:
    """A frozen teacher whose tail is verified.

    Attributes:
        frozen: The teacher; on the meta device where there are no weights.
        weights: what was loaded into it.
        verified_on: the network that its tail was replayed and compared on.
        class_order: how its classes were put in the data's order.
    """

    frozen: FrozenTeacher
    weights: LoadedWeights
    verified_on: str = "the teacher itself"
    class_order: ClassOrder = field(default_factory=ClassOrder)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A recipe, and what its runs share.

    Attributes:
        recipe: the recipe.
        source: its images.
        teacher: None where the student is trained without a teacher.
        student: what builds the student; None of a recipe that names none, which a cache may.
        start: the weights that the student starts from; None for random ones.
        input: channels, size and normalisation of the student's images.
        cache: the teacher's cached outputs; None where the recipe names no cache.
    """

    recipe: Recipe
    source: Source
    teacher: PreparedTeacher | None
    student: StudentSpec | None
    input: InputConfig
    start: StudentStart | None = None
    cache: Cache | None = None

    @property
    def frozen_teacher(self) -> FrozenTeacher | None:
        """The teacher as a network."""
        return None if self.teacher is None else self.teacher.frozen

    @property
    def training_images(self) -> int:
        """How many images are trained on; 0 where that is not known."""
        splits = self.source.splits
        return self.recipe.data.train_images or (splits[0].images if splits else 0)

    @property
    def identity(self) -> dict[str, Any]:
        """Hashes of what must be the same when a run resumes, wherever it lies, by name."""
        weights = None if self.teacher is None else self.teacher.weights
        order = ClassOrder() if self.teacher is None else self.teacher.class_order
        splits = self.source.splits
        return {
            "number of images": splits[0].images if splits else None,  # tells more than a hash
            "set of images": self.source.identity or self.recipe.data.root,
            "set of validation images": self.source.validation_identity,
            "teacher": weights and (weights.sha256 or weights.source),
            "start of the student": self.start and self.start.weights.sha256,
            "order of the teacher's classes": order.places and list(order.places),
            "list of classes that the teacher lacks": list(order.unmatched) or None,
            "cache": self.cache and self.cache.manifest.digest,
        }

    def images_for(self, learner: Learner) -> Source:
        """What `learner` trains on: with a cache its augmented views, and where the learner has a
        teacher also the teacher's cached outputs."""
        if self.cache is None:
            return self.source
        return with_cached_outputs(self.cache, self.source, isinstance(learner, Distiller))

    def build_learner(self, run: Run) -> Distiller | Supervised:
        """What `run` trains, on the CPU. Every method of a seed starts from the same student."""
        assert self.student is not None, "a recipe that trains names a student"
        seed_generators(run.seed)
        student = self.student.build()
        notes = []
        if self.start is not None:
            self.start.load_into(student)
            notes.append(self.start.note)
        if run.method == "supervised" or self.teacher is None:
            supervised = Supervised(student, build_task_loss(self.recipe))
            supervised.notes += notes
            return supervised
        learner = self.build_distiller(student, run.method)
        learner.notes += [self.teacher.weights.note, *self.teacher.class_order.notes, *notes]
        return learner

    def build_pair_on_meta(self) -> ScaleKD:
        """The recipe's pair without weights, to see its shapes and count its operations."""
        assert self.student is not None
        with torch.device("meta"):
            return self.build_scalekd(self.student.build())

    def check_compared(self) -> None:
        """Build the loss of each method that the recipe compares its own with, for shapes alone.

        Raises:
            InputError: the teacher and the student do not allow one of them.
        """
        assert self.student is not None
        for method in self.recipe.compare:
            if method == "supervised":
                continue
            try:
                with torch.device("meta"):
                    self.build_distiller(self.student.build(), method)
            except InputError as error:
                raise InputError(f"compare has {method}, but {error}") from error

    def build_distiller(self, student: nn.Module, method: Method) -> Distiller:
        """The recipe's teacher and a student in one module, with the loss of a method."""
        if method == "scalekd":
            return self.build_scalekd(student)
        recipe, teacher = self.recipe, self.frozen_teacher
        assert teacher is not None
        return BaselineDistiller(
            teacher,
            student,
            baseline_settings(recipe, method),
            size=recipe.data.size,
            task=build_task_loss(recipe),
            student_features=recipe.student_features,
            checkpoint_tail=recipe.checkpoint_tail,
        )

    def build_scalekd(self, student: nn.Module) -> ScaleKD:
        """The recipe's teacher and a student in one module, as ScaleKD joins them."""
        recipe, teacher = self.recipe, self.frozen_teacher
        assert teacher is not None
        return ScaleKD(
            teacher,
            student,
            size=recipe.data.size,
            weights=recipe.weights,
            temperature=recipe.temperature,
            heads=recipe.heads,
            separable_stem=recipe.separable_stem,
            task=build_task_loss(recipe),
            student_features=recipe.student_features,
            one_token=recipe.one_token,
            checkpoint_tail=recipe.checkpoint_tail,
            checkpoint_projectors=recipe.checkpoint_projectors,
        )


def prepare(
    recipe: Recipe, *, teacher: PreparedTeacher | None = None, source: Source | None = None
) -> Prepared:
    """Open the recipe's images and cache, and build its teacher.

    Args:
        recipe: to train by, or to make a cache for.
        teacher: the recipe's teacher where it is built already: once in a process is enough.
        source: other images than the recipe's.

    Raises:
        InputError: the images, the teacher or the cache cannot be used, or not together.
    """
    if source is None:
        if find_layout(recipe.data) == "flat_folder":
            refuse_what_needs_labels(recipe)  # before any image is read
        source = open_source(recipe.data)
        if source.classes is None:
            refuse_what_needs_labels(recipe)
    if recipe.teacher is not None:
        teacher = teacher or build_teacher(recipe, source.class_names)
    student = _student_spec(recipe, source, teacher)
    start = None if student is None else load_start(recipe, student)
    if student is not None and start is not None:
        student = start.with_normalisation(student)
    prepared = replace(_assemble(recipe, source, teacher, student), start=start)
    cache = open_cache(recipe, source, prepared.frozen_teacher, prepared.input)
    return replace(prepared, cache=cache)


def prepare_on_meta(recipe: Recipe, source: Source | None = None) -> Prepared:
    """Prepare a recipe without weights and images: networks have shapes and no values.

    The teacher's tail is verified on a reduced copy where one can be made.

    Args:
        recipe: whose pair is meant.
        source: of images that need not be there; None where the student keeps the number of classes
            that it has by default.

    Raises:
        InputError: the recipe names no teacher, or the pair cannot work.
    """
    if recipe.teacher is None:
        raise InputError("there is no teacher: name one with --teacher")
    size = recipe.teacher_size
    with torch.device("meta"):
        model, weights = build_model(recipe.teacher, "random", size, **recipe.teacher_args)
    verified = verify_on_reduced_copy(
        recipe.teacher,
        model,
        recipe.teacher_args,
        size,
        recipe.teacher_features,
        recipe.teacher_prefix,
    )
    teacher = PreparedTeacher(
        frozen=verified.teacher.with_model(model, size),
        weights=weights,
        verified_on=verified.verified_on,
    )
    return _assemble(recipe, source, teacher, _student_spec(recipe, source, teacher))


def _student_spec(
    recipe: Recipe, source: Source | None, teacher: PreparedTeacher | None
) -> StudentSpec | None:
    """What builds the recipe's student for these images; None of a recipe without student."""
    if not recipe.student:
        return None
    frozen = None if teacher is None else teacher.frozen
    fixed = None if source is None else source.input
    channels = recipe.student_args.get("in_chans")
    if fixed is not None and channels not in (None, fixed.channels):
        raise InputError(
            f"student_args has in_chans {channels}, and the images of {recipe.data.root!r} have "
            f"{fixed.channels}: drop it"
        )
    return StudentSpec(
        name=recipe.student,
        arguments=recipe.student_args,
        classes=_student_classes(recipe, source, frozen),
        input=fixed,
        size=recipe.data.size,
        mean=tuple(recipe.data.mean) if recipe.data.mean else None,
        std=tuple(recipe.data.std) if recipe.data.std else None,
        crop=recipe.data.crop or DEFAULT_CROP,
        interpolation=recipe.data.interpolation or "bilinear",
        class_names=() if source is None else source.class_names,
    )


def _assemble(
    recipe: Recipe,
    source: Source | None,
    teacher: PreparedTeacher | None,
    student: StudentSpec | None,
) -> Prepared:
    frozen = None if teacher is None else teacher.frozen
    source = source or Source.without_images()
    images = _student_input(recipe, source, student, frozen)
    if source.input is None:
        check_channels(images)
    check_statistics("data.", images.channels, mean=recipe.data.mean, std=recipe.data.std)
    return Prepared(recipe=recipe, source=source, teacher=teacher, student=student, input=images)


def _student_classes(
    recipe: Recipe, source: Source | None, teacher: FrozenTeacher | None
) -> int | None:
    """The labels' classes; without labels the teacher's, whose logits are all that a classifier can
    learn from then, or none. Where the images are not known they are taken to have the teacher's
    classes, or those that student_args name; None leaves the model its own."""
    if source is None:
        if teacher is None or "num_classes" in recipe.student_args:
            return None
        return teacher.shapes.classes
    if source.classes is not None:
        return source.classes
    if teacher is not None and (recipe.weights or LossWeights()).logits:
        return teacher.shapes.classes or 0
    return 0


def _student_input(
    recipe: Recipe, source: Source, student: StudentSpec | None, teacher: FrozenTeacher | None
) -> InputConfig:
    """The images that the student takes; without a student, those that the teacher takes."""
    if student is not None:
        with torch.device("meta"):
            return input_config(student.build(), recipe.data.size)
    assert teacher is not None, "a recipe without student has a teacher"
    return source.input or replace(teacher.input, size=recipe.data.size or teacher.input.size)


def build_teacher(recipe: Recipe, class_names: Sequence[str] = ()) -> PreparedTeacher:
    """The recipe's teacher with its weights, verified; its logits in the order of `class_names`."""
    assert recipe.teacher is not None
    seed_generators(recipe.seeds[0])  # of a teacher that is random, as asked
    size = recipe.teacher_size
    model, weights = build_model(
        recipe.teacher,
        recipe.teacher_weights,
        size,
        recipe.teacher_weights_key,
        **recipe.teacher_args,
    )
    mean, std = recipe.teacher_mean, recipe.teacher_std
    set_statistics(model, mean=mean, std=std)
    class_order = put_classes_in_order(model, recipe.teacher_classes, class_names)
    if class_order.unmatched:
        class_order = _leave_logits_out(model, recipe, class_order)
    teacher = FrozenTeacher(model, size, recipe.teacher_features, recipe.teacher_prefix)
    check_statistics("teacher_", teacher.input.channels, mean=mean, std=std)
    return PreparedTeacher(frozen=teacher, weights=weights, class_order=class_order)


def _leave_logits_out(model: Any, recipe: Recipe, order: ClassOrder) -> ClassOrder:
    """Remove the classifier of a teacher whose classes are not the data's, and say so."""
    (note,) = order.notes
    remedy = (
        "rename them, or give --teacher_classes data if its classes are in the data's order "
        "nevertheless"
    )
    if recipe.weights is not None and recipe.weights.logits:
        raise InputError(
            f"weights.logits is {recipe.weights.logits}, but {note}: {remedy}, or set it to 0"
        )
    model.reset_classifier(0)
    text = f"{note}; so logits are not distilled: {remedy}"
    return replace(order, notes=(replace(note, text=text),))


def baseline_settings(recipe: Recipe, method: Method) -> BaselineMethod:
    """The recipe's settings of a baseline that has a teacher."""
    weights = recipe.weights or LossWeights()
    settings: dict[Method, BaselineMethod] = {
        "logit_kd": LogitKd(logits=weights.logits, temperature=recipe.temperature),
        "fd": recipe.fd.with_defaults(logits=weights.logits, temperature=recipe.temperature),
        "dist": recipe.dist,
        "ofa": recipe.ofa,
        "rsd": recipe.rsd,
        "relations": recipe.relations,
        "vkd": recipe.vkd,
    }
    return settings[method]


def build_task_loss(recipe: Recipe) -> nn.Module:
    """The loss of the student's logits (N, classes) against labels (N,), or shares of the classes
    (N, classes), as Mixup gives them."""
    if recipe.task == "cross_entropy":
        return nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
    loss: nn.Module = SmoothedBinaryCrossEntropy(
        recipe.label_smoothing, sum_classes=recipe.task == "bce_sum"
    )
    return loss


def refuse_what_needs_labels(recipe: Recipe) -> None:
    """InputError where the recipe, whose images have no labels, asks for what needs some."""
    no_labels = f"and there are no labels in {recipe.data.root!r}"
    labelled = "give --data.root a folder with train/CLASS/*.jpg and val/CLASS/*.jpg"
    if recipe.teacher is None:
        raise InputError(
            f"a student without a teacher learns from labels, {no_labels}: {labelled}, or a "
            "teacher (scalekd distill)"
        )
    for method in ("supervised", "ofa"):
        if method in recipe.compare:
            raise InputError(
                f"compare has {method}, which learns from labels, {no_labels}: take it out, or "
                f"{labelled}"
            )
    if recipe.method == "ofa":
        raise InputError(f"method is ofa, which learns from labels, {no_labels}: {labelled}")
    for name in ("mixup", "cutmix"):
        if value := getattr(recipe.data, name):
            raise InputError(f"data.{name} is {value}, {no_labels} to mix: set it to 0")
    if recipe.label_smoothing:
        raise InputError(
            f"label_smoothing is {recipe.label_smoothing}, {no_labels} to smooth: set it to 0"
        )
