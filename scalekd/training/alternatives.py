"""Is a classifier set up as it was trained? Its accuracy as it is, and under usual alternatives.

A classifier whose classes are in another order, or whose images were normalised by other
statistics, runs without an error and is wrong. Where there are labels, its accuracy shows it.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor
from torch.utils.data import Dataset

from scalekd.data.source import IGNORED
from scalekd.device import best_device, usable_cores
from scalekd.networks import InputConfig
from scalekd.networks.input_config import normalize, normalize_bytes
from scalekd.training.teacher_classes import natural_order

IMAGES = 200
"""Images that a classifier is tried on; half as many more are of the classes whose place differs
between two orders."""

GOOD = 0.95
"""A classifier with this accuracy (a share) is not tried with other images."""

IMAGES_PER_CLASS = 4
"""So many images of each class, on average, show which of the logits is whose."""

FAR_BETTER, STANDARD_ERRORS = 0.05, 3.0
"""An alternative is far better if it is right on so much larger a share of the images, on so many
standard errors more of them than chance explains, and good or better for most classes."""

USUAL_STATISTICS: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...] = (
    ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ((0.5,) * 3, (0.5,) * 3),
    ((0.0,) * 3, (1.0,) * 3),
)
"""Means and standard deviations: timm's two usual ones, and those of images left as they are."""

Options = tuple[str, ...]
"""Options of the command line, with their values."""


@dataclass(frozen=True)
class Setup:
    """A way to set up a classifier.

    Attributes:
        options: of the command line, which set it.
        keep: options that keep the classifier as it is.
        correct: whether it is then right on each image (N,).
    """

    options: Options
    keep: Options
    correct: Tensor

    @property
    def accuracy(self) -> float:
        """The share of the images on which the classifier is right."""
        return self.correct.float().mean().item()

    def is_far_better_than(self, other: "Setup", targets: Tensor) -> bool:
        """Whether neither chance, by McNemar's test on the same images, nor a single class that an
        otherwise useless classifier always names explains the gain."""
        gained, lost = self.correct & ~other.correct, other.correct & ~self.correct
        net_gains = torch.bincount(targets, weights=(gained.float() - lost.float()))
        classes_gained, classes_lost = int((net_gains > 0).sum()), int((net_gains < 0).sum())
        return (
            self.accuracy - other.accuracy >= FAR_BETTER
            and _standard_errors(int(gained.sum()), int(lost.sum())) >= STANDARD_ERRORS
            and (self.accuracy >= 0.9 or _standard_errors(classes_gained, classes_lost) >= 2)
        )


def _standard_errors(gained: int, lost: int) -> float:
    """How far a gain is from the 0 that chance gives, in standard errors."""
    return float((gained - lost) / max(1, gained + lost) ** 0.5)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A classifier on some labelled images, and what of its setup nobody has decided.

    Args:
        classify: normalised images (N, channels, H, W) on `best_device()` -> logits (N, classes).
        pixels: images (N, channels, H, W) with values from 0 to 1.
        targets: their classes (N,).
        input: mean and standard deviation that the classifier's images are normalised by.
        class_names: names of the classes by label.
        order_option: option that sets the order of its classes; None where the order is decided.
        statistics_option: beginning of the two options that set mean and standard deviation; None
            where these are decided.
        batch_size: images that are classified at a time.
    """

    classify: Callable[[Tensor], Tensor]
    pixels: Tensor
    targets: Tensor
    input: InputConfig
    class_names: tuple[str, ...]
    order_option: str | None
    statistics_option: str | None
    batch_size: int

    def setups(self) -> Iterator[Setup]:
        """The classifier as it is, first, and every alternative that is left open."""
        orders = other_orders(self.class_names) if self.order_option else {}
        predicted = self._predict(self.input)
        own = list(self._in_each_order(orders, predicted))
        yield from own
        if max(setup.accuracy for setup in own) >= GOOD:
            return
        if self.order_option:
            yield from self._in_an_unusual_order(predicted)
        if self.statistics_option:
            for other in _usual_inputs(self.input):
                options, keep = self._statistics(other), self._statistics(self.input)
                yield from self._in_each_order(orders, self._predict(other), options, keep)

    def _in_each_order(
        self,
        orders: dict[str, Tensor],
        predicted: Tensor,
        options: Options = (),
        keep: Options = (),
    ) -> Iterator[Setup]:
        yield Setup(options, keep, predicted == self.targets)
        for order, places in orders.items():
            correct = places[predicted] == self.targets
            in_order = f"{self.order_option} {order}", *options
            yield Setup(in_order, (f"{self.order_option} data", *keep), correct)

    def _in_an_unusual_order(self, predicted: Tensor) -> Iterator[Setup]:
        """The order of the classes that the images themselves show, if there is one.

        It is taken from every second image, so that the others can tell whether it is right.
        """
        classes = len(self.class_names)
        if len(self.targets) < IMAGES_PER_CLASS * classes:
            return
        confusion = torch.zeros(classes, classes)
        seen = predicted[::2], self.targets[::2]
        confusion.index_put_(seen, torch.tensor(1.0), accumulate=True)
        places = confusion.argmax(1)  # each logit stands for the class that it is largest for
        if len(set(places.tolist())) < classes:
            return
        correct = places[predicted] == self.targets
        correct[::2] = predicted[::2] == self.targets[::2]
        names = ", ".join(self.class_names[label] for label in places[:3].tolist())
        option = (
            f"{self.order_option} FILE, a text file with a class on each line in the order "
            f"{names} …"
        )
        yield Setup((option,), (f"{self.order_option} data",), correct)

    @torch.no_grad()
    def _predict(self, config: InputConfig) -> Tensor:
        """Number of the largest logit (N,) for each image, normalised as `config` says."""
        predicted = []
        for start in range(0, len(self.pixels), self.batch_size):
            batch = normalize(self.pixels[start : start + self.batch_size], config)
            predicted.append(self.classify(batch.to(best_device())).float().argmax(1).cpu())
        return torch.cat(predicted)

    def _statistics(self, config: InputConfig) -> Options:
        return tuple(
            f"{self.statistics_option}{name} '[{','.join(f'{value:g}' for value in values)}]'"
            for name, values in (("mean", config.mean), ("std", config.std))
        )


def find_better(setups: Iterator[Setup], targets: Tensor) -> tuple[Setup, Setup | None]:
    """The first of these setups, and the best one that is far better than it, if there is one."""
    own, *alternatives = setups
    better = [setup for setup in alternatives if setup.is_far_better_than(own, targets)]
    return own, max(better, key=lambda setup: setup.accuracy, default=None)


def other_orders(class_names: Sequence[str]) -> dict[str, Tensor]:
    """Usual orders that differ from the data's: the label of each logit (classes,), by name."""
    names = list(class_names)
    label = {name: number for number, name in enumerate(names)}
    orders = {"natural": natural_order(names), "sorted": sorted(names)}
    return {
        order: torch.tensor([label[name] for name in in_order])
        for order, in_order in orders.items()
        if in_order != names
    }


def load_pixels(
    images: Dataset[Any],
    input: InputConfig,
    targets: Tensor | None,
    class_names: Sequence[str],
) -> tuple[Tensor, Tensor]:
    """Some of `images`, which are drawn with a fixed seed.

    Args:
        images: items are (image, class); those of the class `IGNORED` are skipped.
        input: how images of bytes are normalised.
        targets: classes of all images (N,) where they are known beforehand. Then there are more of
            the classes that have another place in another order.
        class_names: names of the classes by label.

    Returns:
        The normalised images (M, channels, H, W), and their classes (M,).
    """
    generator = Generator().manual_seed(0)
    count = len(images)  # type: ignore[arg-type]
    chosen = set(torch.randperm(count, generator=generator)[:IMAGES].tolist())
    for places in other_orders(class_names).values() if targets is not None else ():
        moves = (places != torch.arange(len(places)))[targets].nonzero()[:, 0]
        some = torch.randperm(len(moves), generator=generator)[: IMAGES // 2]
        chosen.update(moves[some].tolist())
    with ThreadPoolExecutor(usable_cores()) as pool:
        loaded = list(pool.map(images.__getitem__, sorted(chosen)))
    items = [(image, int(label)) for image, label in loaded if int(label) != IGNORED]
    if not items:
        return torch.empty(0), torch.empty(0)
    pixels, labels = zip(*items, strict=True)
    return normalize_bytes(torch.stack(pixels), input), torch.tensor(labels)


def without_normalisation(config: InputConfig) -> InputConfig:
    """The same images with values from 0 to 1."""
    return replace(config, mean=(0.0,) * config.channels, std=(1.0,) * config.channels)


def _usual_inputs(own: InputConfig) -> Iterator[InputConfig]:
    """Usual means and standard deviations, other than its own; of other than three channels their
    averages."""
    for mean, std in USUAL_STATISTICS:
        if own.channels != 3:
            mean, std = (sum(mean) / 3,) * own.channels, (sum(std) / 3,) * own.channels
        if (mean, std) != (own.mean, own.std):
            yield replace(own, mean=mean, std=std)
