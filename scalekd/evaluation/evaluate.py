"""Measure the top-1 accuracy of a model on validation images."""

import logging
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from timm.data import ImageNetInfo, infer_imagenet_subset
from torch.utils.data import DataLoader

from scalekd.data.open import open_validation
from scalekd.data.source import Relabelled
from scalekd.device import best_device
from scalekd.errors import InputError
from scalekd.networks import build_model, input_config
from scalekd.networks.input_config import pretrained_config
from scalekd.recipe import Data
from scalekd.runs.folder import RunFolder
from scalekd.training.validation import top1

logger = logging.getLogger(__name__)


def evaluate(
    model: str, data: Data, weights: str = "pretrained", weights_key: str | None = None
) -> float:
    """Measure the top-1 accuracy of a model on validation images.

    The classes of the images are found by name among those of the model, where its configuration
    has names (timm's `label_names`); they may then be some of the model's. Otherwise they are the
    model's by their number.

    Args:
        model: Model to evaluate: a run folder, a student folder, or a timm name.
        data: Validation images, as for distill; images to train on need not be there. A folder has
            val/, validation/, valid/ or test/ with a folder for each class, or these themselves.
        weights: Weights of the model: pretrained (those of timm's hub, or of the folder), random,
            or a file.
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
    for note in source.notes:
        logger.info(str(note))
    if (student := RunFolder(Path(model)).student).is_dir():
        model = str(student)
    name = f"local-dir:{model}" if Path(model).is_dir() else model
    network: Any
    network, loaded_weights = build_model(name, weights, data.size, weights_key)
    network.eval().to(best_device())
    numbers = match_classes(model, network, data.root, source.splits[0].classes)
    images = Relabelled(source.validation_set(input_config(network, data.size)), numbers)
    note = loaded_weights.note
    logger.log(logging.WARNING if note.level == "warning" else logging.INFO, str(note))
    return top1(network, DataLoader(images, 250), network.num_classes)


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
    names = _class_names(network)
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


def _class_names(network: Any) -> list[str]:
    """Names of a model's classes in the order of its logits; empty where they are not known."""
    names = pretrained_config(network).get("label_names")
    if not names and (subset := infer_imagenet_subset(network)):
        names = ImageNetInfo(subset).label_names()
    names = [unicodedata.normalize("NFC", str(name)) for name in names or ()]
    usable = len(names) == network.num_classes == len(set(names))
    return names if usable else []
