"""The preflight of a recipe: one trial step and the teacher's accuracy, before training starts."""

import math
from dataclasses import asdict, replace

import timm

from scalekd.data.source import Source
from scalekd.device import best_device
from scalekd.distiller import Distiller, count_parameters
from scalekd.errors import InputError
from scalekd.fit import describe_fit
from scalekd.jobs.teacher_check import check_teacher
from scalekd.notes import Note
from scalekd.recipe import Recipe
from scalekd.runs.result import PairSummary, main_run
from scalekd.scale_kd import ScaleKD
from scalekd.step import Learner
from scalekd.training.dry_run import dry_run, notes_without_gradient
from scalekd.training.prepare import Prepared
from scalekd.training.train import open_loaders
from scalekd.training.validation import top1

FEW_IMAGES = 50_000
"""With fewer training images a note says that the student could start from pretrained weights."""


def run_preflight(prepared: Prepared, teacher_top1: float | None = None) -> PairSummary:
    """Build the student of the recipe's main run, try a step, and measure the teacher.

    Args:
        prepared: the recipe with its images and teacher.
        teacher_top1: the teacher's accuracy (a share), if it has been measured already.

    Returns:
        Sizes and cost of the pair, the teacher's accuracy, and notes for the user.

    Raises:
        InputError: the recipe cannot be trained.
    """
    recipe = prepared.recipe
    learner = prepared.build_learner(main_run(recipe))
    if isinstance(learner, Distiller):
        prepared.check_compared()
    source = prepared.source
    batches, validation = open_loaders(prepared, learner, seed=recipe.seeds[0])
    _check_classes(learner, source, recipe)
    learner.to(best_device())
    gflop = dry_run(learner, batches)
    pair = PairSummary(
        teacher_top1=None,
        teacher_parameters=0,
        student_parameters=count_parameters(learner.student),
        projector_parameters=0,
        notes=[*source.notes, *learner.notes, *_notes_on_settings(prepared, learner)],
        images=prepared.input,
        splits=source.splits,
        labels=source.classes is not None,
        gflop=gflop,
        workers=batches.num_workers,
    )
    if not isinstance(learner, Distiller):
        return pair
    notes = pair.notes
    if source.classes is None:
        notes = [*_notes_without_labels(learner, recipe.data.root), *notes]
    elif validation is not None and learner.teacher.shapes.classes == source.classes:
        if teacher_top1 is None:
            notes = [*notes, *check_teacher(prepared)]
            classify = learner.teacher_logits
            teacher_top1 = top1(
                classify, validation, source.classes, recipe.precision, prepared.input
            )
        images = len(validation.dataset)  # type: ignore[arg-type]
        notes = [*notes, *teacher_accuracy_notes(teacher_top1, source.classes, images)]
        pair = replace(pair, teacher_top1=teacher_top1)
    return replace(
        pair,
        notes=notes,
        teacher_parameters=count_parameters(learner.teacher.model),
        projector_parameters=count_parameters(learner.criterion),
        fit=describe_fit(learner),
        teacher_images=learner.teacher.input,
    )


def _check_classes(learner: Learner, source: Source, recipe: Recipe) -> None:
    classes = getattr(learner.student, "num_classes", None)
    if source.classes is not None and classes != source.classes:
        raise InputError(
            f"the student has {classes} classes and {recipe.data.root!r} has {source.classes}: "
            "take num_classes out of student_args"
        )


def _notes_on_settings(prepared: Prepared, learner: Learner) -> list[Note]:
    """Notes on settings whose effect a user may not expect."""
    recipe = prepared.recipe
    texts = []
    if recipe.learning_rate != recipe.optim.lr:
        texts.append(
            f"the learning rate is {recipe.learning_rate:.3g}: optim.lr is {recipe.optim.lr} for "
            f"a batch of {recipe.optim.lr_batch_size} images, and is scaled to the batch of "
            f"{recipe.batch_size}"
        )
    if recipe.separable_stem and isinstance(learner, ScaleKD):
        texts.append("separable_stem is true: the projectors are cheaper, and not the paper's")
    images = _images_for_random_weights(prepared)
    if images is not None and images < FEW_IMAGES:
        texts.append(
            f"the student starts from random weights, for which {images} images are few: with "
            "--student_weights pretrained it starts from timm's, which usually makes it more "
            "accurate"
        )
    notes = [*(Note("info", text) for text in texts), *notes_without_gradient(learner)]
    return notes if prepared.cache is None else [*notes, Note("info", str(prepared.cache))]


def _images_for_random_weights(prepared: Prepared) -> int | None:
    """Images that a student is trained on from random weights; None where it has others, or timm
    has none for it."""
    recipe, source = prepared.recipe, prepared.source
    if prepared.start is not None or source.input is not None or not source.splits:
        return None
    if not timm.is_model_pretrained(recipe.student):
        return None
    return prepared.training_images


def teacher_accuracy_notes(top1: float, classes: int, images: int) -> list[Note]:
    """Warn of a teacher whose accuracy is not above chance.

    Guessing is right on 1 / classes of the images. An accuracy of less than that plus three
    standard errors counts as chance. Fewer than 50 images are too few to tell.

    Args:
        top1: the teacher's accuracy (a share).
        classes: number of the images' classes.
        images: number of images that it was measured on.
    """
    chance = 1 / classes
    if images < 50 or top1 >= chance + 3 * math.sqrt(chance * (1 - chance) / images):
        return []
    text = (
        f"the teacher's top-1 accuracy on the validation images is {top1:.2%}, which is chance for "
        f"{classes} classes: are its weights random, or its classes in another order?"
    )
    return [Note("warning", text)]


def _notes_without_labels(learner: Distiller, root: str) -> list[Note]:
    """Notes on a training without labels: which losses remain."""
    texts = [f"no labels in {root}: the student learns from the teacher alone"]
    classifies = True
    if isinstance(learner, ScaleKD):
        weights = asdict(learner.criterion.weights)
        classifies = weights.pop("logits") > 0
        kinds = ["features"] * any(weights.values()) + ["logits"] * classifies
        texts = [
            f"no labels in {root}: only {' and '.join(kinds)} are distilled, without a task loss"
        ]
    if learner.student.num_classes and not classifies:
        texts.append(
            f"nothing trains the student's classifier of {learner.student.num_classes} classes: "
            "take num_classes out of student_args for a student without one"
        )
    return [Note("info", text) for text in texts]
