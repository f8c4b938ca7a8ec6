"""Measure the top-1 accuracy of a model on validation images."""

import logging
from dataclasses import replace

from torch.utils.data import DataLoader

from scalekd.data.open import open_validation
from scalekd.data.source import Relabelled, Source
from scalekd.device import best_device
from scalekd.errors import InputError
from scalekd.evaluation.classes import ClassMatch, match_classes
from scalekd.evaluation.opened_model import OpenedModel, open_model
from scalekd.networks.input_config import renormalization
from scalekd.recipe import Data
from scalekd.training.alternatives import (
    GOOD,
    Trial,
    find_better,
    load_pixels,
    without_normalisation,
)
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
        model: Model to evaluate: a run folder, an exported folder, a timm name, the checkpoint of
            a run (FILE.ckpt), or an ONNX file (FILE.onnx).
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
    opened = open_for_source(model, source, data, weights, weights_key)
    match = match_classes(opened, source.class_names, data.root, classes)
    for note in (*source.notes, *opened.notes, *match.notes):
        note.log(logger)  # only here: what is refused is refused by one line
    validation = Relabelled(source.validation_set(opened.input), match.logits)
    accuracy = top1(opened.network, DataLoader(validation, BATCH), opened.classes)
    if accuracy < GOOD and source.input is None and opened.classes == source.classes:
        _warn_of_alternatives(opened, source, data, match)
    return accuracy


def open_for_source(
    model: str, source: Source, data: Data, weights: str, weights_key: str | None
) -> OpenedModel:
    """Open a model for the images of a source, which may fix their size and normalisation.

    Raises:
        InputError: the model cannot be opened, or the source's images have other channels.
    """
    fixed = source.input
    opened = open_model(
        model,
        weights=weights,
        weights_key=weights_key,
        size=data.size or (fixed.size if fixed else None),
        mean=data.mean,
        std=data.std,
        crop=data.crop,
        interpolation=data.interpolation,
    )
    if fixed is None:
        return opened
    if fixed.channels != opened.input.channels:
        raise InputError(
            f"{model} takes images of {opened.input.channels} channels, and those of {data.root!r} "
            f"have {fixed.channels}: evaluate it on other images"
        )
    if not opened.normalizes:
        return replace(opened, input=fixed)
    scale, shift = (t.to(best_device()) for t in renormalization(fixed, opened.input))
    return replace(
        opened, network=lambda images: opened.network(scale * images + shift), input=fixed
    )


def _warn_of_alternatives(
    opened: OpenedModel, source: Source, data: Data, match: ClassMatch
) -> None:
    """Warn where a usual order of the classes, or mean and standard deviation, is far better."""
    assert source.validation_set is not None
    raw = source.validation_set(without_normalisation(opened.input))
    pixels, targets = load_pixels(raw, None, source.class_names)
    if not len(targets):
        return
    own_statistics = data.mean is None and data.std is None and not opened.normalizes
    in_order = list(match.logits)
    trial = Trial(
        classify=lambda images: opened.network(images)[:, in_order],
        pixels=pixels,
        targets=targets,
        input=opened.input,
        class_names=source.class_names,
        order_option=None if match.is_known else "--classes",
        statistics_option="--data." if own_statistics else None,
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
