"""A run's training images in the augmented views of a cache, with the teacher's cached outputs."""

import dataclasses
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from scalekd.cache.store import FINGERPRINT_TOLERANCE, Cache, fingerprint_places
from scalekd.data.source import Source
from scalekd.errors import InputError
from scalekd.networks import CachedOutputs, FrozenTeacher, InputConfig
from scalekd.networks.input_config import normalize_bytes, renormalization
from scalekd.recipe import Recipe

AUGMENTATION_LIBRARIES = ("torch", "torchvision", "timm", "pillow", "numpy")


def cache_identity(
    recipe: Recipe, source: Source, teacher: FrozenTeacher, size: tuple[int, int]
) -> dict[str, Any]:
    """Everything that decides a value in a cache and may differ between two runs, by name.

    Args:
        recipe: names the teacher and the data.
        source: the recipe's images.
        teacher: the recipe's teacher.
        size: (height, width) of the student's images.
    """
    data = recipe.data
    selection = teacher.extractor.selection
    features = dataclasses.asdict(selection) if selection else None
    return {
        "teacher": recipe.teacher,
        "teacher's arguments": recipe.as_dict()["teacher_args"],
        "teacher's size": list(teacher.input.size),
        "teacher's mean": list(teacher.input.mean),
        "teacher's std": list(teacher.input.std),
        "teacher's features": features,
        "teacher_prefix": teacher.prefix,
        "teacher's weights": teacher.fingerprint,
        "set of images": source.identity or data.root,
        "size of the images": list(size),
        "data.train_images": data.train_images,
        "data.auto_augment": data.auto_augment,
        "data.color_jitter": data.color_jitter,
        "data.erasing": data.erasing,
        "data.crop_area": data.crop_area,  # older caches have none, which is the default
        "data.corrupt_images": data.corrupt_images,
    }


def library_versions() -> dict[str, str]:
    """Installed versions of the libraries that make augmented views out of files, by name."""
    return {name: version(name) for name in AUGMENTATION_LIBRARIES}


def open_cache(
    recipe: Recipe, source: Source, teacher: FrozenTeacher | None, config: InputConfig
) -> Cache | None:
    """Open the recipe's cache; None where the recipe names none.

    Args:
        recipe: the run's recipe.
        source: the recipe's images.
        teacher: the teacher with its trunk; None for the supervised baseline, which is trained on
            the cache's augmented views all the same.
        config: channels, size and normalisation of the student's images.

    Raises:
        InputError: the cache was made from something else, is not complete, or cannot replace the
            teacher under this recipe.
    """
    if recipe.cache is None:
        return None
    cache = Cache.open_complete(Path(recipe.cache))
    if teacher is None:
        return cache
    cached = cache.manifest.identity
    for name, value in cache_identity(recipe, source, teacher, config.size).items():
        if cached.get(name) != value:
            raise InputError(
                f"the cache {recipe.cache!r} was made with another {name} ({cached.get(name)}; now "
                f"{value}): give what it was made with, or make another with `scalekd cache`"
            )
    made_for = cache.manifest.input
    if recipe.data.erasing and (made_for.mean, made_for.std) != (config.mean, config.std):
        raise InputError(
            f"data.erasing is {recipe.data.erasing}, whose rectangles have the colour of the mean: "
            f"the cache {recipe.cache!r} was made for images of mean {made_for.mean}, and the "
            f"student's have {config.mean}; make one with this --student named, or set it to 0"
        )
    return cache


class AugmentedViews(Dataset[Any]):
    """A training set in the augmented views of a cache: a sample key stands for a row of the cache.

    Args:
        images: the training set.
        rows: how many rows the cache has; later sample keys start again at its first row.
    """

    def __init__(self, images: Dataset[Any], rows: int) -> None:
        self.images, self.rows = images, rows

    def __len__(self) -> int:
        return len(self.images)  # type: ignore[arg-type]

    def __getitem__(self, key: int) -> tuple[Any, ...]:
        item: tuple[Any, ...] = self.images[key % self.rows]
        return item


class FingerprintPixels:
    """The pixel fingerprint of the teacher's image, from the student's: a few pixels are normalised
    as the teacher's are, and not the whole image.

    Args:
        config: channels, size and normalisation of the student's images.
        made_for: those of the cache.
    """

    def __init__(self, config: InputConfig, made_for: InputConfig) -> None:
        pixels = config.size[0] * config.size[1]
        self.places = fingerprint_places(config.channels * pixels)
        channels = (self.places // pixels).tolist()
        mean, std = (tuple(v[c] for c in channels) for v in (config.mean, config.std))
        self.config = replace(config, channels=len(channels), mean=mean, std=std)
        scale, shift = renormalization(config, made_for)
        self.scale, self.shift = scale.flatten()[channels], shift.flatten()[channels]

    def __call__(self, image: Tensor) -> Tensor:
        """The fingerprint (8,) of an image (C, H, W) of bytes, or normalised for the student."""
        picked = image.flatten()[self.places].view(-1, 1, 1)  # each of them a channel of its own
        return normalize_bytes(picked, self.config).flatten() * self.scale + self.shift


class ViewsWithCachedOutputs(AugmentedViews):
    """Augmented views, each with the teacher's cached outputs as its item's last element.

    Each image is compared with the pixel fingerprint that the cache has of the teacher's image.

    Args:
        images: the training set.
        cache: the outputs.
        config: channels, size and normalisation of the student's images.
    """

    def __init__(self, images: Dataset[Any], cache: Cache, config: InputConfig) -> None:
        super().__init__(images, cache.manifest.rows)
        self.cache = cache
        self.fingerprint = FingerprintPixels(config, cache.manifest.input)

    def __getitem__(self, key: int) -> tuple[Any, ...]:
        item = super().__getitem__(key)
        outputs, expected = self.cache[key % self.rows]
        found = self.fingerprint(item[0])
        if not torch.allclose(found, expected[0], rtol=0, atol=FINGERPRINT_TOLERANCE):
            installed = library_versions()
            then = self.cache.manifest.library_versions
            changed = [f"{name} {v}" for name, v in then.items() if installed[name] != v]
            why = f"it was made with {', '.join(changed)}" if changed else "was a file changed?"
            raise InputError(
                f"image number {key % len(self)} is not what the teacher saw when the cache "
                f"{str(self.cache.folder)!r} was made ({why}): bring that back, or build the cache "
                "again"
            )
        return (
            *item,
            CachedOutputs(
                outputs.final[0], outputs.logits[0], [part[0] for part in outputs.tail_inputs]
            ),
        )


def with_cached_outputs(cache: Cache, source: Source, with_teacher: bool) -> Source:
    """Replace a source's training set by the augmented views of a cache.

    Args:
        cache: the cache.
        source: the images that the cache was made from.
        with_teacher: whether the items also have the teacher's cached outputs.
    """

    def training_set(config: InputConfig, _: int) -> Dataset[Any]:
        images = source.training_set(config, cache.manifest.seed)
        if with_teacher:
            return ViewsWithCachedOutputs(images, cache, config)
        return AugmentedViews(images, cache.manifest.rows)

    return replace(source, training_set=training_set)
