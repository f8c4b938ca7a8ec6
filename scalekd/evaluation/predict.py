"""Predict the classes of images without labels, and write them as a table."""

import io
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scalekd.atomic_io import check_new, create_atomically
from scalekd.device import best_device
from scalekd.errors import InputError
from scalekd.evaluation.batches import (
    check_count,
    check_finite,
    fitting_memory,
    load_batches,
    loading_threads,
)
from scalekd.evaluation.files import to_csv
from scalekd.evaluation.image_files import ImageFiles, find_files
from scalekd.evaluation.opened_model import OpenedModel, open_model
from scalekd.networks.input_config import Size

logger = logging.getLogger(__name__)

MAX_WARNINGS = 20
"""Images that cannot be read and are named in a warning; the table names all."""


@dataclass(frozen=True)
class Prediction:
    """What a model predicts for one image.

    Attributes:
        file: the image.
        logits: numbers of the largest logits, the largest first; empty for a model without a
            classifier, and where the image cannot be read.
        probabilities: of these classes.
        error: why the image cannot be read; None where it was read.
    """

    file: str
    logits: tuple[int, ...] = ()
    probabilities: tuple[float, ...] = ()
    error: str | None = None


@dataclass(frozen=True)
class PredictionCounts:
    """How many images were predicted, and how many cannot be read."""

    images: int
    unreadable: int


def predict(
    model: str,
    files: Sequence[str],
    out: Path,
    top: int = 5,
    features: Path | None = None,
    weights: str = "pretrained",
    weights_key: str | None = None,
    batch_size: int = 250,
    size: Size | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    crop: float | None = None,
    interpolation: str | None = None,
    report: Callable[[int, int], None] | None = None,
) -> PredictionCounts:
    """Predict the classes of images, and write a table with a line for each image.

    Args:
        model: Model that predicts: a run folder, an exported folder, a timm name, the checkpoint
            of a run (FILE.ckpt), or an ONNX file (FILE.onnx).
        files: Images, and folders that are searched for images at any depth.
        out: CSV file to write, which must not exist. Its lines have the file's name, the most
            probable classes with their probabilities, and why a file cannot be read.
        top: Number of the most probable classes that are written for each image, or all if the
            model has fewer.
        features: File to write, NAME.npz, which must not exist: the pooled features that the
            classifier sees (images, channels), as features, and the names of the files, as files.
            By default no features are written.
        weights: Weights of the model: pretrained (those of timm's hub, or of the folder), random,
            or a file.
        weights_key: Key of the weights in a file that holds several networks, for example
            model_ema, with dots for depth. By default the only network in the file, or of a network
            and its average over training steps (EMA) the average.
        batch_size: Number of images that are classified at a time.
        size: Height and width of the images in pixels. By default the model's own.
        mean: Mean of each channel by which the images are normalised. By default the model's own.
        std: Standard deviation of each channel, as mean. By default the model's own.
        crop: Share of an image's sides that is looked at. By default the model's own.
        interpolation: How images are resized. By default the model's own.
        report: Called with the number of images done and of all, after each batch.

    Returns:
        How many images were predicted, and how many cannot be read.

    Raises:
        InputError: There is no such model, not one image can be read, a file that is to be written
            exists, or the model has no classifier and no features are asked for.
    """
    check_count("top", top)
    check_count("batch_size", batch_size)
    _check_outputs(out, features)
    found = find_files(files)
    opened = open_model(
        model,
        weights=weights,
        weights_key=weights_key,
        size=size,
        mean=mean,
        std=std,
        crop=crop,
        interpolation=interpolation,
    )
    if features is not None and not hasattr(opened.network, "forward_head"):
        raise InputError(f"{model} gives logits and no features: drop --features")
    if features is None and not opened.classes:
        raise InputError(
            f"{model} has no classifier, so it predicts no classes: give --features FILE.npz to "
            "write its features"
        )
    for note in (*found.notes, *opened.notes):
        note.log(logger)
    predictions, pooled = list[Prediction](), list[np.ndarray]()
    for batch, vectors in _run(opened, found.files, top, features is not None, batch_size):
        predictions += batch
        pooled += vectors
        if report is not None:
            report(len(predictions), len(found.files))
    unreadable = [p for p in predictions if p.error is not None]
    if len(unreadable) == len(predictions):
        raise InputError(f"not one of {len(predictions)} images can be read: {unreadable[0].error}")
    _write(out, to_csv(_table(opened, predictions, min(top, opened.classes))))
    if features is not None:
        _write(features, _to_npz([p.file for p in predictions if p.error is None], pooled))
    for prediction in unreadable[:MAX_WARNINGS]:
        logger.warning("%s", prediction.error)
    if len(unreadable) > MAX_WARNINGS:
        logger.warning("%d more cannot be read; see %s", len(unreadable) - MAX_WARNINGS, out)
    return PredictionCounts(len(predictions) - len(unreadable), len(unreadable))


def _check_outputs(out: Path, features: Path | None) -> None:
    check_new(out)
    if features is None:
        return
    check_new(features, "give another --features")
    if features.suffix != ".npz":
        raise InputError(f"features is {str(features)!r}: its name must end in .npz")
    if features.absolute() == out.absolute():
        raise InputError(f"out and features are both {str(out)!r}: give each a name of its own")


def _run(
    opened: OpenedModel, files: Sequence[str], top: int, with_features: bool, batch_size: int
) -> Iterator[tuple[list[Prediction], list[np.ndarray]]]:
    """Yield the predictions of each batch, and one vector of features for each readable image."""
    images, threads = ImageFiles(files, opened.input), loading_threads()
    remaining = iter(files)
    for loaded in load_batches(images.load, len(files), batch_size, threads):
        batch = [image for image in loaded if isinstance(image, Tensor)]
        ranked, vectors = iter(list[tuple[list[int], list[float]]]()), list[np.ndarray]()
        if batch:
            logits, features = _forward(opened, torch.stack(batch), with_features)
            probabilities, places = logits.softmax(1).topk(min(top, opened.classes))
            ranked = iter(zip(places.tolist(), probabilities.tolist(), strict=True))
            vectors = [] if features is None else list(features.numpy())
        predictions = []
        for image, file in zip(loaded, remaining, strict=False):
            if isinstance(image, str):
                predictions.append(Prediction(file, error=image))
            else:
                logits_of_image, shares = next(ranked)
                predictions.append(Prediction(file, tuple(logits_of_image), tuple(shares)))
        yield predictions, vectors


@torch.no_grad()
def _forward(
    opened: OpenedModel, images: Tensor, with_features: bool
) -> tuple[Tensor, Tensor | None]:
    """Logits (N, classes), and the pooled features (N, channels) where they are asked for."""
    images, pooled = images.to(best_device()), None
    with fitting_memory(opened.name, len(images)):
        if with_features:
            network: Any = opened.network
            features = network.forward_features(images)
            pooled = network.forward_head(features, pre_logits=True).float().cpu()
            logits = network.forward_head(features) if opened.classes else images.new_zeros(0)
        else:
            logits = opened.network(images)
    logits = logits.float().cpu().reshape(len(images), opened.classes)
    for outputs in (logits, pooled):
        if outputs is not None:
            check_finite(opened.name, outputs)
    return logits, pooled


def _table(
    opened: OpenedModel, predictions: Sequence[Prediction], top: int
) -> Iterator[Sequence[Any]]:
    """The rows of the CSV file, its header first."""
    names, synonyms = opened.names.names, opened.names.synonyms

    def describe(logit: int, probability: float) -> list[Any]:
        described = [",".join(synonyms[logit])] if synonyms else []
        return [names[logit] if names else logit, *described, f"{probability:.6f}"]

    columns = ["class", *(["description"] if synonyms else []), "probability"]
    yield ["file", *(f"{c}_{rank}" for rank in range(1, top + 1) for c in columns), "error"]
    for prediction in predictions:
        ranked = zip(prediction.logits, prediction.probabilities, strict=True)
        cells = [cell for logit, share in ranked for cell in describe(logit, share)]
        cells = cells or [""] * (top * len(columns))
        yield [prediction.file, *cells, prediction.error or ""]


def _to_npz(files: Sequence[str], features: Sequence[np.ndarray]) -> bytes:
    content = io.BytesIO()
    np.savez(content, files=np.array(files), features=np.stack(features))
    return content.getvalue()


def _write(file: Path, content: bytes) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        create_atomically(file, content)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{str(file)!r} could not be written: {reason}") from error
