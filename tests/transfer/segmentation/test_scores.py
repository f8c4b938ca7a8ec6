"""The scores of a segmentation are those of a literal count."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scalekd.data.source import IGNORED
from scalekd.networks import InputConfig
from scalekd.transfer.segmentation.inference import Inference
from scalekd.transfer.segmentation.scores import scores_of
from scalekd.transfer.segmentation.validation import SegmentationValidation

NAMES = ("a", "b", "c", "d")
PLAIN = InputConfig(3, (8, 8), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


class Painted(nn.Module):
    """Predicts the class that is painted into the red channel."""

    def forward(self, images: Tensor) -> Tensor:
        classes = (images[:, 0] * 255).round().long().clamp(max=3)
        return nn.functional.one_hot(classes, 4).permute(0, 3, 1, 2).float()


def painted_batches() -> list[tuple[Tensor, Tensor]]:
    """Images of several sizes, whose labels the red channel mostly has; some pixels are ignored."""
    numbers = torch.Generator().manual_seed(0)
    batches = []
    for height, width in ((5, 9), (8, 8), (3, 4), (16, 7)):
        labels = torch.randint(0, 3, (1, height, width), generator=numbers)
        wrong = torch.randint(0, 3, labels.shape, generator=numbers)
        predicted = torch.where(torch.rand(labels.shape, generator=numbers) < 0.7, labels, wrong)
        images = predicted[:, None].repeat(1, 3, 1, 1).to(torch.uint8)
        labels[torch.rand(labels.shape, generator=numbers) < 0.1] = IGNORED
        batches.append((images, labels.to(torch.int16)))
    return batches


def counted(batches: list[tuple[Tensor, Tensor]]) -> dict[str, list[int]]:
    """For each class, pixels that are right, of the class, and predicted to be of it."""
    counts = {name: [0, 0, 0] for name in NAMES}
    for images, labels in batches:
        for predicted, label in zip(images[0, 0].flatten(), labels.flatten(), strict=True):
            if label == IGNORED:
                continue
            counts[NAMES[label]][0] += int(predicted == label)
            counts[NAMES[label]][1] += 1
            counts[NAMES[predicted]][2] += 1
    return counts


def painted_validation(state: dict[str, Any] | None = None) -> SegmentationValidation:
    return SegmentationValidation(
        painted_batches(),
        class_names=NAMES,
        inference=Inference(),
        input=PLAIN,
        every_steps=5,
        precision="32-true",
        state=state,
    )


@pytest.fixture
def validation() -> SegmentationValidation:
    return painted_validation()


def test_miou_equals_a_literal_count(validation: SegmentationValidation) -> None:
    assert validation.measure(5, Painted(), Painted())
    counts = counted(painted_batches())
    known = {name: c for name, c in counts.items() if c[1] + c[2]}
    assert set(known) == {"a", "b", "c"}
    ious = {name: right / (own + found - right) for name, (right, own, found) in known.items()}
    scores = validation.scores
    assert scores.miou == pytest.approx(sum(ious.values()) / 3, abs=1e-12)
    assert {c.name: c.iou for c in scores.classes if c.iou is not None} == pytest.approx(ious)
    assert scores.classes[3].iou is None
    right, pixels = (sum(c[place] for c in counts.values()) for place in (0, 1))
    assert scores.pixel_accuracy == pytest.approx(right / pixels, abs=1e-12)
    assert [c.pixels for c in scores.classes] == [c[1] for c in counts.values()]


def test_miou_is_not_a_mean_over_images() -> None:
    one, other = torch.tensor([[9, 1], [0, 0]]), torch.tensor([[0, 0], [1, 1]])
    whole = scores_of(one + other, ("a", "b")).miou
    assert whole == pytest.approx((9 / 11 + 1 / 3) / 2)
    by_image = (scores_of(one, ("a", "b")).miou + scores_of(other, ("a", "b")).miou) / 2
    assert whole != pytest.approx(by_image)


def test_a_validation_resumes_with_its_scores(validation: SegmentationValidation) -> None:
    validation.measure(5, Painted(), Painted())
    resumed = painted_validation(validation.state_dict())
    assert resumed.scores == validation.scores
    assert resumed.score == resumed.highest == validation.scores.miou
    assert not resumed.measure(10, Painted(), Painted())
    assert validation.reported()["scores"]["miou"] == validation.scores.miou


class Averaging(nn.Module):
    """Logits that depend on the window: the mean of the image that it is shown."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3), keepdim=True).expand(-1, -1, *images.shape[2:])


def test_sliding_windows_are_averaged() -> None:
    images = torch.arange(5.0).expand(1, 1, 4, 5).contiguous()
    sliding = Inference(window=(4, 4), stride=(1, 1))
    logits = sliding.logits(Averaging(), images, (4, 5))
    first, second = images[..., :4].mean(), images[..., 1:].mean()
    between = (first + second) / 2
    expected = torch.stack([first, between, between, between, second]).expand(1, 1, 4, 5)
    assert torch.allclose(logits, expected)


def test_sliding_takes_images_that_are_smaller_than_a_window() -> None:
    images = torch.zeros(1, 3, 5, 20, dtype=torch.uint8)
    logits = Inference(window=(8, 8), stride=(5, 5)).logits(Painted(), images / 255, (10, 40))
    assert logits.shape == (1, 4, 10, 40)


def test_sliding_equals_whole_where_each_pixel_is_by_itself() -> None:
    images, _ = painted_batches()[3]
    sliding = Inference(window=(5, 5), stride=(3, 3)).logits(Painted(), images / 255, (16, 7))
    assert torch.equal(sliding, Painted()(images / 255))
