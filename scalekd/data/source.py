"""A source: where a run's training and validation images come from."""

import hashlib
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, NoReturn

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.random_erasing import RandomErasing
from torch import Generator, Tensor
from torch.utils.data import Dataset
from torchvision.transforms import Compose
from torchvision.transforms.v2.functional import resize, to_pil_image

from scalekd.data.corrupt import CheckedSamples, Samples
from scalekd.data.sampler import EpochSampler
from scalekd.data.seeding import seed_all_on_cpu
from scalekd.device import usable_cores
from scalekd.errors import InputError
from scalekd.networks import InputConfig
from scalekd.notes import Note
from scalekd.recipe import Data

MAX_DECODED_BEFOREHAND = 5_000
"""Up to so many images are decoded once before training, to name corrupt ones early."""

MAX_WORKERS = 16
"""Each worker process holds two batches: more of them take more memory than they save time."""

IGNORED = -1
"""The class of a validation image that accuracy is not measured on."""

Transform = Callable[[Image.Image], Tensor]
"""Image to (channels, H, W)."""


@dataclass(frozen=True)
class Split:
    """What a split of a source holds.

    Args:
        name: of the split, as the source names it.
        images: how many images it has.
        classes: names of the classes in the order of their numbers; empty without labels.
    """

    name: str
    images: int
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """Where images come from.

    Args:
        classes: number of classes; None where the images have no labels.
        workers: how many worker processes are worth their cost.
        input: channels, size and normalisation of the images, where the source fixes them; None
            where the student decides.
        training_set: builds the training set for the student's input and a run's seed. It is
            indexed by the sample keys of `ResumableBatchSampler`; its items are (image, class), or
            (image,) without labels. An image of bytes is to be normalised on the device that uses
            it, by `normalize_bytes`; one of floats is normalised.
        validation_set: builds the validation set for the student's input; None without labels. Its
            items are (image, class), with images as those of `training_set`, and the class of an
            image that cannot be read is `IGNORED`.
        notes: one line for each decision that was taken here and not by the caller.
        epoch_sampler: draws the order of an epoch; None for a uniformly random one.
        corrupt_flags: gives a flag of each image, whether it was found to be corrupt since the
            source was built; see `corrupt_count`.
        identity: hash of the training images' names, classes and order.
        validation_identity: the same of the validation images, and of few also of their content.
        images_per_view: how many images one augmented view of a cache has; None for as many as the
            training set has.
        splits: what the training and the validation split hold, in this order.
        unaugmented_set: builds the set of all training images, made as validation images are, for
            an input; None where they cannot be had. Its items are as those of the validation set,
            or (image,) without labels.
        targets: classes of the images of `unaugmented_set` (N,) where they are known beforehand.
        collate: makes a batch of items; None for torch's way, which stacks tensors of one size.
    """

    classes: int | None
    workers: int
    input: InputConfig | None
    training_set: Callable[[InputConfig, int], Dataset[Any]]
    validation_set: Callable[[InputConfig], Dataset[Any]] | None
    notes: list[Note] = field(default_factory=list)
    epoch_sampler: EpochSampler | None = None
    corrupt_flags: Callable[[], Tensor] = lambda: torch.zeros(0, dtype=torch.bool)
    identity: str = ""
    validation_identity: str = ""
    images_per_view: int | None = None
    splits: tuple[Split, ...] = ()
    unaugmented_set: Callable[[InputConfig], Dataset[Any]] | None = None
    targets: Tensor | None = None
    collate: Callable[[list[Any]], Any] | None = None

    def corrupt_count(self) -> int:
        """How many images all processes of this rank found to be corrupt."""
        return int(self.corrupt_flags().sum())

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes by label; empty without labels."""
        return self.splits[0].classes if self.splits else ()

    @classmethod
    def without_images(
        cls, classes: int | None = None, input: InputConfig | None = None
    ) -> "Source":
        """A source that only says what its images would be; no image can be had from it."""

        def refuse(*_: Any) -> NoReturn:
            raise AssertionError("this source has no images")

        return cls(classes, 0, input, refuse, None)


@dataclass(frozen=True, kw_only=True)
class StoredSplit:
    """A split as it is stored.

    Args:
        name: of the split, as the source names it.
        samples: its samples.
        identifiers: strings that differ for other samples, wherever they are stored.
        classes: names of the classes in the order of the samples' classes; empty without labels.
        targets: classes of the samples (N,); None without labels.
    """

    name: str
    samples: Samples
    identifiers: Iterable[str] = ()
    classes: tuple[str, ...] = ()
    targets: Tensor | None = None

    def describe(self) -> Split:
        """What the split holds."""
        return Split(self.name, len(self.samples), self.classes)

    def classes_with_images(self) -> set[str]:
        """Names of the classes that a sample has."""
        assert self.targets is not None
        return {self.classes[number] for number in set(self.targets.tolist())}


def build_source(
    data: Data,
    training: StoredSplit,
    validation: StoredSplit | None = None,
    *,
    notes: Iterable[str] = (),
    epoch_sampler: EpochSampler | None = None,
) -> Source:
    """Build the source of these samples, augmented and normalised.

    Args:
        data: which of the samples are used, and how they are augmented.
        training: samples to train on.
        validation: samples to validate on, whose classes are brought into the order of the training
            classes; None without labels.
        notes: decisions that were taken and not asked for, one line each.
        epoch_sampler: draws the order of all training samples.

    Raises:
        InputError: there are fewer training samples than `data` asks for; the validation split has
            a class that the training split has not; a sample is corrupt, where there are at most
            `MAX_DECODED_BEFOREHAND` and `data` does not skip it.
    """
    check_counts(data, len(training.samples))
    splits = [training] if validation is None else [training, validation]
    notes = list(notes)
    numbers = list[int]()
    if validation is not None:
        numbers = number_classes(data.root, training, validation)
        notes += notes_on_classes(training, validation)
    checked = [CheckedSamples(split.samples, data.corrupt_images) for split in splits]
    few = sum(map(len, checked)) <= MAX_DECODED_BEFOREHAND
    if few:
        for samples in checked:
            samples.read_all()
    targets = torch.zeros(len(training.samples)) if training.targets is None else training.targets

    def training_set(config: InputConfig, seed: int) -> Dataset[Any]:
        subset: range | list[int] = range(len(training.samples))
        if data.train_images is not None:
            subset = balanced_subset(targets.tolist(), data.train_images, seed)
        return TrainingSet(checked[0], subset, build_training_transform(data, config), seed)

    def validation_set(config: InputConfig) -> Dataset[Any]:
        return Relabelled(ValidationSet(checked[1], config), numbers)

    return Source(
        classes=len(training.classes) or None,
        workers=min(MAX_WORKERS, usable_cores()),
        input=None,
        training_set=training_set,
        validation_set=None if validation is None else validation_set,
        notes=[Note("info", note) for note in notes],
        epoch_sampler=epoch_sampler if data.train_images is None else None,
        corrupt_flags=lambda: torch.cat([samples.corrupt for samples in checked]),
        identity=_identity(targets, training.identifiers),
        validation_identity="" if validation is None else _validation_identity(validation, few),
        splits=tuple(split.describe() for split in splits),
        unaugmented_set=lambda config: ValidationSet(checked[0], config),
        targets=training.targets,
    )


def build_validation_source(
    data: Data, validation: StoredSplit, notes: Iterable[str] = ()
) -> Source:
    """Build a source that has these validation samples alone, with their own numbers of classes."""
    samples = CheckedSamples(validation.samples, data.corrupt_images)
    return replace(
        Source.without_images(len(validation.classes)),
        validation_set=lambda config: ValidationSet(samples, config),
        notes=[Note("info", note) for note in notes],
        corrupt_flags=lambda: samples.corrupt,
        splits=(validation.describe(),),
    )


class TrainingSet(Dataset[Any]):
    """A subset of training samples, augmented; indexed by the keys of `ResumableBatchSampler`.

    A transform's random numbers depend on seed and sample key alone: all methods of a seed see the
    same crops, in whichever process they are made.

    Args:
        samples: all training samples.
        subset: indices of those that are used.
        transform: augments an image.
        seed: the run's seed.
    """

    def __init__(
        self, samples: CheckedSamples, subset: range | list[int], transform: Transform, seed: int
    ) -> None:
        self.samples, self.subset, self.transform, self.seed = samples, subset, transform, seed

    def __len__(self) -> int:
        return len(self.subset)

    def __getitem__(self, key: int) -> tuple[Any, ...]:
        sample = self.samples.read_next(self.subset, key % len(self))
        seed_all_on_cpu(self.seed, key)
        return (self.transform(sample[0]), *sample[1:])


class ValidationSet(Dataset[Any]):
    """All samples of a split, resized and cropped by timm's validation transform, as bytes.

    A corrupt image is replaced by zeros and its class by `IGNORED`.
    """

    def __init__(self, samples: CheckedSamples, config: InputConfig) -> None:
        self.samples, self.config = samples, config
        self.transform = build_validation_transform(config)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        sample = self.samples.read(index)
        if sample is None:
            shape = self.config.channels, *self.config.size
            return torch.zeros(shape, dtype=torch.uint8), IGNORED
        return (self.transform(sample[0]), *sample[1:])


def build_validation_transform(config: InputConfig) -> Transform:
    """Build timm's validation transform: it resizes and crops an RGB image, and gives bytes."""
    mean, std = _of_rgb(config)
    transform = create_transform(
        config.size,
        mean=mean,
        std=std,
        normalize=False,
        crop_pct=config.crop,
        crop_mode=config.crop_mode,
        interpolation=config.interpolation,
    )
    return _to_channels(transform, config)


class Relabelled(Dataset[Any]):
    """Labelled images whose classes get other numbers; the class `IGNORED` stays.

    Args:
        images: items are (image, class).
        numbers: the new number of each class.
    """

    def __init__(self, images: Dataset[Any], numbers: Sequence[int]) -> None:
        self.images, self.numbers = images, numbers

    def __len__(self) -> int:
        return len(self.images)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image, target = self.images[index]
        return image, target if target == IGNORED else self.numbers[target]


def without_labels(root: str) -> InputError:
    """The error of images to evaluate on that have no labels."""
    return InputError(
        f"data.root is {root!r}, which has no labels to evaluate with: give a folder with "
        "val/CLASS/*.jpg or test/CLASS/*.jpg, or one of class folders"
    )


def check_counts(data: Data, images: int) -> None:
    """Raise InputError where `data` asks for more than the `images` that there are to train on."""
    if data.train_images and data.train_images > images:
        raise InputError(
            f"data.train_images is {data.train_images} and there are {images} images to train on "
            f"in {data.root!r}"
        )
    check_epoch_images(data.epoch_images, data.train_images or images, data.root)


def check_epoch_images(epoch_images: int | None, images: int, root: str) -> None:
    """Raise InputError where an epoch is to have more than the `images` to train on in `root`."""
    if epoch_images and epoch_images > images:
        raise InputError(
            f"data.epoch_images is {epoch_images} and there are {images} images to train on in "
            f"{root!r}: an epoch has each image at most once; drop it or make it smaller"
        )


def normal_name(name: str) -> str:
    """The same text for the same letters, however a file system stores them: the composed form."""
    return unicodedata.normalize("NFC", name)


def normal_names(names: Sequence[str], title: str) -> tuple[str, ...]:
    """Names of classes in Unicode's composed form, which file systems do not agree on.

    Raises:
        InputError: two names of `title` differ only in their form.
    """
    normal = tuple(map(normal_name, names))
    numbers = dict[str, int]()
    for number, name in enumerate(normal):
        if (first := numbers.setdefault(name, number)) != number:
            raise InputError(
                f"{title} has one class under two Unicode forms of a name, {names[first]!a} "
                f"and {names[number]!a}: make them one"
            )
    return normal


def number_classes(root: str, training: StoredSplit, validation: StoredSplit) -> list[int]:
    """The number that each validation class has among the training classes.

    Raises:
        InputError: there is no training class of a validation class's name.
    """
    numbers = {name: number for number, name in enumerate(training.classes)}
    if not numbers.keys() >= set(validation.classes):
        odd = sorted(set(training.classes) ^ set(validation.classes))
        raise InputError(
            f"{root!r}: {training.name} and {validation.name} have different classes, only one "
            f"has: {', '.join(odd[:5])}"
        )
    return [numbers[name] for name in validation.classes]


def notes_on_classes(training: StoredSplit, validation: StoredSplit) -> list[str]:
    """A note on classes that only one of the splits has images of."""
    notes = []
    trained, measured = training.classes_with_images(), validation.classes_with_images()
    for split, missing in ((validation, trained - measured), (training, measured - trained)):
        if missing:
            notes.append(
                f"{split.name} has no image of {len(missing)} of the {len(training.classes)} "
                f"classes, for example {min(missing)}"
            )
    return notes


def _identity(targets: Tensor, identifiers: Iterable[str], contents: Iterable[bytes] = ()) -> str:
    digest = hashlib.blake2b(targets.long().numpy().tobytes(), digest_size=8)
    for identifier in identifiers:
        digest.update(identifier.encode(errors="surrogateescape") + b"\0")
    for content in contents:
        digest.update(hashlib.blake2b(content, digest_size=8).digest())
    return digest.hexdigest()


def _validation_identity(validation: StoredSplit, few: bool) -> str:
    assert validation.targets is not None
    samples = validation.samples
    contents = map(samples.content, range(len(samples) if few else 0))
    classes = iter(validation.classes)
    return _identity(validation.targets, chain(validation.identifiers, classes), contents)


def build_training_transform(data: Data, config: InputConfig) -> Transform:
    """timm's training transform: random resized crop, flip and `data`'s augmentation.

    It gives bytes, of which a worker process hands over a quarter of what floats would take. Erased
    rectangles have the mean's colour, which is rounded to bytes.

    Raises:
        InputError: timm cannot read the augmentation policy.
    """
    shape = config.size[1] / config.size[0]
    mean, std = _of_rgb(config)
    try:
        parts = create_transform(
            config.size,
            is_training=True,
            # Crops have about the shape of what they are resized to, as they have in validation.
            ratio=(3 / 4 * shape, 4 / 3 * shape),
            mean=mean,
            std=std,
            normalize=False,
            interpolation="bilinear",
            auto_augment=data.auto_augment,
            scale=None if data.crop_area is None else (data.crop_area, 1.0),
            color_jitter=data.color_jitter or None,
            separate=True,
        )
    except Exception as error:  # timm raises many kinds for a policy that it cannot read
        raise InputError(
            f"data.auto_augment is {data.auto_augment!r}, no policy that timm has; two are "
            "rand-m9-n2-mstd0.5 and 3a"
        ) from error
    transform = _to_channels(Augmentation(*parts), config)
    return Erasing(transform, data.erasing, config) if data.erasing else transform


class Augmentation:
    """timm's random transforms of an RGB image, with crops resized by torchvision's kernel.

    For bytes that kernel takes less than half of Pillow's time. The values are Pillow's but for
    rounding: a few in a hundred differ by 1 of 255.

    Args:
        geometry: timm's random crop, whose place and size are taken, and then what follows on it.
        colours: random changes of colours and shapes, which need a Pillow image; perhaps empty.
        to_bytes: makes an image of bytes (3, H, W) of a Pillow image.
    """

    def __init__(self, geometry: Compose, colours: Compose, to_bytes: Compose) -> None:
        self.crop, *others = geometry.transforms
        self.flips, self.colours, self.to_bytes = Compose(others), colours, to_bytes

    def __call__(self, image: Image.Image) -> Tensor:
        """Give an image of bytes (3, H, W)."""
        top, left, height, width = self.crop.get_params(image, self.crop.scale, self.crop.ratio)
        crop = image.crop((left, top, left + width, top + height))
        # Channels last in memory, as the kernel is fastest.
        pixels: Tensor = torch.from_numpy(np.array(crop)).permute(2, 0, 1)
        pixels = self.flips(resize(pixels, list(self.crop.size), self.crop.interpolation))
        if self.colours.transforms:
            pixels = self.to_bytes(self.colours(to_pil_image(pixels)))
        return pixels.contiguous()


class Erasing:
    """Erases a random rectangle of an image with timm's choice of place and size.

    Args:
        transform: gives an image of bytes (channels, H, W).
        probability: how often.
        config: its mean is the colour of the rectangle.
    """

    def __init__(self, transform: Transform, probability: float, config: InputConfig) -> None:
        self.transform = transform
        self.erase = RandomErasing(probability, device="cpu")
        colour = torch.tensor(config.mean).mul(255).round().clamp(0, 255)
        self.colour = colour.to(torch.uint8).view(-1, 1, 1)

    def __call__(self, image: Image.Image) -> Tensor:
        """Give an image of bytes (channels, H, W)."""
        pixels = self.transform(image)
        kept = self.erase(torch.ones(1, *pixels.shape[1:], dtype=torch.bool))
        return pixels if kept.all() else torch.where(kept, pixels, self.colour)


class GreyTransform:
    """Applies a transform of RGB images to an image that is made grey; one channel is left.

    Args:
        transform: gives an image (3, H, W).
    """

    def __init__(self, transform: Transform) -> None:
        self.transform = transform

    def __call__(self, image: Image.Image) -> Tensor:
        """Give one channel (1, H, W)."""
        return self.transform(image.convert("L").convert("RGB"))[:1]


def check_channels(config: InputConfig) -> None:
    """Raise InputError unless images of this number of channels can be made."""
    if config.channels not in (1, 3):
        raise InputError(
            f"the student takes images of {config.channels} channels, and image files are read as "
            "RGB (3) or grey (1): set in_chans in student_args to 3 or 1"
        )


def _of_rgb(config: InputConfig) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the RGB image that `config`'s image is made from."""
    check_channels(config)
    repeats = 3 // config.channels
    return config.mean * repeats, config.std * repeats


def _to_channels(transform: Transform, config: InputConfig) -> Transform:
    return transform if config.channels == 3 else GreyTransform(transform)


def balanced_subset(targets: list[int], count: int, seed: int) -> list[int]:
    """Draw a class-balanced random subset, another one for each seed.

    Args:
        targets: class of each sample.
        count: size of the subset.
        seed: decides which samples are drawn.

    Returns:
        Indices of `count` samples, whose numbers per class differ by at most one.
    """
    shuffled = torch.randperm(len(targets), generator=Generator().manual_seed(seed)).tolist()
    drawn_of_class: dict[int, int] = {}
    ranked = []
    for index in shuffled:
        rank = drawn_of_class[targets[index]] = drawn_of_class.get(targets[index], -1) + 1
        ranked.append((rank, targets[index], index))
    return [index for _, _, index in sorted(ranked)[:count]]
