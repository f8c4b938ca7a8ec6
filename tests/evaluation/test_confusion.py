"""The picture of a confusion matrix: its numbers, and that it stays readable."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from scalekd.evaluation.by_class import Labels, class_results, confusions
from scalekd.evaluation.confusion import MAX_CLASSES, count_matrix, draw_confusion, most_confused
from scalekd.evaluation.results import ModelResult


def result(classes: int, targets: Tensor, predicted: Tensor) -> ModelResult:
    """The result of a model with these predictions; the names are not easy to print."""
    labels = Labels([f"class {number} of $x_1$ \u8a9e\n" for number in range(classes)])
    return ModelResult(
        model="a folder/" * 9,
        classes=classes,
        top1=float((targets == predicted).float().mean()),
        top5=None,
        calibration_error=0.0,
        images_per_second=1.0,
        per_class=class_results(predicted, targets, labels),
        confusions=confusions(predicted, targets, labels),
    )


def predictions(classes: int, images: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(classes, (images,), generator=generator)
    shift = torch.randint(-1, 2, (images,), generator=generator)
    return targets, (targets + shift) % classes


def test_the_matrix_counts_each_image_once() -> None:
    targets, predicted = predictions(9, 400)
    one = result(9, targets, predicted)
    matrix = count_matrix(one, [c.name for c in one.per_class])
    expected = np.zeros((9, 10))
    np.add.at(expected, (targets.numpy(), predicted.numpy()), 1)
    assert (matrix == expected).all()


def test_of_some_classes_the_last_column_has_all_others() -> None:
    targets, predicted = predictions(9, 400)
    one = result(9, targets, predicted)
    matrix = count_matrix(one, [c.name for c in one.per_class][:2])
    row = predicted[targets == 0]
    assert list(matrix[0]) == [(row == 0).sum(), (row == 1).sum(), (row > 1).sum()]


def test_the_most_frequent_pairs_are_drawn_by_name() -> None:
    targets = torch.arange(100).repeat(10)
    predicted = targets.clone()
    predicted[targets == 70] = 20  # ten images
    predicted[:40] = (targets[:40] + 1) % 100  # one image each
    one = result(100, targets, predicted)
    names = most_confused(one)
    numbers = [int(name.split()[1]) for name in names]
    assert len(names) == MAX_CLASSES
    assert {20, 70} <= set(numbers)
    assert numbers == sorted(numbers)
    matrix = count_matrix(one, names)
    assert matrix[numbers.index(70), numbers.index(20)] == 10


@pytest.mark.parametrize("classes", [2, 10, 31, 1200])
def test_pictures_of_any_number_of_classes_have_a_size_to_look_at(classes: int) -> None:
    targets, predicted = predictions(classes, 4 * classes)
    content = draw_confusion(result(classes, targets, predicted))
    with Image.open(io.BytesIO(content)) as picture:
        assert picture.format == "PNG"
        assert 400 < min(picture.size) <= max(picture.size) < 4000
        assert len(picture.convert("RGB").getcolors(2**24) or ()) > 20


def test_a_model_without_an_error_has_a_picture() -> None:
    targets = torch.arange(50)
    assert draw_confusion(result(50, targets, targets)).startswith(b"\x89PNG")
