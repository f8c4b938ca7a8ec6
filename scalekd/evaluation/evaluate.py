"""Measure models on labelled images, one or several side by side."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from scalekd.data.open import open_validation
from scalekd.data.source import IGNORED, Source
from scalekd.device import best_device
from scalekd.errors import InputError
from scalekd.evaluation.batches import check_count, load_batches, loading_threads
from scalekd.evaluation.by_class import Labels, compare
from scalekd.evaluation.classes import ClassMatch, match_classes
from scalekd.evaluation.doubts import warn_of_alternatives
from scalekd.evaluation.meter import Meter
from scalekd.evaluation.opened_model import OpenedModel, open_model
from scalekd.evaluation.results import Evaluation
from scalekd.networks import InputConfig
from scalekd.networks.input_config import Size, normalize_bytes, renormalization
from scalekd.recipe import Data
from scalekd.training.alternatives import without_normalisation

logger = logging.getLogger(__name__)

Setting = TypeVar("Setting")


def evaluate(
    models: Sequence[str],
    data: Data,
    weights: str | list[str] = "pretrained",
    classes: str | list[str | None] | None = None,
    weights_key: str | list[str | None] | None = None,
    batch_size: int = 250,
    report: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Measure one or several models on the same validation images.

    The classes of the images are found by name among those of a model, where its configuration
    has names (timm's `label_names`); they may then be some of the model's. Otherwise they are the
    model's by their number. A warning names the options under which a model that is not set up as
    it was trained would be far better.

    The images are loaded once for all models that take images of the same size and crop.

    Args:
        models: Models to evaluate, each a run folder, an exported folder, a timm name, the
            checkpoint of a run (FILE.ckpt), or an ONNX file (FILE.onnx).
        data: Validation images, as for distill; images to train on need not be there. A folder has
            val/, validation/, valid/ or test/ with a folder for each class, or these themselves.
        weights: Weights of the models: pretrained (those of timm's hub, or of the folder), random,
            a file, or a folder that transformers wrote; of several models a list with one for
            each, [pretrained,teacher.pth].
        classes: Order of the model's classes, as teacher_classes of distill: data, sorted, natural
            or a text file; of several models one for all or a list with one for each. By default
            the order of the names in the model's configuration if it has them, and otherwise data.
        weights_key: Key of the weights in a file that holds several networks, for example
            model_ema, with dots for depth; of several models a list with one or null for each. By
            default the only network in the file, or of a network and its average over training
            steps (EMA) the average.
        batch_size: Number of images that are classified at a time.
        report: Called with the number of images done and of all, after each batch.

    Returns:
        What was measured, in the order of `models`.

    Raises:
        InputError: There are no validation images with labels, a model cannot be built or
            loaded, or the classes of the images are not the model's.
    """
    check_count("batch_size", batch_size)
    if not models or len(set(models)) < len(models):
        raise InputError(f"the models are {', '.join(models) or 'none'}: name each once")
    if len(models) > 1 and isinstance(weights, str) and weights not in ("pretrained", "random"):
        raise InputError(
            f"weights is {weights!r} for {len(models)} models: give a list with one for each, for "
            f"example '[pretrained,{weights}]'"
        )
    settings = zip(
        models,
        _for_each(models, "weights", weights),
        _for_each(models, "weights_key", weights_key),
        _for_each(models, "classes", classes),
        strict=True,
    )
    source = open_validation(data)
    labels, meters = Labels(source.class_names), list[Meter]()
    candidates = list[tuple[OpenedModel, ClassMatch]]()
    for model, file, key, order in settings:
        size = source.input.size if source.input else None
        opened = open_for_source(model, source, data, file, key, size=size)
        if source.input is not None:
            opened = _renormalizing(opened, source.input)
        match = match_classes(opened, source.class_names, data.root, order)
        candidates.append((opened, match))
        statistics = opened.input if source.input is None else None
        meters.append(Meter(opened, match, labels, statistics))
    notes = [note for opened, match in candidates for note in (*opened.notes, *match.notes)]
    for note in (*source.notes, *notes):
        note.log(logger)  # only here: what is refused is refused by one line
    corrupt = _measure(meters, source, data, batch_size, report)
    results = tuple(meter.compute() for meter in meters)
    for (opened, match), result in zip(candidates, results, strict=True):
        warn_of_alternatives(opened, match, result.top1, source, data, batch_size)
    return Evaluation(
        data=data.root,
        images=len(meters[0].targets),
        corrupt_images=corrupt,
        classes=len(source.class_names),
        device=best_device().type,
        batch_size=batch_size,
        models=results,
        agreements=compare(models, [m.predicted for m in meters], meters[0].targets),
    )


def _for_each(
    models: Sequence[str], name: str, setting: Setting | list[Setting]
) -> Sequence[Setting]:
    """The setting of each model, of which the user gives one for all or one for each."""
    if not isinstance(setting, list):
        return [setting] * len(models)
    if len(setting) != len(models):
        raise InputError(
            f"{name} is {setting} for {len(models)} models: give one for all, or one for each"
        )
    return setting


def open_for_source(
    model: str,
    source: Source,
    data: Data,
    weights: str,
    weights_key: str | None,
    *,
    size: Size | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> OpenedModel:
    """Open a model for the images of a source, with its own normalisation.

    Args:
        model: as for `open_model`, as are `weights`, `weights_key` and `arguments`.
        source: the images.
        data: how the model is to see them.
        weights: of the model.
        weights_key: of the weights in their file.
        size: (height, width) where `data` gives none; by default the model's own.
        arguments: of `timm.create_model`.

    Raises:
        InputError: the model cannot be opened, or the source's images have other channels.
    """
    fixed = source.input
    opened = open_model(
        model,
        weights=weights,
        weights_key=weights_key,
        size=data.size or size,
        mean=data.mean,
        std=data.std,
        crop=data.crop,
        interpolation=data.interpolation,
        arguments=arguments,
    )
    if fixed is not None and fixed.channels != opened.input.channels:
        raise InputError(
            f"{model} takes images of {opened.input.channels} channels, and those of {data.root!r} "
            f"have {fixed.channels}: evaluate it on other images"
        )
    return opened


def _renormalizing(opened: OpenedModel, fixed: InputConfig) -> OpenedModel:
    """The same model for images that come normalised as `fixed`. One that does not tell its
    normalisation takes them as they come."""
    own = opened.input
    if (own.mean, own.std) == (fixed.mean, fixed.std) or not opened.tells_normalization:
        return replace(opened, input=fixed)
    renormalize = renormalizer(fixed, own)
    return replace(opened, network=lambda images: opened.network(renormalize(images)), input=fixed)


def renormalizer(fixed: InputConfig, own: InputConfig) -> Callable[[Tensor], Tensor]:
    """What makes images of `fixed`'s normalisation those of `own`'s."""
    if (own.mean, own.std) == (fixed.mean, fixed.std):
        return lambda images: images
    scale, shift = (t.to(best_device()) for t in renormalization(fixed, own))
    return lambda images: scale * images + shift


def _measure(
    meters: Sequence[Meter],
    source: Source,
    data: Data,
    batch_size: int,
    report: Callable[[int, int], None] | None,
) -> int:
    """Show all images to all models; returns how many images cannot be read."""
    assert source.validation_set is not None
    groups: dict[InputConfig, list[Meter]] = {}
    for meter in meters:
        shown = without_normalisation(meter.model.input)
        groups.setdefault(shown, []).append(meter)
    threads = loading_threads(data.workers)
    done, corrupt = 0, 0
    for shown, members in groups.items():
        images: Any = source.validation_set(shown)
        corrupt = 0
        for pixels, targets in _batches(images, batch_size, threads):
            labelled = targets != IGNORED
            corrupt += int((~labelled).sum())
            if labelled.any():
                values = normalize_bytes(pixels[labelled], shown)
                for meter in members:
                    meter.update(values, targets[labelled])
            done += len(targets)
            if report is not None:
                report(done, len(images) * len(groups))
        if corrupt == len(images):
            raise InputError(f"{data.root!r} has no image that can be read and has a label")
    return corrupt


def _batches(images: Dataset[Any], batch_size: int, threads: int) -> Any:
    count = len(images)  # type: ignore[arg-type]
    for items in load_batches(images.__getitem__, count, batch_size, threads):
        pixels, targets = zip(*items, strict=True)
        yield torch.stack(pixels), torch.tensor([int(target) for target in targets])
