"""Measure the top-1 accuracy of a model on validation images."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from scalekd.data.open import open_validation
from scalekd.data.source import Relabelled, Source
from scalekd.device import best_device
from scalekd.errors import InputError
from scalekd.networks import InputConfig, build_model, input_config
from scalekd.networks.input_config import check_statistics, set_statistics
from scalekd.recipe import Data
from scalekd.runs.folder import RunFolder
from scalekd.training.alternatives import (
    GOOD,
    Trial,
    find_better,
    load_pixels,
    without_normalisation,
)
from scalekd.training.teacher_classes import put_classes_in_order, read_label_names
from scalekd.training.validation import top1

logger = logging.getLogger(__name__)

BATCH = 250
"""Images that are evaluated at a time."""


def evaluate(
    model: str,
    data: Data,
    weights: str = "pretrained",
    classes: str | None = None,
    weights_key: str | None = None,
) -> float:
    """Measure the top-1 accuracy of a model on validation images.

    The classes of the images are found by name among those of the model, where its configuration
    has names (timm's `label_names`); they may then be some of the model's. Otherwise they are the
    model's by their number. A warning names the options under which a model that is not set up as
    it was trained would be far better.

    Args:
        model: Model to evaluate: a run folder, a student folder, or a timm name.
        data: Validation images, as for distill; images to train on need not be there. A folder has
            val/, validation/, valid/ or test/ with a folder for each class, or these themselves.
        weights: Weights of the model: pretrained (those of timm's hub, or of the folder), random,
            or a file.
        classes: Order of the model's classes, as teacher_classes of distill: data, sorted, natural
            or a text file. By default the order of the names in the model's configuration if it has
            them, and otherwise data.
        weights_key: Key of the weights in a file that holds several networks, for example
            model_ema, with dots for depth. By default the only network in the file, or of a network
            and its average over training steps (EMA) the average.

    Returns:
        The share of images whose largest logit is that of their class, 0 to 1.

    Raises:
        InputError: There are no validation images with labels, the model cannot be built or
            loaded, or the classes of the images are not the model's.
    """
    source = open_validation(data)
    assert source.validation_set is not None
    if (student := RunFolder(Path(model)).student).is_dir():
        model = str(student)
    name = f"local-dir:{model}" if Path(model).is_dir() else model
    network: Any
    network, loaded_weights = build_model(name, weights, data.size, weights_key)
    set_statistics(network, mean=data.mean, std=data.std)
    order = put_classes_in_order(network, classes, source.class_names, option="classes")
    numbers: Sequence[int] = range(len(source.class_names))
    if not order.is_known:
        numbers = match_classes(model, network, data.root, source.class_names)
    network.eval().to(best_device())
    images = input_config(network, data.size)
    check_statistics("data.", images.channels, mean=data.mean, std=data.std)
    images = replace(
        images,
        crop=data.crop or images.crop,
        interpolation=data.interpolation or images.interpolation,
    )
    for note in (*source.notes, loaded_weights.note, *order.notes):
        note.log(logger)  # only here: what is refused is refused by one line
    validation = Relabelled(source.validation_set(images), numbers)
    accuracy = top1(network, DataLoader(validation, BATCH), network.num_classes)
    if accuracy < GOOD and source.input is None and network.num_classes == source.classes:
        _warn_of_alternatives(network, source, data, images, order.is_known)
    return accuracy


def _warn_of_alternatives(
    network: Any, source: Source, data: Data, images: InputConfig, order_is_known: bool
) -> None:
    """Warn where a usual order of the classes, or mean and standard deviation, is far better."""
    assert source.validation_set is not None
    raw = source.validation_set(without_normalisation(images))
    pixels, targets = load_pixels(raw, None, source.class_names)
    if not len(targets):
        return
    trial = Trial(
        classify=network,
        pixels=pixels,
        targets=targets,
        input=images,
        class_names=source.class_names,
        order_option=None if order_is_known else "--classes",
        statistics_option="--data." if data.mean is None and data.std is None else None,
        batch_size=BATCH,
    )
    own, better = find_better(trial.setups(), targets)
    if better is not None:
        logger.warning(
            "on %d of the images the model is right on %.1f%% as it is set up, and on %.1f%% with "
            "%s: was it trained so?",
            len(targets),
            100 * own.accuracy,
            100 * better.accuracy,
            " ".join(better.options),
        )


def match_classes(model: str, network: Any, root: str, classes: Sequence[str]) -> Sequence[int]:
    """The number among a model's classes of each class of images.

    Args:
        model: how errors name the model.
        network: the model.
        root: how errors name the images.
        classes: names of the images' classes in the order of their numbers.

    Raises:
        InputError: the images have other classes than the model, or their number differs and the
            model has no names.
    """
    names = read_label_names(network)
    numbers = {name: number for number, name in enumerate(names)}
    unknown = [name for name in classes if name not in numbers]
    if names and not unknown:
        return [numbers[name] for name in classes]
    if names and len(unknown) < len(classes):
        raise InputError(
            f"{len(unknown)} of the {len(classes)} classes of {root} are none of the "
            f"{len(names)} classes of {model}: {', '.join(unknown[:5])}; rename or remove them"
        )
    if network.num_classes == len(classes):
        return range(len(classes))
    raise InputError(
        f"{model} has {network.num_classes} classes, but {root} has {len(classes)}: evaluate on "
        "images of the model's classes; some of them can be evaluated where the model's config "
        f"has their names (label_names), and {'these are others' if names else 'it has none'}"
    )
