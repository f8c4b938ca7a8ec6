"""What the baselines' settings and inputs must be, and the one line that refuses the rest."""

import math

from torch import Tensor

from scalekd.errors import InputError
from scalekd.features import Features, FeatureShapes

MAX_WEIGHT = 1e4
MAX_TEMPERATURE = 1e3


def check_weight(name: str, value: float, most: float = MAX_WEIGHT) -> None:
    """Raise an InputError unless the weight `name` is from 0 to `most`."""
    if not 0 <= value <= most:  # NaN is refused, too
        raise InputError(f"{name} is {value}: it must be from 0 to {most:g}")


def check_positive(name: str, value: float, most: float = MAX_TEMPERATURE) -> None:
    """Raise an InputError unless the setting `name` is more than 0 and at most `most`."""
    if not (math.isfinite(value) and 0 < value <= most):
        raise InputError(f"{name} is {value}: it must be more than 0 and at most {most:g}")


def check_same_classes(
    method: str, *, student: FeatureShapes, teacher: FeatureShapes, remedy: str
) -> int:
    """Return the number of classes that student and teacher have in common.

    Args:
        method: What needs the logits, as the subject of the message.
        student: Shapes of the student's features.
        teacher: Shapes of the teacher's features.
        remedy: What to do where there are no such logits.

    Raises:
        InputError: One of the two has no classifier, or they differ in their number of classes.
    """
    for network, shapes in (("student", student), ("teacher", teacher)):
        if not shapes.classes:
            raise InputError(
                f"{method} needs logits, and the {network} has no classifier: {remedy}"
            )
    if student.classes != teacher.classes:
        raise InputError(
            f"{method} compares logits, and the teacher has {teacher.classes} classes and the "
            f"student {student.classes}: {remedy}"
        )
    assert student.classes is not None
    return student.classes


def both_logits(method: str, *, student: Features, teacher: Features) -> tuple[Tensor, Tensor]:
    """Return the logits (N, classes) of the student and, detached, of the teacher.

    Raises:
        InputError: One of the two has none, or they differ in their shapes.
    """
    if student.logits is None or teacher.logits is None:
        network = "student" if student.logits is None else "teacher"
        raise InputError(f"{method} needs logits, and the {network} gives none")
    if student.logits.shape != teacher.logits.shape:
        raise InputError(
            f"{method} compares logits, and the student's are {tuple(student.logits.shape)} and "
            f"the teacher's {tuple(teacher.logits.shape)}: the shapes must be the same"
        )
    return student.logits, teacher.logits.detach()


def check_several_images(what: str, images: int) -> None:
    """Raise an InputError for a batch of fewer than two images; `what` needs statistics of it."""
    if images < 2:
        raise InputError(
            f"{what} is computed over the images of a batch, and this batch has {images}: use "
            "batches of at least 2 images on each device"
        )
