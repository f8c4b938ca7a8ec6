"""Give a model without a classifier one: fitted to its frozen features of labelled images."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from scalekd.atomic_io import check_new
from scalekd.data.open import open_source
from scalekd.data.source import Source, balanced_subset
from scalekd.device import best_device
from scalekd.errors import InputError, one_line
from scalekd.evaluation.batches import check_count, fitting_memory
from scalekd.evaluation.evaluate import open_for_source, renormalizer
from scalekd.evaluation.opened_model import OpenedModel
from scalekd.evaluation.probe_classifiers import (
    NEIGHBOURS,
    LinearClassifier,
    fit_linear,
    nearest_neighbour_accuracy,
)
from scalekd.evaluation.probe_features import Features, extract_features, pre_logits
from scalekd.networks.student import export_student
from scalekd.recipe import Data, check_model_arguments

logger = logging.getLogger(__name__)

Report = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """What a probe measured.

    Attributes:
        model: the model, as the user named it.
        folder: that has the model with its new classifier.
        classes: number of classes.
        training_images: how many images the classifiers were fitted to.
        validation_images: how many they were measured on.
        width: number of features of an image.
        neighbours: how many of the nearest training images decided.
        neighbours_top1: accuracy of the nearest neighbours on the validation images.
        linear_top1: accuracy of the linear classifier on the validation images.
        regularisation: of the linear classifier, beside the mean cross-entropy.
        held_out_top1: its accuracy on the training images that chose the regularisation.
    """

    model: str
    folder: str
    classes: int
    training_images: int
    validation_images: int
    width: int
    neighbours: int
    neighbours_top1: float
    linear_top1: float
    regularisation: float
    held_out_top1: float


def probe(
    model: str,
    data: Data,
    out: Path,
    weights: str = "pretrained",
    weights_key: str | None = None,
    model_args: dict[str, Any] | None = None,
    batch_size: int = 128,
    report: Report = lambda done, total: None,
) -> ProbeResult:
    """Fit classifiers to the frozen features of a model, and write it with the linear one.

    Images are made as validation images are: nothing is augmented. Features are what the model's
    own classifier would be given; a classifier that it has is replaced. The folder is a timm model,
    good as a teacher (local-dir:FOLDER) and for evaluate.

    Args:
        model: Model to probe: a timm name, or a run folder, an exported folder or the checkpoint of
            a run (FILE.ckpt).
        data: Images with labels to fit to and to validate on, as for distill.
        out: Folder to write; it must not exist.
        weights: Weights of the model: pretrained (those of timm's hub, or of the folder), random,
            or a file.
        weights_key: Key of the weights in a file that holds several networks, for example
            model_ema, with dots for depth.
        model_args: Further arguments of timm's create_model for the model, for example
            '{dynamic_img_size: true}'. By default none.
        batch_size: Number of images that the model is shown at a time.
        report: Called with the number of images seen and of all.

    Raises:
        InputError: The images have no labels, the model cannot be opened or is no timm model with
            a linear classifier, or the folder exists.
    """
    check_new(out)
    check_count("batch_size", batch_size)
    model_args = model_args or {}
    check_model_arguments("model_args", model_args)
    source = open_source(data)
    if source.unaugmented_set is None or source.validation_set is None or source.classes is None:
        raise InputError(f"the images of {data.root!r} have no labels, which a probe is fitted to")
    size = source.input.size if source.input else None
    opened = open_for_source(
        model, source, data, weights, weights_key, size=size, arguments=model_args
    )
    network = _with_new_classifier(opened, source.classes)
    for note in (*source.notes, *opened.notes):
        note.log(logger)
    with fitting_memory(model, batch_size):
        training, validation = _extract(network, opened, source, data, batch_size, report)
    neighbours_top1 = nearest_neighbour_accuracy(training, validation, source.classes)
    classifier, regularisation, held_out_top1 = fit_linear(training, source.classes)
    _set_classifier(network, classifier)
    _describe_input(network, opened)
    # The classifier is that of the images' classes, and timm tells the size that the model has.
    arguments = {n: v for n, v in model_args.items() if n not in ("num_classes", "img_size")}
    try:
        export_student(network.cpu(), out, arguments, source.class_names)
    except OSError as error:
        raise InputError(f"{str(out)!r} cannot be written: {one_line(error)}") from error
    return ProbeResult(
        model=model,
        folder=str(out),
        classes=source.classes,
        training_images=len(training),
        validation_images=len(validation),
        width=training.values.shape[1],
        neighbours=min(NEIGHBOURS, len(training)),
        neighbours_top1=neighbours_top1,
        linear_top1=classifier.accuracy(validation),
        regularisation=regularisation,
        held_out_top1=held_out_top1,
    )


def _with_new_classifier(opened: OpenedModel, classes: int) -> Any:
    """The model with a linear classifier for so many classes in place of what it has.

    Raises:
        InputError: it is no timm model, or its classifier is not one linear layer on top.
    """
    network: Any = opened.network
    if not hasattr(network, "reset_classifier"):
        raise InputError(f"{opened.name!r} is no timm model: a probe needs one, to look inside it")
    images = torch.rand(2, opened.input.channels, *opened.input.size, device=best_device())
    try:
        network.reset_classifier(classes)
        network.eval().to(best_device())
        head = network.get_classifier()
        with torch.no_grad():
            features, logits = pre_logits(network, images), network(images)
    except Exception as error:  # a model of timm's with another idea of a classifier
        raise InputError(
            f"{opened.name!r} cannot be given a classifier ({one_line(error)}): take another model"
        ) from error
    fits = isinstance(head, nn.Linear) and features.ndim == 2
    if not fits or not torch.allclose(head(features).detach(), logits, atol=1e-4):
        raise InputError(
            f"the classifier of {opened.name!r} is a {type(head).__name__}, which is not one "
            "linear layer on its features: take another model"
        )
    return network


def _extract(
    network: nn.Module,
    opened: OpenedModel,
    source: Source,
    data: Data,
    batch_size: int,
    report: Report,
) -> tuple[Features, Features]:
    """Features of the images to fit to, and of those to validate on."""
    assert source.unaugmented_set is not None
    assert source.validation_set is not None
    sets: list[Any] = [source.unaugmented_set(opened.input), source.validation_set(opened.input)]
    # The digits have endless renderings of few originals.
    chosen: list[Sequence[int]] = [
        range(source.images_per_view or len(sets[0])),
        range(len(sets[1])),
    ]
    if data.train_images is not None and source.targets is not None:
        chosen[0] = balanced_subset(source.targets.tolist(), data.train_images, seed=0)
    as_they_come = source.input or opened.input
    total, before, found = sum(map(len, chosen)), 0, list[Features]()
    for images, indices in zip(sets, chosen, strict=True):

        def report_part(done: int, before: int = before) -> None:
            report(before + done, total)

        features = extract_features(
            network,
            images,
            as_they_come,
            indices,
            batch_size=batch_size,
            renormalize=renormalizer(as_they_come, opened.input),
            workers=data.workers,
            report=report_part,
        )
        found.append(features)
        before += len(indices)
    return found[0], found[1]


def _set_classifier(network: Any, classifier: LinearClassifier) -> None:
    head = network.get_classifier()
    with torch.no_grad():
        head.weight.copy_(classifier.weight)
        head.bias.copy_(classifier.bias)


def _describe_input(network: Any, opened: OpenedModel) -> None:
    """Make the model's configuration tell how its images were made."""
    images = opened.input
    network.pretrained_cfg = {
        **network.pretrained_cfg,
        "input_size": (images.channels, *images.size),
        "mean": images.mean,
        "std": images.std,
        "crop_pct": images.crop,
        "crop_mode": images.crop_mode,
        "interpolation": images.interpolation,
        "test_input_size": None,
        "test_crop_pct": None,
        "label_names": None,
        "label_descriptions": None,
    }
