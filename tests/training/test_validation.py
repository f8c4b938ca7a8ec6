"""How a student is measured while it trains."""

from dataclasses import replace

import pytest
import torch
from helpers.tiny import tiny
from torch import Tensor, nn

from scalekd.data.source import IGNORED
from scalekd.training.validation import Validation, top1, validation_batch_size

LABELS = torch.tensor([0, 1, 2, 0])


def scores(images: Tensor) -> Tensor:
    """Right on the first three of four images."""
    return nn.functional.one_hot(torch.tensor([0, 1, 2, 1]), 3).float()


def test_top1_is_the_share_of_the_labelled_images_that_are_right() -> None:
    images = torch.zeros(4, 1)
    assert top1(scores, [(images, LABELS)], 3) == pytest.approx(3 / 4)
    unread = torch.tensor([0, 1, 2, IGNORED])
    assert top1(scores, [(images, unread)], 3) == 1.0


@pytest.mark.parametrize(
    ("precision", "dtype"), [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)]
)
def test_a_student_is_validated_in_the_recipes_precision(
    precision: str, dtype: torch.dtype
) -> None:
    student = nn.Linear(4, 3)
    dtypes: list[torch.dtype] = []
    student.register_forward_hook(lambda module, given, output: dtypes.append(output.dtype))
    validation = Validation(
        [(torch.randn(4, 4), LABELS)],
        classes=3,
        every_steps=5,
        precision=precision,  # type: ignore[arg-type]
    )
    assert validation.measure(5, student, student)
    assert dtypes == [dtype]
    assert student.training


def test_only_a_higher_accuracy_than_ever_before_is_better() -> None:
    student = nn.Linear(4, 3)
    batches = [(torch.randn(4, 4), LABELS)]
    validation = Validation(batches, classes=3, every_steps=5, precision="32-true")
    assert validation.measure(5, student, student)
    assert not validation.measure(10, student, student)
    assert (validation.step, validation.highest) == (10, validation.top1)
    resumed = Validation(
        batches, classes=3, every_steps=5, precision="32-true", state=validation.state_dict()
    )
    assert not resumed.measure(15, student, student)


def test_nothing_is_measured_without_labels() -> None:
    validation = Validation(None, classes=None, every_steps=5, precision="32-true")
    assert not validation.measure(5, nn.Linear(4, 3), nn.Linear(4, 3))
    assert validation.top1 is None


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "expected"), [(32, 1, 128), (32, 4, 32), (1024, 1, 250)]
)
def test_validation_takes_four_times_the_micro_batch_and_at_most_250_images(
    batch_size: int, accumulate: int, expected: int
) -> None:
    recipe = replace(tiny("nowhere"), batch_size=batch_size, accumulate=accumulate)
    assert validation_batch_size(recipe) == expected
