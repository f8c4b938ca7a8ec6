"""Datasets of Hugging Face, from the Hub or from a folder, read by its library `datasets`."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from scalekd.data.corrupt import Sample
from scalekd.data.decoding import decode_image, read_image_file
from scalekd.data.source import (
    Source,
    StoredSplit,
    build_source,
    build_validation_source,
    normal_names,
    without_labels,
)
from scalekd.data.walk import SYSTEM_NAMES
from scalekd.errors import InputError
from scalekd.recipe import Data

PREFIX = "hf:"

TRAINING_SPLITS = ("train", "training")
"""Names of splits to train on; the first that the dataset has is used."""

VALIDATION_SPLITS = ("validation", "val", "valid", "test")
"""Names of splits to validate on; the first that the dataset has is used."""


VALUE_TYPES = ("bool", "string", "large_string")
"""Types of values, beside integers, that can be classes."""

LABEL_NAMES = ("label", "labels", "class", "target", "category")
"""Names, in any case, of a feature whose values are the classes where none is a ClassLabel."""


def open_hugging_face(data: Data) -> Source:
    """Open `hf:NAME`, a dataset on the Hub, or `hf:FOLDER`, one on this machine.

    Raises:
        InputError: the dataset cannot be loaded, or its splits and features are not as they must
            be.
    """
    splits = _load_splits(data.root.removeprefix(PREFIX))
    train_split = next((name for name in TRAINING_SPLITS if name in splits), None)
    if train_split is None:
        raise InputError(f"{data.root!r} has the splits {', '.join(splits)}: none is train")
    training, notes = _read_split(data.root, train_split, splits[train_split])
    if not training.classes:
        return build_source(data, replace(training, identifiers=[]), notes=notes)
    validation_split = next((name for name in VALIDATION_SPLITS if name in splits), None)
    if validation_split is None:
        raise InputError(
            f"{data.root!r} has the splits {', '.join(splits)}: none is to validate on "
            f"({', '.join(VALIDATION_SPLITS)})"
        )
    validation, _ = _read_split(data.root, validation_split, splits[validation_split])
    if len(training.classes) < 2:
        raise InputError(f"{data.root!r} has one class; at least 2 are needed")
    notes.append(f"accuracy is measured on the split {validation_split} of {data.root}")
    return build_source(data, training, validation, notes=notes)


def open_hugging_face_validation(data: Data) -> Source:
    """Open the validation split of `hf:NAME` or `hf:FOLDER`, or its only split, to evaluate on."""
    splits = _load_splits(data.root.removeprefix(PREFIX))
    only = tuple(splits) if len(splits) == 1 else ()
    name = next((name for name in (*VALIDATION_SPLITS, *only) if name in splits), None)
    if name is None:
        raise InputError(
            f"{data.root!r} has the splits {', '.join(splits)}: none is to evaluate on "
            f"({', '.join(VALIDATION_SPLITS)})"
        )
    split, notes = _read_split(data.root, name, splits[name])
    if not split.classes:
        raise without_labels(data.root)
    notes.append(f"accuracy is measured on the split {name} of {data.root}")
    return build_validation_source(data, split, notes)


class HuggingFaceSamples:
    """The samples of a split.

    Args:
        dataset: the split as a memory-mapped `datasets.Dataset`.
        image: name of its image feature.
        targets: class of each sample; None without labels.
        title: how errors name the split.
    """

    def __init__(self, dataset: Any, image: str, targets: list[int] | None, title: str) -> None:
        from datasets import Image

        self.image, self.targets, self.title = image, targets, title
        self.dataset = dataset.select_columns([image]).cast_column(image, Image(decode=False))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        image = decode_image(self.content(index), f"number {index} of {self.title}")
        return (image,) if self.targets is None else (image, self.targets[index])

    def content(self, index: int) -> bytes:
        """The encoded image of a sample."""
        stored = self.dataset[index][self.image] or {"bytes": None, "path": None}
        if stored["bytes"] is None and stored["path"]:
            return read_image_file(stored["path"])
        return stored["bytes"] or b""


def _read_split(root: str, name: str, dataset: Any) -> tuple[StoredSplit, list[str]]:
    """A split's images and classes, found by the types and names of its features; and notes."""
    from datasets import ClassLabel

    title = f"the split {name} of {root}"
    image, label = _find_features(root, dataset.features)
    if label is None:
        return StoredSplit(name=name, samples=HuggingFaceSamples(dataset, image, None, title)), [
            f"no feature of {root} is a ClassLabel, so it has no labels "
            f"({_list_features(dataset.features)}); to train with labels, rename the feature of "
            "the classes to label with the library's rename_column"
        ]
    values = dataset.select_columns([label]).with_format("arrow")[:][label].to_pylist()
    without = [i for i, value in enumerate(values) if value is None or value == -1]
    if without:
        raise InputError(
            f"{len(without)} of the {len(values)} images of {title} have no class, for example "
            f"number {without[0]}: remove them, or the split"
        )
    notes = []
    if isinstance(dataset.features[label], ClassLabel):
        names, targets = dataset.features[label].names, values
    else:
        classes = sorted(set(values))
        numbers = {value: number for number, value in enumerate(classes)}
        names, targets = list(map(str, classes)), [numbers[value] for value in values]
        if classes:
            notes = [
                f"the classes of {root} are the {len(classes)} values of its feature {label}, from "
                f"{classes[0]!r} to {classes[-1]!r}"
            ]
    if foreign := next((name for name in names if name.lower() in SYSTEM_NAMES), None):
        raise InputError(
            f"{title} has the class {foreign!r}, which is a folder of the system's: remove that "
            "folder from the images"
        )
    split = StoredSplit(
        name=name,
        samples=HuggingFaceSamples(dataset, image, targets, title),
        identifiers=names,
        classes=normal_names(names, title),
        targets=torch.tensor(targets, dtype=torch.int64),
    )
    return split, notes


def _find_features(root: str, features: Any) -> tuple[str, str | None]:
    """Names of the feature of the images and of that of the classes, None without labels."""
    from datasets import ClassLabel, Image, Value

    images = [name for name, feature in features.items() if isinstance(feature, Image)]
    labels = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    labels = labels or [name for name in features if name.lower() in LABEL_NAMES]
    if len(images) != 1 or len(labels) > 1:
        raise InputError(
            f"the features of {root!r} are {_list_features(features)}: one Image is needed and one "
            "ClassLabel, or none to train without labels; remove the others with the library's "
            "remove_columns, and save the dataset to a folder with save_to_disk"
        )
    if not labels:
        return images[0], None
    kind = features[labels[0]]
    of_values = isinstance(kind, Value) and ("int" in kind.dtype or kind.dtype in VALUE_TYPES)
    if not isinstance(kind, ClassLabel) and not of_values:
        raise InputError(
            f"the feature {labels[0]} of {root!r} is a {getattr(kind, 'dtype', kind)}, and classes "
            "are a ClassLabel, integers or strings: make it one with the library's "
            "class_encode_column, or remove it with remove_columns to train without labels"
        )
    return images[0], labels[0]


def _load_splits(name: str) -> dict[str, Any]:
    """Load the splits of a dataset by name; a dataset without splits is one to train on."""
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            f"{PREFIX}{name} needs the package datasets: install scalekd[hub]"
        ) from error
    if not name:
        raise InputError(f"{PREFIX!r} names no dataset: give {PREFIX}NAME or {PREFIX}FOLDER")
    saved = any((Path(name) / file).is_file() for file in ("dataset_dict.json", "state.json"))
    try:
        loaded = datasets.load_from_disk(name) if saved else datasets.load_dataset(name)
    except Exception as error:  # the network, the Hub and the library raise many kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"the dataset {name!r} cannot be loaded ({reason}): is it a folder here, or its name "
            "on the Hub, and the Hub within reach?"
        ) from error
    return dict(loaded) if isinstance(loaded, dict) else {"train": loaded}


def _list_features(features: Any) -> str:
    return ", ".join(f"{name}: {type(feature).__name__}" for name, feature in features.items())
