"""The packaged digits as a source of a run."""

import pytest
import torch
from helpers.refusals import refused

from scalekd.data.loader import build_loaders
from scalekd.data.open import open_source
from scalekd.networks import InputConfig
from scalekd.recipe import Data

GREY = InputConfig(1, (32, 32), (0.14,), (0.35,))


def test_originals_of_the_digits_are_balanced_and_others_for_each_seed() -> None:
    data = Data("digits", train_images=30)

    def labels_and_first(seed: int) -> tuple[list[int], torch.Tensor]:
        digits = open_source(data).training_set(GREY, seed).digits  # type: ignore[attr-defined]
        return sorted(digits.labels.tolist()), digits.images

    labels, images = labels_and_first(1)
    assert labels == [d for d in range(10) for _ in range(3)]
    assert torch.equal(images, labels_and_first(1)[1])
    assert not torch.equal(images, labels_and_first(2)[1])


@pytest.mark.parametrize("count", [9, 4001])
def test_fewer_than_10_or_more_than_4000_originals_of_the_digits_are_refused(count: int) -> None:
    with refused("data.train_images", str(count), "4000"):
        open_source(Data("digits", train_images=count))


def test_another_size_of_the_digits_is_refused() -> None:
    with refused("data.image_size", "64", "32x32"):
        open_source(Data("digits", image_size=64))


def test_digits_of_a_seed_are_the_same_whatever_else_was_drawn() -> None:
    data = Data("digits", train_images=100, epoch_images=64)
    batches = []
    for noise in (0, 1):
        torch.manual_seed(noise)
        opened = open_source(data)
        assert opened.input is not None
        train, _ = build_loaders(opened, data, opened.input, batch_size=32, seed=1)
        batches.append(list(train))
    assert len(batches[0]) == 2
    for (images, labels), (images_again, labels_again) in zip(*batches, strict=True):
        assert torch.equal(images, images_again)
        assert torch.equal(labels, labels_again)
