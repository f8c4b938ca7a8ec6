"""Pictures of a segmentation: predictions over images, and which classes are taken for which."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from scalekd.drawing import draw_shares, to_png
from scalekd.transfer.pictures import add_legend, name_class, paint
from scalekd.transfer.segmentation.scores import SegmentationScores

MAX_CONFUSED = 40
"""Classes of a confusion matrix that are drawn: those with the most pixels."""


@dataclass(frozen=True)
class Example:
    """A validation image with its labels and the predicted ones.

    Attributes:
        image: bytes (3, H, W), or (1, H, W) of a grey image, of any size.
        labels: (H, W); negative where a pixel has none.
        predicted: of the labels' size.
    """

    image: Tensor
    labels: Tensor
    predicted: Tensor


def draw_predictions(examples: Sequence[Example], names: Sequence[str]) -> bytes:
    """Draw a page with two examples a row: image, annotation and prediction of each.

    Returns:
        The picture, in PNG.
    """
    from matplotlib.figure import Figure

    rows = -(-len(examples) // 2)
    figure = Figure(figsize=(16, 2.7 * rows + 1), layout="constrained")
    grid = figure.subplots(rows, 6, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for row, example in zip(grid.reshape(-1, 3), examples, strict=False):
        known = example.labels >= 0
        right = (example.labels == example.predicted)[known].float().mean().nan_to_num()
        titles = "image", "annotation", f"prediction, {float(right):.1%} right"
        shown = None, example.labels, example.predicted
        for axes, title, labels in zip(row, titles, shown, strict=True):
            axes.imshow(_painted(example.image, labels))
            axes.set_title(title, size=9)
    add_legend(figure, _count_classes(examples, len(names)), names)
    return to_png(figure, dpi=110, box=None)


def draw_confusion_matrix(confusion: Tensor, scores: SegmentationScores) -> bytes:
    """Draw the confusion matrix; each row has the shares of that class's pixels in %.

    Of more than `MAX_CONFUSED` classes those with the most pixels are drawn.

    Returns:
        The picture, in PNG.
    """
    from matplotlib.figure import Figure

    counts = confusion.double().numpy()
    order = np.argsort(-counts.sum(axis=1), kind="stable")[:MAX_CONFUSED]
    shown = sorted(order.tolist())
    shares = 100 * counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    shares = shares[shown][:, shown]
    names = [name_class(scores.classes[number].name) for number in shown]
    side = max(5.0, 0.36 * len(shown) + 3)  # three inches for names and titles
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    title = f"mean IoU {scores.miou:.2%}, {scores.pixel_accuracy:.2%} of the pixels right"
    if len(shown) < len(counts):
        title += f"; {len(shown)} of {len(counts)} classes"
    axes.set(xlabel="predicted class", ylabel="class of the pixels", title=title)
    draw_shares(figure, axes, shares, (names, names)).set_label("share of the class's pixels (%)")
    return to_png(figure, dpi=110, box=None)


def _painted(image: Tensor, labels: Tensor | None) -> np.ndarray:
    """An image (channels, H, W) as (H, W, 3), under the colours of its labels where it has any."""
    pixels: np.ndarray = image.expand(3, -1, -1).permute(1, 2, 0).numpy()
    if labels is None:
        return pixels
    rows, columns = (
        np.arange(new) * old // new for new, old in zip(labels.shape, pixels.shape[:2], strict=True)
    )
    pixels, numbers = pixels[rows][:, columns].copy(), labels.numpy()
    for number in np.unique(numbers[numbers >= 0]).tolist():
        paint(pixels, numbers == number, number)
    return pixels


def _count_classes(examples: Sequence[Example], classes: int) -> np.ndarray:
    """The pixels of each class in annotations and predictions."""
    shown = [e.labels.flatten().numpy() for e in examples]
    shown += [e.predicted.flatten().numpy() for e in examples]
    numbers = np.concatenate(shown)
    return np.bincount(numbers[numbers >= 0], minlength=classes)
