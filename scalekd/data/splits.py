"""Splits: their names, and the images that are held out where there is no validation split."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch

from scalekd.data.corrupt import Sample, Samples
from scalekd.data.source import Source, StoredSplit, build_validation_source, normal_name
from scalekd.errors import InputError
from scalekd.recipe import Data

TRAINING_NAMES = ("train", "training")
"""Names, in any case, of what is trained on."""

VALIDATION_NAMES = ("val", "validation", "valid", "test")
"""Names, in any case, of what is validated on; the first that there is is used."""

SPLIT_NAMES = TRAINING_NAMES + VALIDATION_NAMES

DEFAULT_SHARE = 0.1
"""The share of the images that is held out where the user gives none."""


class SelectedSamples:
    """Some of the samples of a split.

    Args:
        samples: all of them.
        indices: those that are selected, in their order.
    """

    def __init__(self, samples: Samples, indices: Sequence[int]) -> None:
        self.samples, self.indices = samples, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[self.indices[index]]

    def content(self, index: int) -> bytes:
        """The encoded image of a sample."""
        return self.samples.content(self.indices[index])


def first_named(names: Iterable[str], wanted: Sequence[str], place: str) -> str | None:
    """The name that stands first in `wanted`, which is in lower case; None where there is none.

    Raises:
        InputError: `names`, of what is in `place`, has it in two spellings.
    """
    found = sorted((wanted.index(name.lower()), name) for name in names if name.lower() in wanted)
    if len(found) > 1 and found[0][0] == found[1][0]:
        raise InputError(
            f"{place} has both {found[0][1]!r} and {found[1][1]!r}: join or remove one of them"
        )
    return found[0][1] if found else None


def hold_out(images: StoredSplit, share: float, root: str) -> tuple[StoredSplit, StoredSplit]:
    """Divide the labelled images of a split into those to train on and those to validate on.

    A hash of its identifier places each image between 0 and 1, and it is validated on if that is
    below `share`. So the choice depends on nothing but the image's own name: it stays when images
    are added, and wherever they are stored. Of each class with several images at least one is
    validated on and one is trained on; a class's only image is trained on.

    Args:
        images: with labels, and one identifier for each sample.
        share: of each class, about.
        root: how an error names the images.

    Raises:
        InputError: no class has more than one image.
    """
    assert images.targets is not None
    identifiers = list(images.identifiers)
    places = [_place(identifier) for identifier in identifiers]
    of_class: dict[int, list[int]] = {}
    for index, target in enumerate(images.targets.tolist()):
        of_class.setdefault(target, []).append(index)
    held_out = set[int]()
    for indices in of_class.values():
        ordered = sorted(indices, key=lambda index: places[index])
        wanted = sum(places[index] < share for index in ordered)
        held_out.update(ordered[: min(max(wanted, 1), len(ordered) - 1)])
    if not held_out:
        raise InputError(
            f"{root!r} has one image of each class, so none can be held out to validate on: add "
            "images"
        )

    def select(name: str, indices: list[int]) -> StoredSplit:
        assert images.targets is not None
        return replace(
            images,
            name=name,
            samples=SelectedSamples(images.samples, indices),
            identifiers=[identifiers[index] for index in indices],
            targets=images.targets[torch.tensor(indices, dtype=torch.int64)],
        )

    everything = range(len(identifiers))
    training = select("training part", [index for index in everything if index not in held_out])
    return training, select("held-out part", sorted(held_out))


def note_on_held_out(data: Data, why: str, training: StoredSplit, validation: StoredSplit) -> str:
    """What was held out, and `why`."""
    held_out = len(validation.samples)
    return (
        f"{why}: {held_out} of the {held_out + len(training.samples)} images are held out to "
        f"validate on, about {share_of(data):g} of each class, chosen by a hash of their names; "
        "--data.val_share sets the share"
    )


def build_held_out_source(data: Data, images: StoredSplit, notes: Iterable[str]) -> Source:
    """Build a source to evaluate on of labelled images that are not divided: of all, or, where
    `data.val_share` is given, of those that a training with it holds out."""
    if data.val_share is None:
        note = (
            f"accuracy is measured on all {len(images.samples)} images of {data.root}; for a model "
            "that was trained on them, --data.val_share 0.1 measures it on those that the "
            "training held out"
        )
        return build_validation_source(data, images, [note, *notes])
    _, held_out = hold_out(images, data.val_share, data.root)
    note = (
        f"accuracy is measured on the {len(held_out.samples)} of the {len(images.samples)} images "
        f"of {data.root} that a training with --data.val_share {data.val_share:g} holds out"
    )
    return build_validation_source(data, held_out, [note, *notes])


def share_of(data: Data) -> float:
    """The share of the images to hold out."""
    return DEFAULT_SHARE if data.val_share is None else data.val_share


def refuse_val_share(data: Data, why: str) -> None:
    """Raise InputError where the user asked for images to be held out, which is not done `why`."""
    if data.val_share is not None:
        raise InputError(f"data.val_share is {data.val_share}, and {why}: drop data.val_share")


def _place(identifier: str) -> float:
    """A number from 0 to below 1 that is a function of a name, in either form of Unicode."""
    name = normal_name(identifier.strip("/")).encode(errors="surrogateescape")
    return int.from_bytes(hashlib.blake2b(name, digest_size=6).digest(), "big") / 2**48
