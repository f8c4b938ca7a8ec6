"""The scores of a segmentation, from one confusion matrix over all pixels of the validation set."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ClassScores:
    """The scores of one class.

    Attributes:
        name: of the class.
        iou: pixels that are right, as a share of those that are of the class or are predicted to
            be; None where there are no such pixels.
        accuracy: pixels that are right, as a share of those of the class; None without any.
        pixels: of the class.
    """

    name: str
    iou: float | None
    accuracy: float | None
    pixels: int


@dataclass(frozen=True)
class SegmentationScores:
    """The scores of a segmentation; shares from 0 to 1.

    Attributes:
        miou: mean IoU of the classes that have one: never a mean over images.
        pixel_accuracy: pixels that are right, as a share of all labelled pixels.
        mean_accuracy: mean accuracy of the classes that have one.
        classes: the scores of each class, in the order of their numbers.
    """

    miou: float
    pixel_accuracy: float
    mean_accuracy: float
    classes: tuple[ClassScores, ...]


def scores_of(confusion: Tensor, names: tuple[str, ...]) -> SegmentationScores:
    """Compute the scores.

    Args:
        confusion: pixels by class (rows) and predicted class (columns), (classes, classes).
        names: of the classes.

    Example:
        >>> scores_of(torch.tensor([[3, 1], [0, 4]]), ("sky", "sea")).miou
        0.775
    """
    counts = confusion.double()
    right, of_class, predicted = counts.diagonal(), counts.sum(dim=1), counts.sum(dim=0)
    union = of_class + predicted - right
    iou, accuracy = right / union, right / of_class  # NaN where there is nothing to divide by
    classes = tuple(
        ClassScores(name, _known(iou[i]), _known(accuracy[i]), int(of_class[i]))
        for i, name in enumerate(names)
    )
    return SegmentationScores(
        miou=_mean([c.iou for c in classes]),
        pixel_accuracy=float(right.sum() / counts.sum().clamp(min=1)),
        mean_accuracy=_mean([c.accuracy for c in classes]),
        classes=classes,
    )


def _known(value: Tensor) -> float | None:
    return None if torch.isnan(value) else float(value)


def _mean(values: list[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else 0.0
