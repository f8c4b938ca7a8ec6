"""Warn of a model that is probably not set up as it was trained."""

import logging

from scalekd.data.source import Source
from scalekd.evaluation.classes import ClassMatch
from scalekd.evaluation.opened_model import OpenedModel
from scalekd.recipe import Data
from scalekd.training.alternatives import (
    GOOD,
    Trial,
    find_better,
    load_pixels,
    without_normalisation,
)

logger = logging.getLogger(__name__)


def warn_of_alternatives(
    opened: OpenedModel,
    match: ClassMatch,
    top1: float,
    source: Source,
    data: Data,
    batch_size: int,
) -> None:
    """Warn where a usual order of the classes, or mean and standard deviation, is far better.

    Args:
        opened: the model.
        match: its logit for each class of the images.
        top1: its accuracy (a share) as it is set up; a good model is not tried.
        source: the images.
        data: how they were opened.
        batch_size: images that are classified at a time.
    """
    if top1 >= GOOD or source.input is not None or opened.classes != source.classes:
        return
    assert source.validation_set is not None
    raw = without_normalisation(opened.input)
    images = source.validation_set(raw)
    pixels, targets = load_pixels(images, raw, None, source.class_names)
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
        batch_size=batch_size,
    )
    own, better = find_better(trial.setups(), targets)
    if better is not None:
        logger.warning(
            "on %d of the images %s is right on %.1f%% as it is set up, and on %.1f%% with "
            "%s: was it trained so?",
            len(targets),
            opened.name,
            100 * own.accuracy,
            100 * better.accuracy,
            " ".join(better.options),
        )
