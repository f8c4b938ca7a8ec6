"""Whether a recipe's teacher is set up as it was trained, before the student learns from it."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain

from torch import Tensor

from scalekd.errors import InputError
from scalekd.networks import FrozenTeacher
from scalekd.networks.input_config import renormalization
from scalekd.notes import Note
from scalekd.training.alternatives import (
    Setup,
    Trial,
    find_better,
    load_pixels,
    without_normalisation,
)
from scalekd.training.performance import autocast
from scalekd.training.prepare import Prepared, build_teacher
from scalekd.training.validation import validation_batch_size


def check_teacher(prepared: Prepared) -> list[Note]:
    """Measure a teacher as it is set up, and under usual alternatives that the recipe leaves open.

    The alternatives are other orders of the classes, other means and standard deviations, and
    the image size that the tables in its weights' file fit. Without labels, or where the teacher
    has another number of classes than the images, nothing is measured.

    Args:
        prepared: the recipe with its images and teacher.

    Returns:
        A note with the accuracy, if it was measured.

    Raises:
        InputError: an alternative is far better; the message names its options.
    """
    recipe, source, teacher = prepared.recipe, prepared.source, prepared.teacher
    if teacher is None or source.unaugmented_set is None or source.classes is None:
        return []
    if teacher.frozen.shapes.classes != source.classes:
        return []
    raw = without_normalisation(replace(prepared.input, channels=teacher.frozen.input.channels))
    images = source.unaugmented_set(raw)
    pixels, targets = load_pixels(images, raw, source.targets, source.class_names)
    if not len(targets):
        return []
    if source.input is not None:  # images that come normalised, whatever they are asked for
        scale, shift = renormalization(source.input, raw)
        pixels = pixels * scale + shift
    order_is_open = not teacher.class_order.is_known and recipe.teacher_weights != "random"
    statistics_are_open = recipe.teacher_mean is None and recipe.teacher_std is None
    trial = Trial(
        classify=_classifier(teacher.frozen, prepared),
        pixels=pixels,
        targets=targets,
        input=teacher.frozen.input,
        class_names=source.class_names,
        order_option="--teacher_classes" if order_is_open else None,
        statistics_option="--teacher_" if statistics_are_open else None,
        batch_size=validation_batch_size(recipe),
    )
    own, better = find_better(chain(trial.setups(), _at_fitting_size(prepared, trial)), targets)
    if better is not None:
        raise InputError(
            f"as it is set up, the teacher {recipe.teacher} is right on {own.accuracy:.1%} of "
            f"{len(targets)} training images, and with {' '.join(better.options)} on "
            f"{better.accuracy:.1%}: give that, or {' '.join(better.keep)} to keep it as it is"
        )
    text = f"the teacher is right on {own.accuracy:.1%} of {len(targets)} training images"
    return [Note("info", text)]


def _at_fitting_size(prepared: Prepared, trial: Trial) -> Iterator[Setup]:
    """The teacher at the image size that the tables in its weights' file fit, if it has another."""
    recipe, teacher = prepared.recipe, prepared.teacher
    assert teacher is not None
    size = teacher.weights.fitting_size
    if recipe.teacher_size is not None or size is None or size == trial.input.size:
        return
    refitted = build_teacher(replace(recipe, teacher_size=size), trial.class_names).frozen
    at_size = replace(trial, classify=_classifier(refitted, prepared))
    for setup in at_size.setups():
        options, keep = (
            (f"--teacher_size '[{height},{width}]'", *others)
            for (height, width), others in ((size, setup.options), (trial.input.size, setup.keep))
        )
        yield replace(setup, options=options, keep=keep)


def _classifier(teacher: FrozenTeacher, prepared: Prepared) -> Callable[[Tensor], Tensor]:
    def classify(images: Tensor) -> Tensor:
        with autocast(prepared.recipe.precision, images.device):
            logits = teacher(images).logits
        assert logits is not None
        return logits

    return classify
