"""Datasets of Hugging Face, from the hub or from a folder, read by its own library."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from scalekd.data.corrupt import Item, decode, load_image
from scalekd.data.source import Source, build_source
from scalekd.errors import InputError
from scalekd.notes import Note
from scalekd.recipe import Data

PREFIX = "hf:"

VALIDATION = ("validation", "val", "valid", "test")
"""Splits to validate on, the first that there is."""


def open_huggingface(data: Data) -> Source:
    """`hf:NAME` of a dataset on the hub, or `hf:FOLDER` of one that is here."""
    splits = _load(data.root.removeprefix(PREFIX))
    training = next((n for n in ("train", "training") if n in splits), None)
    if training is None:
        raise InputError(f"{data.root!r} has the splits {', '.join(splits)}: none is train")
    train = _rows(data.root, training, splits[training])
    if train.label is None:
        features = _described(splits[training].features)
        note = f"no feature of {data.root} is a ClassLabel, so it has no labels ({features})"
        return build_source(
            data, train, None, torch.zeros(len(train)), [], None, [Note("info", note)]
        )
    validating = next((n for n in VALIDATION if n in splits), None)
    if validating is None:
        raise InputError(
            f"{data.root!r} has the splits {', '.join(splits)}: none is to validate on "
            f"({', '.join(VALIDATION)})"
        )
    validation = _rows(data.root, validating, splits[validating])
    if train.classes != validation.classes:
        odd = sorted(set(train.classes) ^ set(validation.classes)) or ["another order"]
        raise InputError(
            f"{data.root!r}: {training} and {validating} have different classes, only one has: "
            f"{', '.join(odd[:5])}"
        )
    if len(train.classes) < 2:
        raise InputError(f"{data.root!r} has one class; at least 2 are needed")
    targets = train.targets()
    validation.targets()  # all there
    notes = [Note("info", f"measured on the split {validating} of {data.root}")]
    return build_source(data, train, validation, targets, train.classes, len(train.classes), notes)


class Rows:
    """The images of a split, each with its class where it has one.

    Args:
        dataset: the library's, memory mapped.
        image, label: names of its features; of the latter None without labels.
        said: what to call it.
    """

    def __init__(self, dataset: Any, image: str, label: str | None, said: str) -> None:
        from datasets import Image

        self.image, self.label, self.said = image, label, said
        self.classes: list[str] = [] if label is None else dataset.features[label].names
        columns = [image] if label is None else [image, label]
        self.dataset = dataset.select_columns(columns).cast_column(image, Image(decode=False))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Item:
        row = self.dataset[index]
        content = row[self.image] or {"bytes": b"", "path": None}
        if content["bytes"] is None and content["path"]:
            image = load_image(content["path"])
        else:
            image = decode(content["bytes"] or b"", f"number {index} of {self.said}")
        return (image,) if self.label is None else (image, row[self.label])

    def targets(self) -> torch.Tensor:
        """The class of each (N,); InputError where one has none."""
        column = self.dataset.select_columns([self.label]).with_format("numpy")[:][self.label]
        targets = np.asarray(column, np.float64)  # None becomes NaN
        without = np.flatnonzero(~(targets >= 0))
        if len(without):
            raise InputError(
                f"{len(without)} of the {len(self)} images of {self.said} have no class, for "
                f"example number {without[0]}: leave them, or the split, out"
            )
        return torch.from_numpy(targets.astype(np.int64))


def _load(name: str) -> dict[str, Any]:
    """The splits by name; a dataset without splits is one to train on."""
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            f"{PREFIX}{name} takes the package datasets: install scalekd[hub]"
        ) from error
    if not name:
        raise InputError(f"{PREFIX!r} names no dataset: give {PREFIX}NAME or {PREFIX}FOLDER")
    saved = any((Path(name) / file).is_file() for file in ("dataset_dict.json", "state.json"))
    try:
        loaded = datasets.load_from_disk(name) if saved else datasets.load_dataset(name)
    except Exception as error:  # of many kinds: the network's, the hub's, the library's
        said = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"the dataset {name!r} cannot be loaded ({said}): is it a folder here, or its name on "
            "the hub, and the hub within reach?"
        ) from error
    return dict(loaded) if isinstance(loaded, dict) else {"train": loaded}


def _rows(root: str, split: str, dataset: Any) -> Rows:
    """A split's images and classes, found by the types of its features."""
    from datasets import ClassLabel, Image

    features = dataset.features
    images = [name for name, feature in features.items() if isinstance(feature, Image)]
    labels = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    if len(images) != 1 or len(labels) > 1:
        raise InputError(
            f"the features of {root!r} are {_described(features)}: one Image is needed and one "
            "ClassLabel, or none to train without labels; leave the others out with the "
            "library's remove_columns, and save it to a folder with save_to_disk"
        )
    label = labels[0] if labels else None
    return Rows(dataset, images[0], label, f"the split {split} of {root}")


def _described(features: Any) -> str:
    return ", ".join(f"{name}: {type(feature).__name__}" for name, feature in features.items())
