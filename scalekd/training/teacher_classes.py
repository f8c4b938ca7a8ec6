"""The order of a model's classes: which logit belongs to which class of the data set.

Programs number the classes of a data set differently: torchvision sorts folders by code point, so
that DC-10 comes before DC-3, timm's data sets naturally and without case, so that it comes after.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.utils.misc import natural_key
from torch import nn

from scalekd.data.source import normal_name
from scalekd.errors import InputError, one_line
from scalekd.networks.input_config import pretrained_config
from scalekd.networks.transformers_config import MAX_CONFIG_BYTES
from scalekd.networks.weight_files import shortened_list
from scalekd.notes import Note
from scalekd.reading import read_text
from scalekd.training.class_names import ClassNames


@dataclass(frozen=True)
class ClassOrder:
    """How a model's classes were put in the data's order.

    Attributes:
        is_known: whether the recipe, or names in the model's configuration, give the order.
        unmatched: classes of the data that the model has no class of the same name for, although
            it has names; its logits cannot be used then.
        places: which of the model's own logits each class has, if that is another than its label.
        notes: what was done, for the user.
    """

    is_known: bool = False
    unmatched: tuple[str, ...] = ()
    places: tuple[int, ...] | None = None
    notes: tuple[Note, ...] = ()


def natural_order(names: Sequence[str]) -> list[str]:
    """Sort classes as timm's data sets do: numbers by value, upper case like lower case."""
    return sorted(names, key=natural_key)


def put_classes_in_order(
    model: nn.Module, requested: str | None, data_classes: Sequence[str]
) -> ClassOrder:
    """Make a model's logits, in place, those of the data's classes in their order.

    Without a request the data's classes are found by name among the model's, of which they may be
    some: the logits of the others are dropped. Where the model has no such names, its logits are
    taken to be in the data's order.

    Args:
        model: as timm built it.
        requested: the order that the user gives it: "data", "sorted", "natural" or a text file.
        data_classes: names of the data's classes by label, as a source has them; empty if they are
            not known.

    Raises:
        InputError: the requested names are not those of the data's classes, or the classifier
            cannot be permuted.
    """
    classes = getattr(model, "num_classes", 0)
    if requested is None:
        return _match_by_name(model, data_classes)
    names = requested_names(requested, data_classes, f"teacher_classes is {requested!r}")
    if classes != len(data_classes):
        raise InputError(
            f"teacher_classes is {requested!r}, but the model has {classes} classes and the data "
            f"{len(data_classes)}: drop teacher_classes"
        )
    place_of = {name: place for place, name in enumerate(names)}
    places = [place_of[name] for name in data_classes]
    return _take_logits(model, places, f"because teacher_classes is {requested}")


def _match_by_name(model: nn.Module, data_classes: Sequence[str]) -> ClassOrder:
    known = ClassNames.of_model(model)
    if not known.can_match(data_classes):
        return ClassOrder()
    found = known.find_all(data_classes)
    places = [place for place in found if place is not None]
    if len(places) == len(data_classes):
        return _take_logits(model, places, "by the names of the classes")
    if known.are_assumed and (not places or len(known.names) == len(data_classes)):
        return ClassOrder()  # the model is of other classes, or names its classes in another way
    unmatched = tuple(n for n, place in zip(data_classes, found, strict=True) if place is None)
    text = (
        f"no class of the model ({known.names[0]} ... {known.names[-1]}) has the name of "
        f"{len(unmatched)} of the data's {len(data_classes)} classes: {shortened_list(unmatched)}"
    )
    if known.are_assumed:  # the number of classes is another one, so logits are skipped anyway
        return ClassOrder(notes=(Note("info", text),))
    return ClassOrder(unmatched=unmatched, notes=(Note("warning", text),))


def _take_logits(model: Any, places: Sequence[int], why: str) -> ClassOrder:
    classes = model.num_classes
    if list(places) == list(range(classes)):
        return ClassOrder(is_known=True)
    _permute_logits(model, places)
    if len(places) < classes:
        text = f"{len(places)} of the model's {classes} classes were taken {why}"
    else:
        moved = sum(place != label for label, place in enumerate(places))
        text = f"{moved} of the model's {classes} classes were put in another place {why}"
    return ClassOrder(is_known=True, places=tuple(places), notes=(Note("info", text),))


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
        lines = read_text(Path(requested), limit=MAX_CONFIG_BYTES).splitlines()
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


def _permute_logits(model: Any, places: Sequence[int]) -> None:
    """Take the rows of the classifier, or of both of a distilled DeiT, from `places`."""
    names = pretrained_config(model).get("classifier") or ()
    for name in (names,) if isinstance(names, str) else names:
        layer: Any = dict(model.named_modules()).get(name)
        parameters = list(layer.parameters(recurse=False)) if layer else []
        if not parameters or any(len(p) != model.num_classes for p in parameters):
            raise InputError(
                f"the classes of {type(model).__name__} cannot be put in order, because its "
                f"classifier {name!r} is no layer with a row for each class: drop the setting, "
                "and put the data's classes in the teacher's order"
            )
        for parameter in parameters:
            parameter.data = parameter.data[torch.tensor(places)]
        rows = "out_features" if hasattr(layer, "out_features") else "out_channels"
        setattr(layer, rows, len(places))
    model.num_classes = len(places)
