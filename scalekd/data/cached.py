"""A run's images with what a cache keeps of its teacher, in the views that the teacher saw."""

import dataclasses
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from scalekd.cache.store import SAME, Cache, pixel_fingerprint
from scalekd.data.source import Source
from scalekd.errors import InputError
from scalekd.networks import CachedOutputs, FrozenTeacher, InputConfig
from scalekd.networks.input_config import renormalization
from scalekd.recipe import Recipe

VIEWS_MADE_BY = ("torch", "torchvision", "timm", "pillow", "numpy")


def cache_identity(
    recipe: Recipe, source: Source, teacher: FrozenTeacher, size: tuple[int, int]
) -> dict[str, Any]:
    """All that decides a value in a cache and can be another elsewhere, by name.

    Args:
        recipe: whose teacher and data are meant.
        source: of its images.
        teacher: that is built from it.
        size: (height, width) of the images.
    """
    data = recipe.data
    selection = teacher.extractor.selection
    features = dataclasses.asdict(selection) if selection else None
    return {
        "teacher": recipe.teacher,
        "teacher's arguments": recipe.as_dict()["teacher_args"],
        "teacher's size": list(teacher.input.size),
        "teacher's features": features,
        "teacher_prefix": teacher.prefix,
        "teacher's weights": teacher.fingerprint,
        "set of images": source.identity or data.root,
        "size of the images": list(size),
        "data.train_images": data.train_images,
        "data.auto_augment": data.auto_augment,
        "data.color_jitter": data.color_jitter,
        "data.erasing": data.erasing,
        "data.corrupt_images": data.corrupt_images,
    }


def library_versions() -> dict[str, str]:
    """Of what makes views out of files."""
    return {name: version(name) for name in VIEWS_MADE_BY}


def open_cache(
    recipe: Recipe, source: Source, teacher: FrozenTeacher | None, config: InputConfig
) -> Cache | None:
    """The recipe's cache; None where it names none.

    Args:
        recipe: to train by.
        source: of its images.
        teacher: whole; None of a student that is trained alone, on the cache's views all the same.
        config: of the student's images.

    Raises:
        InputError: it was made of something else, is not finished, or cannot stand for the teacher
            under this recipe.
    """
    if recipe.cache is None:
        return None
    cache = Cache.whole(Path(recipe.cache))
    if teacher is None:
        return cache
    then, now = cache.contents.of, cache_identity(recipe, source, teacher, config.size)
    for name, value in now.items():
        if then.get(name) != value:
            raise InputError(
                f"the cache {recipe.cache!r} was made with another {name} ({then.get(name)}; now "
                f"{value}): give what it was made with, or make another with `scalekd cache`"
            )
    made_for = cache.contents.input
    if recipe.data.erasing and (made_for.mean, made_for.std) != (config.mean, config.std):
        raise InputError(
            f"data.erasing is {recipe.data.erasing}, whose noise is drawn after normalisation: the "
            f"cache {recipe.cache!r} was made for images of mean {made_for.mean}, and the "
            f"student's have {config.mean}; make one with this --student named, or set it to 0"
        )
    return cache


class CachedViews(Dataset[Any]):
    """The images of a run in the views of a cache: each name is that of a row."""

    def __init__(self, images: Dataset[Any], rows: int) -> None:
        self.images, self.rows = images, rows

    def __len__(self) -> int:
        return len(self.images)  # type: ignore[arg-type]

    def __getitem__(self, name: int) -> tuple[Any, ...]:
        item: tuple[Any, ...] = self.images[name % self.rows]
        return item


class WithCachedOutputs(CachedViews):
    """The same with what is kept of the teacher, as a last part of each item.

    Each image is held against the pixel_fingerprint that the teacher's is remembered by.

    Args:
        images: normalised as `config` says.
        cache: of their views.
        config: of the student's images.
    """

    def __init__(self, images: Dataset[Any], cache: Cache, config: InputConfig) -> None:
        super().__init__(images, cache.contents.rows)
        self.cache = cache
        self.scale, self.shift = renormalization(config, cache.contents.input)

    def __getitem__(self, name: int) -> tuple[Any, ...]:
        item = super().__getitem__(name)
        kept, seen = self.cache[name % self.rows]
        now = pixel_fingerprint(item[0] * self.scale + self.shift)
        if not torch.allclose(now, seen[0], rtol=0, atol=SAME):
            made_with = self.cache.contents.made_with
            changed = [f"{n} {v}" for n, v in made_with.items() if library_versions()[n] != v]
            why = f"it was made with {', '.join(changed)}" if changed else "was a file changed?"
            raise InputError(
                f"image number {name % len(self)} is not what the teacher saw when the cache "
                f"{str(self.cache.folder)!r} was made ({why}): bring that back, or make the cache "
                "anew"
            )
        return (
            *item,
            CachedOutputs(kept.final[0], kept.logits[0], [part[0] for part in kept.tail_inputs]),
        )


def with_cached_outputs(cache: Cache, source: Source, with_teacher: bool) -> Source:
    """The source in the cache's views; `with_teacher` also with what is kept of the teacher."""

    def train(config: InputConfig, _: int) -> Dataset[Any]:
        images = source.train(config, cache.contents.seed)
        if with_teacher:
            return WithCachedOutputs(images, cache, config)
        return CachedViews(images, cache.contents.rows)

    return replace(source, train=train)
