"""Datasets of Hugging Face, from the Hub or from a folder, read by its library `datasets`."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from scalekd.data.corrupt import Sample, decode_image, load_image
from scalekd.data.source import Source, build_source, check_same_classes
from scalekd.errors import InputError
from scalekd.recipe import Data

PREFIX = "hf:"

TRAINING_SPLITS = ("train", "training")
"""Names of splits to train on; the first that the dataset has is used."""

VALIDATION_SPLITS = ("validation", "val", "valid", "test")
"""Names of splits to validate on; the first that the dataset has is used."""


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
    training = _samples_of_split(data.root, train_split, splits[train_split])
    if training.label is None:
        features = _list_features(splits[train_split].features)
        note = f"no feature of {data.root} is a ClassLabel, so it has no labels ({features})"
        return build_source(
            data, training=training, identifiers=[], split_names=(train_split,), notes=[note]
        )
    validation_split = next((name for name in VALIDATION_SPLITS if name in splits), None)
    if validation_split is None:
        raise InputError(
            f"{data.root!r} has the splits {', '.join(splits)}: none is to validate on "
            f"({', '.join(VALIDATION_SPLITS)})"
        )
    validation = _samples_of_split(data.root, validation_split, splits[validation_split])
    splits_compared = f"{train_split} and {validation_split}"
    check_same_classes(data.root, splits_compared, training.classes, validation.classes)
    if len(training.classes) < 2:
        raise InputError(f"{data.root!r} has one class; at least 2 are needed")
    targets = training.read_targets()
    validation.read_targets()  # refuses missing labels
    return build_source(
        data,
        training=training,
        identifiers=training.classes,
        validation=validation,
        targets=targets,
        classes=training.classes,
        split_names=(train_split, validation_split),
        notes=[f"accuracy is measured on the split {validation_split} of {data.root}"],
    )


class HuggingFaceSamples:
    """The samples of a split.

    Args:
        dataset: the split as a memory-mapped `datasets.Dataset`.
        image: name of its image feature.
        label: name of its class feature; None without labels.
        title: how errors name the split.

    Attributes:
        classes: names of the classes; empty without labels.
    """

    def __init__(self, dataset: Any, image: str, label: str | None, title: str) -> None:
        from datasets import Image

        self.image, self.label, self.title = image, label, title
        self.classes: list[str] = [] if label is None else dataset.features[label].names
        columns = [image] if label is None else [image, label]
        self.dataset = dataset.select_columns(columns).cast_column(image, Image(decode=False))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        row = self.dataset[index]
        content = row[self.image] or {"bytes": b"", "path": None}
        if content["bytes"] is None and content["path"]:
            image = load_image(content["path"])
        else:
            image = decode_image(content["bytes"] or b"", f"number {index} of {self.title}")
        return (image,) if self.label is None else (image, row[self.label])

    def read_targets(self) -> torch.Tensor:
        """Read the class of each sample (N,); InputError where a sample has none."""
        column = self.dataset.select_columns([self.label]).with_format("numpy")[:][self.label]
        targets = np.asarray(column, np.float64)  # None becomes NaN
        without = np.flatnonzero(~(targets >= 0))
        if len(without):
            raise InputError(
                f"{len(without)} of the {len(self)} images of {self.title} have no class, for "
                f"example number {without[0]}: remove them, or the split"
            )
        return torch.from_numpy(targets.astype(np.int64))


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


def _samples_of_split(root: str, split: str, dataset: Any) -> HuggingFaceSamples:
    """A split's images and classes, found by the types of its features."""
    from datasets import ClassLabel, Image

    features = dataset.features
    images = [name for name, feature in features.items() if isinstance(feature, Image)]
    labels = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    if len(images) != 1 or len(labels) > 1:
        raise InputError(
            f"the features of {root!r} are {_list_features(features)}: one Image is needed and one "
            "ClassLabel, or none to train without labels; remove the others with the library's "
            "remove_columns, and save the dataset to a folder with save_to_disk"
        )
    label = labels[0] if labels else None
    return HuggingFaceSamples(dataset, images[0], label, f"the split {split} of {root}")


def _list_features(features: Any) -> str:
    return ", ".join(f"{name}: {type(feature).__name__}" for name, feature in features.items())
