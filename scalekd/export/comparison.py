"""Comparing an exported file with the model that it came from."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scalekd.data.source import IGNORED
from scalekd.errors import InputError
from scalekd.export.pixels import PixelSet

BATCH_SIZES = 1, 3
"""Batch sizes at which a file is run: one that is right for a single size is found out."""

COMPARED_IMAGES = 25
"""One at the first batch size and eight batches of the second."""

MEASURED_BATCH = 50
"""Images that are measured at a time."""

TOLERANCE = 1e-3
"""Largest difference of a file in floating point, as a share of the spread of the logits."""

Classifier = Callable[[Tensor], Tensor]
"""Pixels (N, channels, H, W) with values from 0 to 1 -> logits (N, classes), on the CPU."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How far a file's logits are from its model's.

    Attributes:
        images: what they were compared on.
        count: number of these images.
        batch_sizes: at which the file was run.
        largest_difference: of any logit.
        spread: standard deviation of the model's logits over images and classes.
        class_agreement: share of the images to which both give the same class.
    """

    images: str
    count: int
    batch_sizes: tuple[int, ...]
    largest_difference: float
    spread: float
    class_agreement: float

    @property
    def relative_difference(self) -> float:
        """The largest difference as a share of the spread."""
        return self.largest_difference / self.spread if self.spread else self.largest_difference


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Top-1 accuracies (shares) of a file and of its model on the same images.

    Attributes:
        images: what they were measured on.
        count: number of these images.
        model_top1: of the model in floating point; None where the images have no labels.
        file_top1: of the file; None where the images have no labels.
        class_agreement: share of the images to which both give the same class.
    """

    images: str
    count: int
    model_top1: float | None
    file_top1: float | None
    class_agreement: float

    @property
    def loss(self) -> float:
        """By how much the file is less accurate; without labels, than the model's own classes."""
        if self.model_top1 is None or self.file_top1 is None:
            return 1 - self.class_agreement
        return self.model_top1 - self.file_top1


@torch.no_grad()
def compare(model: Classifier, file: Classifier, pixels: PixelSet) -> Comparison:
    """Run a file and its model on the same images, at each of `BATCH_SIZES`.

    Args:
        model: the model.
        file: the file.
        pixels: at most `COMPARED_IMAGES` are used.
    """
    chosen = pixels.draw(COMPARED_IMAGES)
    images = torch.cat([batch for batch, _ in chosen.batches(COMPARED_IMAGES)])
    expected, given = (
        torch.cat([classify(part) for part in _parts(images)]) for classify in (model, file)
    )
    same = (expected.argmax(1) == given.argmax(1)).double().mean().item()
    return Comparison(
        images=chosen.description,
        count=len(images),
        batch_sizes=tuple(sorted({len(part) for part in _parts(images)})),
        largest_difference=(expected - given).abs().max().item(),
        spread=expected.std(correction=0).item(),
        class_agreement=same,
    )


def _parts(images: Tensor) -> Iterator[Tensor]:
    first, second = BATCH_SIZES
    yield images[:first]
    yield from torch.split(images[first:], second) if len(images) > first else ()


def refuse_disagreement(comparison: Comparison) -> None:
    """Raise InputError where a file in floating point is not its model."""
    if comparison.relative_difference <= TOLERANCE:  # not for NaN
        return
    raise InputError(
        f"the exported file gives other logits than its model on {comparison.count} "
        f"{comparison.images}: the largest difference is {comparison.largest_difference:.2g}, "
        f"{comparison.relative_difference:.2g} of the spread of the logits, and {TOLERANCE:g} is "
        "allowed; the file is removed, export with another --format"
    )


@torch.no_grad()
def measure(
    model: Classifier,
    file: Classifier,
    pixels: PixelSet,
    *,
    logit_of_label: Sequence[int],
    loading: dict[str, Any],
) -> Accuracy:
    """Measure the accuracy of a file beside that of its model, in one pass over the images.

    Args:
        model: the model.
        file: the file.
        pixels: images, with labels or without; those of the class `IGNORED` are skipped.
        logit_of_label: the number of the logit of each label.
        loading: arguments of a DataLoader that decide its worker processes.

    Raises:
        InputError: there are no such images.
    """
    right, same, count, labelled = [0, 0], 0, 0, False
    for images, labels in pixels.batches(MEASURED_BATCH, loading):
        if labels is not None:
            labelled, kept = True, labels != IGNORED
            images, labels = images[kept], labels[kept]
        if not len(images):
            continue
        guesses = [classify(images).argmax(1) for classify in (model, file)]
        if labels is not None:
            targets = torch.tensor(logit_of_label)[labels]
            right = [r + int((g == targets).sum()) for r, g in zip(right, guesses, strict=True)]
        same += int((guesses[0] == guesses[1]).sum())
        count += len(images)
    if not count:
        raise InputError(f"none of the {pixels.description} can be read")
    return Accuracy(
        images=pixels.description,
        count=count,
        model_top1=right[0] / count if labelled else None,
        file_top1=right[1] / count if labelled else None,
        class_agreement=same / count,
    )


def refuse_loss(accuracy: Accuracy, largest: float) -> None:
    """Raise InputError where a file in 8 bits is less accurate than its model by too much."""
    if accuracy.loss <= largest:
        return
    images = f"{accuracy.count} {accuracy.images}"
    if accuracy.model_top1 is None:
        found = f"gives another class than its model to {accuracy.loss:.1%} of {images}"
    else:
        found = f"is right on {accuracy.file_top1:.1%} of {images}, its model on "
        found += f"{accuracy.model_top1:.1%}"
    raise InputError(
        f"the file in 8 bits {found}, and max_loss is {largest:.1%}: it is removed; calibrate on "
        "more images (--calibration_images), allow more (--max_loss), or export with --format onnx"
    )
