"""Is the teacher set up as it was trained? Its accuracy as it is, and under usual alternatives.

A teacher whose classes are in another order, or whose images were normalised by other statistics,
runs without an error and teaches what is wrong. Where there are labels, its accuracy shows it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from scalekd.data.source import IGNORED
from scalekd.device import best_device
from scalekd.errors import InputError
from scalekd.networks import FrozenTeacher, InputConfig
from scalekd.networks.input_config import renormalization
from scalekd.notes import Note
from scalekd.training.performance import autocast
from scalekd.training.prepare import Prepared
from scalekd.training.teacher_classes import natural_order
from scalekd.training.validation import validation_batch_size

IMAGES = 200
"""Training images that a teacher is tried on; half as many more are of the classes whose place
differs between two orders."""

GOOD = 0.95
"""A teacher with this accuracy (a share) is not tried with other images."""

IMAGES_PER_CLASS = 4
"""So many images of each class, on average, show which of the teacher's logits is whose."""

FAR_BETTER, STANDARD_ERRORS = 0.05, 3.0
"""An alternative is far better if it is right on so much larger a share of the images, on so many
standard errors more of them than chance explains, and good or better for most classes."""

USUAL_STATISTICS = (
    ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ((0.5,) * 3, (0.5,) * 3),
    ((0.0,) * 3, (1.0,) * 3),
)
"""Means and standard deviations: timm's two usual ones, and those of images left as they are."""

Options = tuple[str, ...]
"""Options of the command line, with their values."""


@dataclass(frozen=True)
class Setup:
    """A way to set up a teacher.

    Attributes:
        options: of the command line, which set it.
        keep: options that keep the teacher as it is.
        correct: whether the teacher is then right on each image (N,).
    """

    options: Options
    keep: Options
    correct: Tensor

    @property
    def accuracy(self) -> float:
        """The share of the images on which the teacher is right."""
        return self.correct.float().mean().item()

    def is_far_better_than(self, other: "Setup", targets: Tensor) -> bool:
        """Whether neither chance, by McNemar's test on the same images, nor a single class that an
        otherwise useless teacher always names explains the gain."""
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


def check_teacher(prepared: Prepared) -> list[Note]:
    """Measure a teacher as it is set up, and under usual alternatives that the recipe leaves open.

    The alternatives are other orders of the classes, other means and standard deviations, and
    the image size that the tables in its weights' file fit. Without labels, or where the teacher
    has another number of classes than the images, nothing is measured.

    Args:
        prepared: the recipe with its images and teacher.

    Returns:
        A note with the accuracy, if it was measured.

    Raises:
        InputError: an alternative is far better; the message names its options.
    """
    source, teacher = prepared.source, prepared.frozen_teacher
    if teacher is None or source.unaugmented_set is None:
        return []
    if teacher.shapes.classes != source.classes:
        return []
    orders = _other_orders(prepared)
    pixels, targets = _load_images(prepared, teacher.input, orders.values())
    if not len(targets):
        return []
    own, *others = _setups(prepared, pixels, targets, orders)
    if better := [setup for setup in others if setup.is_far_better_than(own, targets)]:
        best = max(better, key=lambda setup: setup.accuracy)
        raise InputError(
            f"as it is set up, the teacher {prepared.recipe.teacher} is right on "
            f"{own.accuracy:.1%} of {len(targets)} training images, and with "
            f"{' '.join(best.options)} on {best.accuracy:.1%}: give that, or "
            f"{' '.join(best.keep)} to keep it as it is"
        )
    text = f"the teacher is right on {own.accuracy:.1%} of {len(targets)} training images"
    return [Note("info", text)]


def _other_orders(prepared: Prepared) -> dict[str, Tensor]:
    """Usual orders that the teacher's classes may be in, where the order is not known.

    Returns:
        The label of each of the teacher's logits (classes,) in such an order, by its option.
    """
    names = list(prepared.source.class_names)
    assert prepared.teacher is not None
    if prepared.teacher.class_order.is_known:
        return {}
    orders = {"natural": natural_order(names), "sorted": sorted(names)}
    return {
        f"--teacher_classes {order}": torch.tensor([names.index(name) for name in sorted_names])
        for order, sorted_names in orders.items()
        if sorted_names != names
    }


def _load_images(
    prepared: Prepared, config: InputConfig, orders: Iterable[Tensor]
) -> tuple[Tensor, Tensor]:
    """Pixels (N, channels, H, W) from 0 to 1, and labels (N,), of some training images."""
    source, generator = prepared.source, Generator().manual_seed(0)
    assert source.unaugmented_set is not None
    plain = (0.0,) * config.channels, (1.0,) * config.channels
    raw = replace(prepared.input, channels=config.channels, mean=plain[0], std=plain[1])
    images = source.unaugmented_set(raw)
    count = len(images)  # type: ignore[arg-type]
    chosen = set(torch.randperm(count, generator=generator)[:IMAGES].tolist())
    for places in orders if source.targets is not None else ():
        moves = (places != torch.arange(len(places)))[source.targets].nonzero()[:, 0]
        some = torch.randperm(len(moves), generator=generator)[: IMAGES // 2]
        chosen.update(moves[some].tolist())
    items = [images[index] for index in sorted(chosen)]
    items = [(image, int(label)) for image, label in items if int(label) != IGNORED]
    if not items:
        return torch.empty(0), torch.empty(0)
    pixels = torch.stack([image for image, _ in items])
    if source.input is not None:  # images that come normalised, whatever they are asked for
        scale, shift = renormalization(source.input, raw)
        pixels = pixels * scale + shift
    return pixels, torch.tensor([label for _, label in items])


def _setups(
    prepared: Prepared, pixels: Tensor, targets: Tensor, orders: dict[str, Tensor]
) -> Iterator[Setup]:
    """The teacher as it is, first, and every alternative that the recipe leaves open."""
    recipe, teacher = prepared.recipe, prepared.frozen_teacher
    assert teacher is not None
    assert prepared.teacher is not None

    def in_each_order(predicted: Tensor, options: Options, keep: Options) -> Iterator[Setup]:
        yield Setup(options, keep, predicted == targets)
        for option, places in orders.items():
            keep_order = "--teacher_classes data", *keep
            yield Setup((option, *options), keep_order, places[predicted] == targets)

    own = teacher.input
    predicted = _predict(prepared, teacher, pixels, own)
    in_own_size = list(in_each_order(predicted, (), ()))
    yield from in_own_size
    if max(setup.accuracy for setup in in_own_size) >= GOOD:
        return
    if not prepared.teacher.class_order.is_known and recipe.teacher_weights != "random":
        yield from _in_an_unusual_order(predicted, targets, prepared.source.class_names)
    if recipe.teacher_mean is None and recipe.teacher_std is None:
        for mean, std in _usual_statistics(own.channels):
            if (mean, std) != (own.mean, own.std):
                other = replace(own, mean=mean, std=std)
                predicted = _predict(prepared, teacher, pixels, other)
                yield from in_each_order(predicted, _statistics(other), _statistics(own))


def _in_an_unusual_order(
    predicted: Tensor, targets: Tensor, class_names: Sequence[str]
) -> Iterator[Setup]:
    """The order of the classes that the images themselves show, if there is one.

    It is taken from every second image, so that the others can tell whether it is right.
    """
    classes = len(class_names)
    if len(targets) < IMAGES_PER_CLASS * classes:
        return
    confusion = torch.zeros(classes, classes)
    confusion.index_put_((predicted[::2], targets[::2]), torch.tensor(1.0), accumulate=True)
    places = confusion.argmax(1)  # each logit stands for the class that it is largest for
    if len(set(places.tolist())) < classes:
        return
    correct = places[predicted] == targets
    correct[::2] = predicted[::2] == targets[::2]
    names = ", ".join(class_names[label] for label in places[:3].tolist())
    option = f"--teacher_classes FILE, a text file with a class on each line in the order {names} …"
    yield Setup((option,), ("--teacher_classes data",), correct)


@torch.no_grad()
def _predict(
    prepared: Prepared, teacher: FrozenTeacher, pixels: Tensor, config: InputConfig
) -> Tensor:
    """Number of the largest logit (N,) for each image, normalised as `config` says."""
    device, precision = best_device(), prepared.recipe.precision
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (config.mean, config.std))
    predicted, size = [], validation_batch_size(prepared.recipe)
    for start in range(0, len(pixels), size):
        batch = (pixels[start : start + size] - mean) / std
        with autocast(precision, device):
            logits = teacher(batch.to(device)).logits
        assert logits is not None
        predicted.append(logits.float().argmax(1).cpu())
    return torch.cat(predicted)


def _usual_statistics(channels: int) -> Iterator[tuple[tuple[float, ...], tuple[float, ...]]]:
    """Usual means and standard deviations; of other than three channels their averages."""
    for mean, std in USUAL_STATISTICS:
        if channels == 3:
            yield mean, std
        else:
            yield (sum(mean) / 3,) * channels, (sum(std) / 3,) * channels


def _statistics(config: InputConfig) -> Options:
    return tuple(
        f"--teacher_{name} '[{','.join(f'{value:g}' for value in values)}]'"
        for name, values in (("mean", config.mean), ("std", config.std))
    )
