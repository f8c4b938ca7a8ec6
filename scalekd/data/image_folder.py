"""Folders of image files: with a folder for each class, or flat and without labels."""

import os
from pathlib import Path

import torch

from scalekd.data.corrupt import Sample
from scalekd.data.decoding import decode_image, is_image_name, read_image_file
from scalekd.data.source import (
    Source,
    StoredSplit,
    build_source,
    build_validation_source,
    normal_names,
)
from scalekd.data.splits import (
    SPLIT_NAMES,
    build_held_out_source,
    hold_out,
    note_on_held_out,
    refuse_val_share,
    share_of,
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


def open_split_folders(data: Data, training_folder: Path, validation_folder: Path) -> Source:
    """Open ROOT/train/CLASS/*.jpg and ROOT/val/CLASS/*.jpg, or folders of other names.

    Raises:
        InputError: a class folder has no images, or the validation images have a class that the
            training images have not.
    """
    refuse_val_share(data, f"{str(validation_folder)!r} has the images to validate on")
    root, skipped = Path(data.root), Skipped()
    training = read_class_folders(root, training_folder, skipped)
    _check_several_classes(training, training_folder)
    validation = read_class_folders(root, validation_folder, skipped, may_be_empty=training.classes)
    notes = skipped.notes(data.root)
    if (training.name, validation.name) != ("train", "val"):
        notes.append(
            f"the images to train on are those of {training_folder}, and accuracy is measured on "
            f"{validation_folder}"
        )
    return build_source(data, training, validation, notes=notes)


def open_class_folders(data: Data, folder: Path) -> Source:
    """Open FOLDER/CLASS/*.jpg, of which a part is held out to validate on.

    Raises:
        InputError: a class folder has no images, or no class has several.
    """
    skipped = Skipped()
    images = read_class_folders(folder, folder, skipped)
    _check_several_classes(images, folder)
    training, validation = hold_out(images, share_of(data), str(folder))
    note = note_on_held_out(
        data, f"{folder} has class folders and no validation split", training, validation
    )
    return build_source(data, training, validation, notes=[note, *skipped.notes(str(folder))])


def open_validation_folder(data: Data, folder: Path) -> Source:
    """Open FOLDER/CLASS/*.jpg to evaluate on."""
    skipped = Skipped()
    split = read_class_folders(Path(data.root), folder, skipped, may_be_empty=None)
    return build_validation_source(data, split, skipped.notes(str(folder)))


def open_undivided_folder(data: Data, folder: Path) -> Source:
    """Open FOLDER/CLASS/*.jpg to evaluate on: all images, or with `data.val_share` those that
    `open_class_folders` holds out."""
    skipped = Skipped()
    images = read_class_folders(folder, folder, skipped)
    return build_held_out_source(data, images, skipped.notes(str(folder)))


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
    root: Path, folder: Path, skipped: Skipped, may_be_empty: tuple[str, ...] | None = ()
) -> StoredSplit:
    """List the images of a split with a folder for each class, in the order of their names.

    Args:
        root: the data root, from which the images' identifiers start.
        folder: the split's folder.
        skipped: collects what is skipped.
        may_be_empty: classes whose folders may have no images; None for all, which are counted.

    Raises:
        InputError: a class folder has no images, or is another class's as well.
    """
    barred = identities_upwards(folder)
    if folder != root:
        splits = [entry for entry in scan(root) if entry.name.lower() in SPLIT_NAMES]
        barred |= {identity(split.path) for split in splits if is_folder(split)}
    tops = _find_class_folders(folder, barred, skipped)
    found = walk(list(tops.values()), barred, skipped)
    names = normal_names(list(tops), repr(str(folder)))
    empty = {name for name, top in zip(names, tops.values(), strict=True) if not found[top]}
    for name, top in zip(names, tops.values(), strict=True):
        if name not in empty:
            continue
        if may_be_empty is None:
            skipped.empty.add(top)
        elif name not in may_be_empty:
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
        identifiers=["/" + file.removeprefix(str(root)).lstrip("/") for file in files],
        classes=tuple(name for name in names if name not in empty),
        targets=torch.tensor(targets),
    )


def _check_several_classes(images: StoredSplit, folder: Path) -> None:
    if len(images.classes) < 2:
        raise InputError(
            f"{str(folder)!r} has {len(images.classes)} class folders; at least 2 are needed, one "
            "folder of images for each class"
        )


def _find_class_folders(folder: Path, barred: set[Identity], skipped: Skipped) -> dict[str, str]:
    """The class folders by name, sorted; none is one of the `barred`."""
    tops, names = dict[str, str](), dict[Identity, str]()
    for entry in sorted(scan(folder), key=lambda entry: entry.name):
        path = os.path.join(folder, entry.name)
        if not is_folder(entry):
            if not is_hidden(entry.name):
                (skipped.loose if is_image_name(entry.name) else skipped.others).add(path)
            continue
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
