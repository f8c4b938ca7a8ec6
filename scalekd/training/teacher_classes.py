"""The order of a teacher's classes: which logit belongs to which class of the data set.

Programs number the classes of a data set differently: torchvision sorts folders by code point, so
that DC-10 comes before DC-3, timm's data sets naturally and without case, so that it comes after.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from timm.utils.misc import natural_key
from torch import nn

from scalekd.errors import InputError
from scalekd.networks.input_config import pretrained_config
from scalekd.notes import Note


@dataclass(frozen=True)
class ClassOrder:
    """How a teacher's classes were put in the data's order.

    Attributes:
        is_known: whether the recipe, or names in the teacher's configuration, give the order.
        places: which of the teacher's own logits each class has, if that is another than its label.
        notes: what was done, for the user.
    """

    is_known: bool = False
    places: tuple[int, ...] | None = None
    notes: tuple[Note, ...] = ()


def natural_order(names: Sequence[str]) -> list[str]:
    """Sort classes as timm's data sets do: numbers by value, upper case like lower case."""
    return sorted(names, key=natural_key)


def put_classes_in_order(
    model: nn.Module, teacher_classes: str | None, data_classes: Sequence[str]
) -> ClassOrder:
    """Permute a teacher's logits, in place, so that they are in the order of the data's classes.

    Args:
        model: the teacher as timm built it.
        teacher_classes: the recipe's setting.
        data_classes: names of the data's classes by label; empty if they are not known.

    Raises:
        InputError: the names of `teacher_classes` are not those of the data's classes, or the
            teacher's classifier cannot be permuted.
    """
    classes = getattr(model, "num_classes", None)
    if teacher_classes is None:
        names = read_label_names(model)
        if len(names) != classes or classes != len(data_classes):
            return ClassOrder()
        if set(names) != set(map(_normal, data_classes)):
            text = (
                f"the teacher's configuration names its classes {_ends(names)}, and the data's are "
                f"{_ends(data_classes)}: the names do not match, so the teacher's logits are taken "
                "to be in the data's order"
            )
            return ClassOrder(notes=(Note("warning", text),))
        source = "by their names in the teacher's configuration"
    else:
        names = _requested_names(teacher_classes, data_classes)
        source = f"because teacher_classes is {teacher_classes}"
    if classes != len(data_classes):
        raise InputError(
            f"teacher_classes is {teacher_classes!r}, but the teacher has {classes} classes and "
            f"the data {len(data_classes)}: drop teacher_classes"
        )
    places = tuple(names.index(_normal(name)) for name in data_classes)
    moved = sum(place != label for label, place in enumerate(places))
    if not moved:
        return ClassOrder(is_known=True)
    _permute_logits(model, places)
    text = f"{moved} of the teacher's {classes} classes were put in another place {source}"
    return ClassOrder(is_known=True, places=places, notes=(Note("info", text),))


def read_label_names(model: nn.Module) -> list[str]:
    """The names of a model's classes in timm's configuration, by label; empty without names."""
    names = pretrained_config(model).get("label_names") or []
    if isinstance(names, dict):  # by label, which JSON makes a string
        names = [names[label] for label in sorted(names, key=int)]
    return [_normal(str(name)) for name in names]


def _requested_names(teacher_classes: str, data_classes: Sequence[str]) -> list[str]:
    """The names that `teacher_classes` gives the teacher's logits."""
    if not data_classes:
        raise InputError(
            f"teacher_classes is {teacher_classes!r}, but the images have no named classes: drop it"
        )
    if teacher_classes == "data":
        return list(map(_normal, data_classes))
    if teacher_classes in ("natural", "sorted"):
        put = natural_order if teacher_classes == "natural" else sorted
        return list(map(_normal, put(data_classes)))
    try:
        lines = Path(teacher_classes).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(
            f"teacher_classes is {teacher_classes!r}: it must be data, sorted, natural or a text "
            f"file with a class's name on each line, and it cannot be read as one ({error})"
        ) from error
    names = [_normal(line.strip()) for line in lines if line.strip()]
    expected = list(map(_normal, data_classes))
    if sorted(names) != sorted(expected):
        odd = sorted(set(names) ^ set(expected)) or ["a name twice"]
        raise InputError(
            f"teacher_classes is {teacher_classes!r}, which has {len(names)} names for the data's "
            f"{len(expected)} classes; they differ by {', '.join(odd[:5])}: name each class once"
        )
    return names


def _permute_logits(model: nn.Module, places: Sequence[int]) -> None:
    """Take the rows of the classifier, or of both of a distilled DeiT, from `places`."""
    names = pretrained_config(model).get("classifier") or ()
    for name in (names,) if isinstance(names, str) else names:
        layer = dict(model.named_modules()).get(name)
        parameters = list(layer.parameters(recurse=False)) if layer else []
        if not parameters or any(len(p) != len(places) for p in parameters):
            raise InputError(
                f"the classes of {type(model).__name__} cannot be put in order, because its "
                f"classifier {name!r} is no layer with a row for each class: drop teacher_classes, "
                "and put the data's classes in the teacher's order"
            )
        for parameter in parameters:
            parameter.data = parameter.data[torch.tensor(places)]


def _normal(name: str) -> str:
    """The same text for the same letters, however a file system stores them."""
    return unicodedata.normalize("NFC", name)


def _ends(names: Sequence[str]) -> str:
    return f"{names[0]} ... {names[-1]}"
