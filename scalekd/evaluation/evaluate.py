"""Measure the top-1 accuracy of a model on validation images."""

import logging
from pathlib import Path

from torch.utils.data import DataLoader

from scalekd.data.open import find_layout, open_source
from scalekd.device import best_device
from scalekd.errors import InputError
from scalekd.networks import build_model, input_config
from scalekd.recipe import Data
from scalekd.runs.folder import RunFolder
from scalekd.training.validation import top1

logger = logging.getLogger(__name__)


def evaluate(model: str, data: Data, weights: str = "pretrained") -> float:
    """Measure the top-1 accuracy of a model on validation images.

    Args:
        model: Model to evaluate: a run folder, a student folder, or a timm name.
        data: Validation images, as for distill.
        weights: Weights of the model: pretrained (those of timm's hub, or of the folder), random,
            or a file.

    Returns:
        The share of images whose largest logit is that of their class, 0 to 1.

    Raises:
        InputError: There are no validation images with labels, the model cannot be built or
            loaded, or its number of classes is not that of the images.
    """
    source = None if find_layout(data) == "flat_folder" else open_source(data)
    if source is None or source.classes is None or source.validation_set is None:
        raise InputError(
            f"data.root is {data.root!r}, which has no labels to evaluate with: give a folder "
            "with val/CLASS/*.jpg and train/CLASS/*.jpg"
        )
    if (student := RunFolder(Path(model)).student).is_dir():
        model = str(student)
    name = f"local-dir:{model}" if Path(model).is_dir() else model
    network, loaded_weights = build_model(name, weights, data.size)
    network.eval().to(best_device())
    if network.num_classes != source.classes:
        raise InputError(
            f"{model} has {network.num_classes} classes, but {data.root} has {source.classes}: "
            "evaluate on images of the model's classes"
        )
    images = source.validation_set(input_config(network, data.size))
    logger.info(str(loaded_weights))
    return top1(network, DataLoader(images, 250), source.classes)
