"""Which of a model's logits belongs to each class of the images that it is measured on."""

from collections.abc import Sequence
from dataclasses import dataclass

from scalekd.errors import InputError
from scalekd.evaluation.opened_model import OpenedModel
from scalekd.notes import Note
from scalekd.training.teacher_classes import requested_names


@dataclass(frozen=True)
class ClassMatch:
    """How the classes of images and of a model belong together.

    Attributes:
        logits: for each class of the images, the number of the model's logit for it.
        is_known: whether the user, or names of the model's classes, decided that.
        notes: what was done, for the user.
    """

    logits: tuple[int, ...]
    is_known: bool = False
    notes: tuple[Note, ...] = ()


def match_classes(
    model: OpenedModel, classes: Sequence[str], root: str, requested: str | None = None
) -> ClassMatch:
    """Find the logit of each class of some images.

    The classes are found by name, where the model has names; they may then be some of the model's.
    Otherwise they are the model's by their number.

    Args:
        model: the model.
        classes: names of the images' classes, in the order of their numbers.
        root: how errors name the images.
        requested: the order of the model's classes that the user gives: "data", "sorted",
            "natural" or a text file.

    Raises:
        InputError: the images have other classes than the model, their number differs and the
            model has no names, or the requested order does not fit.
    """
    if not model.classes:
        raise InputError(
            f"{model.name} has no classifier, so it has no accuracy: give a model with one"
        )
    if requested is not None:
        return _match_requested(model, classes, requested)
    names = model.names.names
    found = model.names.find_all(classes)
    logits = [logit for logit in found if logit is not None]
    if names and len(logits) == len(classes):
        return _by_name(model, logits)
    if logits and not (model.names.are_assumed and model.classes == len(classes)):
        unknown = [name for name, logit in zip(classes, found, strict=True) if logit is None]
        raise InputError(
            f"{len(unknown)} of the {len(classes)} classes of {root} are none of the "
            f"{model.classes} classes of {model.name}: {', '.join(unknown[:5])}; rename or remove "
            "them"
        )
    if model.classes != len(classes):
        reason = "these are others" if names else "it has none"
        raise InputError(
            f"{model.name} has {model.classes} classes, but {root} has {len(classes)}: evaluate on "
            "images of the model's classes; some of them can be evaluated where the model's config "
            f"has their names (label_names), and {reason}"
        )
    notes = []
    if names and not model.names.are_assumed and not all(map(str.isdigit, classes)):
        text = (
            f"{model.name} names its classes {_ends(names)}, and those of {root} are "
            f"{_ends(classes)}: the names do not match, so the model's classes are taken to be in "
            "the data's order"
        )
        notes.append(Note("warning", text))
    return ClassMatch(tuple(range(len(classes))), notes=tuple(notes))


def _match_requested(model: OpenedModel, classes: Sequence[str], requested: str) -> ClassMatch:
    names = requested_names(requested, classes, f"classes is {requested!r}")
    if model.classes != len(classes):
        raise InputError(
            f"classes is {requested!r}, but {model.name} has {model.classes} classes and the data "
            f"{len(classes)}: drop --classes"
        )
    number_of = {name: number for number, name in enumerate(names)}
    return ClassMatch(tuple(number_of[name] for name in classes), is_known=True)


def _by_name(model: OpenedModel, logits: list[int]) -> ClassMatch:
    if len(logits) < model.classes:
        text = (
            f"{model.name}: {len(logits)} of its {model.classes} classes are measured, found by "
            "their names"
        )
        return ClassMatch(tuple(logits), True, (Note("info", text),))
    moved = sum(place != number for number, place in enumerate(logits))
    text = (
        f"{moved} of the {model.classes} classes of {model.name} have another number than those of "
        "the images: they are matched by their names"
    )
    notes = (Note("info", text),) if moved else ()
    return ClassMatch(tuple(logits), True, notes)


def _ends(names: Sequence[str]) -> str:
    return f"{names[0]} ... {names[-1]}"
