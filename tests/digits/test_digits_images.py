"""The cluttered digits: split by original, rendered the same for the same seed."""

import math

import pytest
import torch
from torch import Generator, Tensor

from scalekd.digits.images import (
    CLASSES,
    MEAN,
    SIZE,
    STD,
    Originals,
    Renderings,
    build_test_set,
    load_originals,
    render,
)

build_test_set.__test__ = False  # type: ignore[attr-defined]  # its name only looks like a test's


def generator(seed: int) -> Generator:
    return Generator().manual_seed(seed)


def some(count: int) -> Originals:
    train = load_originals("train")
    return train.subset(torch.arange(0, len(train), len(train) // count)[:count])


@pytest.mark.parametrize(("split", "each"), [("train", 400), ("test", 100)])
def test_each_split_has_equally_many_originals_of_each_digit(split: str, each: int) -> None:
    digits = load_originals(split)
    assert len(digits) == each * CLASSES
    assert torch.bincount(digits.labels, minlength=CLASSES).tolist() == [each] * CLASSES
    assert digits.images.shape == (each * CLASSES, 28, 28)
    assert digits.images.min() == 0
    assert digits.images.max() == 1


def test_no_original_is_in_both_splits() -> None:
    def prints(digits: Originals) -> set[bytes]:
        return {image.numpy().tobytes() for image in digits.images}

    train, test = prints(load_originals("train")), prints(load_originals("test"))
    assert len(train) == 4000
    assert len(test) == 1000
    assert not train & test


def test_the_same_seed_renders_the_same_images_and_another_seed_others() -> None:
    digits = some(32)
    first, again, other = (render(digits, digits, generator(seed)) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    different = (first - other).flatten(1).abs().amax(1)
    assert bool((different > 0.5).all())


def test_images_are_32_pixels_square_and_about_normalised() -> None:
    images = render(some(500), load_originals("train"), generator(1))
    assert images.shape == (500, 1, SIZE, SIZE)
    assert images.dtype == torch.float32
    assert bool(images.isfinite().all())
    assert abs(images.mean().item()) < 0.1
    assert abs(images.std().item() - 1) < 0.1


def ink(images: Tensor) -> float:
    return (images * STD + MEAN).mean().item()


def test_clutter_adds_ink() -> None:
    digits = some(200)
    bare, some_clutter, full = (
        ink(render(digits, load_originals("train"), generator(2), pieces)) for pieces in (0, 1, 4)
    )
    assert bare < some_clutter < full


def test_a_digit_without_clutter_lies_completely_on_its_canvas() -> None:
    digits = some(300)
    images = render(digits, digits, generator(3), pieces=0)[:, 0] * STD + MEAN
    # Scaled by 0.65 or more and rotated, a digit retains about scale^2 of its ink wherever it lies.
    ink_share = images.sum((1, 2)) / digits.images.sum((1, 2))
    assert ink_share.mean().item() > 0.65**2
    assert math.isclose(
        ink_share.mean().item(), (0.65**2 + 0.65 + 1) / 3 * (32 / 32) ** 2, rel_tol=0.15
    )


def test_a_batch_of_renderings_is_the_same_in_every_dataset_of_a_seed() -> None:
    indices = [7, 3, 900, 11]
    first, again = (Renderings(some(10), 1000, seed=4).__getitems__(indices) for _ in range(2))
    for (image, label), (image_again, label_again) in zip(first, again, strict=True):
        assert torch.equal(image, image_again)
        assert label == label_again


def test_a_single_rendering_is_a_batch_of_one() -> None:
    renderings = Renderings(some(10), 1000, seed=4)
    image, label = renderings[123]
    again, _ = renderings.__getitems__([123])[0]
    assert torch.equal(image, again)
    assert torch.equal(renderings[123][0], image)
    assert image.shape == (1, SIZE, SIZE)
    assert label == renderings.digits.labels[123 % 10]


def test_renderings_of_one_original_and_of_another_seed_differ() -> None:
    digits = some(10)
    here, there = Renderings(digits, 1000, seed=1), Renderings(digits, 1000, seed=2)
    assert len(here) == 1000
    assert here[3][1] == here[13][1]
    assert not torch.equal(here[3][0], here[13][0])
    assert not torch.equal(here[3][0], there[3][0])


def test_the_test_set_is_four_renderings_of_each_test_original() -> None:
    images, labels = build_test_set().tensors
    assert images.shape == (4000, 1, SIZE, SIZE)
    assert labels.tolist() == load_originals("test").labels.tolist() * 4
    assert not torch.equal(images[0], images[1000])
