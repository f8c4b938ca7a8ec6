"""The order of a model's classes: which logit belongs to which class of the data set.

Programs number the classes of a data set differently: torchvision sorts folders by code point, so
that DC-10 comes before DC-3, timm's data sets naturally and without case, so that it comes after.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.data import ImageNetInfo, infer_imagenet_subset
from timm.utils.misc import natural_key
from torch import nn

from scalekd.data.source import normal_name
from scalekd.errors import InputError, one_line
from scalekd.networks.input_config import pretrained_config
from scalekd.notes import Note
from scalekd.reading import read_text


@dataclass(frozen=True)
class ClassOrder:
    """How a model's classes were put in the data's order.

    Attributes:
        is_known: whether the recipe, or names in the model's configuration, give the order.
        places: which of the model's own logits each class has, if that is another than its label.
        notes: what was done, for the user.
    """

    is_known: bool = False
    places: tuple[int, ...] | None = None
    notes: tuple[Note, ...] = ()


def natural_order(names: Sequence[str]) -> list[str]:
    """Sort classes as timm's data sets do: numbers by value, upper case like lower case."""
    return sorted(names, key=natural_key)


def put_classes_in_order(
    model: nn.Module,
    requested: str | None,
    data_classes: Sequence[str],
    *,
    option: str = "teacher_classes",
) -> ClassOrder:
    """Permute a model's logits, in place, so that they are in the order of the data's classes.

    Args:
        model: as timm built it.
        requested: the order that the user gives it: "data", "sorted", "natural" or a text file.
        data_classes: names of the data's classes by label, as a source has them; empty if they are
            not known.
        option: how errors name the setting with `requested`.

    Raises:
        InputError: the requested names are not those of the data's classes, or the classifier
            cannot be permuted.
    """
    classes = getattr(model, "num_classes", None)
    if requested is None:
        names = read_label_names(model)
        data_has_names = any(not name.isdigit() for name in data_classes)
        if not names or classes != len(data_classes) or not data_has_names:
            return ClassOrder()
        if set(names) != set(data_classes):
            if not pretrained_config(model).get("label_names"):  # timm's, by their number only
                return ClassOrder()
            text = (
                f"the model's configuration names its classes {_ends(names)}, and the data's are "
                f"{_ends(data_classes)}: the names do not match, so the model's classes are taken "
                "to be in the data's order"
            )
            return ClassOrder(notes=(Note("warning", text),))
        source = "by their names in the model's configuration"
    else:
        names = requested_names(requested, data_classes, f"{option} is {requested!r}")
        source = f"because {option} is {requested}"
    if classes != len(data_classes):
        raise InputError(
            f"{option} is {requested!r}, but the model has {classes} classes and the data "
            f"{len(data_classes)}: drop {option}"
        )
    place_of = {name: place for place, name in enumerate(names)}
    places = tuple(place_of[name] for name in data_classes)
    moved = sum(place != label for label, place in enumerate(places))
    if not moved:
        return ClassOrder(is_known=True)
    _permute_logits(model, places)
    text = f"{moved} of the model's {classes} classes were put in another place {source}"
    return ClassOrder(is_known=True, places=places, notes=(Note("info", text),))


def read_label_names(model: nn.Module) -> list[str]:
    """The names of a model's classes in timm's configuration, by label; empty without names.

    Of timm's models for ImageNet they are timm's, which their configuration does not repeat.
    """
    names: Any = pretrained_config(model).get("label_names")
    if not names and (subset := infer_imagenet_subset(model)):
        names = ImageNetInfo(subset).label_names()
    if isinstance(names, dict):  # by label, which JSON makes a string
        names = [names[label] for label in sorted(names, key=lambda label: natural_key(str(label)))]
    names = [normal_name(str(name)) for name in names or ()]
    usable = len(names) == getattr(model, "num_classes", None) == len(set(names))
    return names if usable else []


def requested_names(requested: str, data_classes: Sequence[str], title: str) -> list[str]:
    """The names that `requested` gives the logits; errors begin with `title`."""
    if not data_classes:
        raise InputError(f"{title}, but the images have no named classes: drop it")
    expected = list(data_classes)
    match requested:
        case "data":
            return expected
        case "sorted":
            return sorted(expected)
        case "natural":
            return natural_order(expected)
    try:
        lines = read_text(Path(requested)).splitlines()
    except (OSError, ValueError) as error:
        raise InputError(
            f"{title}: it must be data, sorted, natural or a text file with a class's name on each "
            f"line, and it cannot be read as one ({one_line(error)})"
        ) from error
    names = [normal_name(line.strip()) for line in lines if line.strip()]
    if sorted(names) != sorted(expected):
        odd = sorted(set(names) ^ set(expected)) or ["a name twice"]
        raise InputError(
            f"{title}, which has {len(names)} names for the data's {len(expected)} classes; they "
            f"differ by {', '.join(odd[:5])}: name each class once"
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
                f"classifier {name!r} is no layer with a row for each class: drop the setting, "
                "and put the data's classes in the teacher's order"
            )
        for parameter in parameters:
            parameter.data = parameter.data[torch.tensor(places)]


def _ends(names: Sequence[str]) -> str:
    return f"{names[0]} ... {names[-1]}"
