"""Folders of image files: with a folder for each class, or flat and without labels."""

import os
from pathlib import Path

import torch

from scalekd.data.corrupt import Sample
from scalekd.data.decoding import decode_image, read_image_file
from scalekd.data.source import (
    Source,
    StoredSplit,
    build_source,
    build_validation_source,
    normal_names,
)
from scalekd.data.walk import (
    Identity,
    Skipped,
    identities_upwards,
    identity,
    is_folder,
    is_hidden,
    scan,
    walk,
)
from scalekd.errors import InputError
from scalekd.recipe import Data

VALIDATION_FOLDERS = ("val", "validation", "valid", "test")
"""Names of folders to evaluate on; the first that there is is used."""


def open_class_folders(data: Data) -> Source:
    """Open ROOT/train/CLASS/*.jpg and ROOT/val/CLASS/*.jpg.

    Raises:
        InputError: a class folder has no images, or val/ has a class that train/ has not.
    """
    root, skipped = Path(data.root), Skipped()
    training = read_class_folders(root, root / "train", skipped)
    if len(training.classes) < 2:
        raise InputError(
            f"{str(root / 'train')!r} has {len(training.classes)} class folders; at least 2 are "
            "needed, one folder of images for each class"
        )
    validation = read_class_folders(root, root / "val", skipped, may_be_empty=training.classes)
    return build_source(data, training, validation, notes=skipped.notes(data.root))


def open_validation_folder(data: Data, folder: Path) -> Source:
    """Open FOLDER/CLASS/*.jpg to evaluate on."""
    skipped = Skipped()
    split = read_class_folders(Path(data.root), folder, skipped)
    return build_validation_source(data, split, skipped.notes(str(folder)))


def open_flat_folder(data: Data) -> Source:
    """Open a folder of images without labels: all images below ROOT, in folders of any name."""
    root, skipped = Path(data.root), Skipped()
    (folders,) = walk([str(root)], identities_upwards(root), skipped).values()
    files = sorted(os.path.join(folder, name) for folder, names in folders for name in names)
    training = StoredSplit(
        name="train",
        samples=FolderSamples(files),
        identifiers=(file.removeprefix(str(root)) for file in files),
    )
    return build_source(data, training, notes=skipped.notes(data.root))


class FolderSamples:
    """The images of `files`, each with its class where there are `targets`."""

    def __init__(self, files: list[str], targets: list[int] | None = None) -> None:
        self.files, self.targets = files, targets

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        image = decode_image(self.content(index), repr(self.files[index]))
        return (image,) if self.targets is None else (image, self.targets[index])

    def content(self, index: int) -> bytes:
        """The encoded image of a sample."""
        return read_image_file(self.files[index])


def read_class_folders(
    root: Path, folder: Path, skipped: Skipped, may_be_empty: tuple[str, ...] = ()
) -> StoredSplit:
    """List the images of a split with a folder for each class, in the order of their names.

    Args:
        root: the data root, from which the images' identifiers start.
        folder: the split's folder.
        skipped: collects what is skipped.
        may_be_empty: classes whose folders may have no images.

    Raises:
        InputError: a class folder has no images, or is another class's as well.
    """
    barred = identities_upwards(folder)
    barred |= {identity(root / name) for name in ("train", "val") if os.path.isdir(root / name)}
    tops = _find_class_folders(folder, barred, skipped)
    found = walk(list(tops.values()), barred, skipped)
    names = normal_names(list(tops), repr(str(folder)))
    empty = {name for name, top in zip(names, tops.values(), strict=True) if not found[top]}
    for name, top in zip(names, tops.values(), strict=True):
        if name in empty and name not in may_be_empty:
            raise InputError(f"the class folder {top!r} has no images: fill or remove it")
    if len(empty) == len(names):
        raise InputError(
            f"{str(folder)!r} has {len(names)} class folders and none has images: it must have a "
            "folder of images for each class"
        )
    files, targets = list[str](), list[int]()
    filled = [top for name, top in zip(names, tops.values(), strict=True) if name not in empty]
    for number, top in enumerate(filled):
        for below, images in found[top]:
            files += [os.path.join(below, image) for image in images]
        targets += [number] * (len(files) - len(targets))
    return StoredSplit(
        name=folder.name,
        samples=FolderSamples(files, targets),
        # relpath takes five seconds for ImageNet
        identifiers=(file.removeprefix(str(root)) for file in files),
        classes=tuple(name for name in names if name not in empty),
        targets=torch.tensor(targets),
    )


def _find_class_folders(folder: Path, barred: set[Identity], skipped: Skipped) -> dict[str, str]:
    """The class folders by name, sorted; none is one of the `barred`."""
    tops, names = dict[str, str](), dict[Identity, str]()
    for entry in sorted(scan(folder), key=lambda entry: entry.name):
        if not is_folder(entry):
            continue
        path = os.path.join(folder, entry.name)
        if is_hidden(entry.name):
            skipped.hidden.add(path)
        elif (found := identity(path)) in barred:
            skipped.links.add(path)
        elif found in names:
            raise InputError(
                f"the class folders {tops[names[found]]!r} and {path!r} are the same folder: "
                "remove one"
            )
        else:
            tops[entry.name], names[found] = path, entry.name
    return tops
