"""Folders of image files: with a folder for each class, or flat and without labels."""

import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS

from scalekd.data.corrupt import Sample, load_image
from scalekd.data.source import Source, build_source, check_same_classes
from scalekd.errors import InputError
from scalekd.recipe import Data


def open_class_folders(data: Data) -> Source:
    """Open ROOT/train/CLASS/*.jpg and ROOT/val/CLASS/*.jpg.

    Raises:
        InputError: a class folder is empty or has other files, or the splits' classes differ.
    """
    root = Path(data.root)
    training, validation = _image_folder(root / "train"), _image_folder(root / "val")
    check_same_classes(data.root, "train/ and val/", training.classes, validation.classes)
    return build_source(
        data,
        training=training,
        # relpath takes five seconds for ImageNet
        identifiers=(file.removeprefix(str(root)) for file, _ in training.samples),
        validation=validation,
        targets=torch.tensor(training.targets),
        classes=training.classes,
    )


def open_flat_folder(data: Data) -> Source:
    """Open a folder of images without labels: all images below ROOT, in folders of any name."""
    root = Path(data.root)
    files = sorted(files_below(root))
    images = [file for file in files if file.lower().endswith(IMG_EXTENSIONS)]
    others = [file for file in files if not file.lower().endswith(IMG_EXTENSIONS)]
    notes = []
    if others:
        notes.append(
            f"skipped, no images by their names: {len(others)} of the files in {data.root}, "
            f"for example {others[0]}"
        )
    names = (image.removeprefix(str(root)) for image in images)
    return build_source(data, training=UnlabelledSamples(images), identifiers=names, notes=notes)


class UnlabelledSamples:
    """The images of `files`, each as (image,)."""

    def __init__(self, files: list[str]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        return (load_image(self.files[index]),)


def files_below(root: Path, endings: tuple[str, ...] = ("",)) -> Iterator[str]:
    """Walk the files below `root` that have one of these endings.

    Hidden files and folders are skipped; links to folders are followed.
    """
    for folder, subfolders, names in os.walk(root, followlinks=True):
        subfolders[:] = [name for name in subfolders if name[0] != "."]
        for name in names:
            if name[0] != "." and name.lower().endswith(endings):
                yield os.path.join(folder, name)


def _image_folder(folder: Path) -> ImageFolder:
    classes = sorted(p for p in folder.iterdir() if p.is_dir())
    if len(classes) < 2:
        raise InputError(
            f"{str(folder)!r} has {len(classes)} class folders; at least 2 are needed, "
            "one folder of images for each class"
        )
    for directory in classes:
        files = [f for f in directory.rglob("*") if f.is_file() and f.name[0] != "."]
        if not files:
            raise InputError(
                f"the class folder {str(directory)!r} has no images: fill or remove it"
            )
        for file in files:
            if file.suffix.lower() not in IMG_EXTENSIONS:
                raise InputError(f"{str(file)!r} is not an image by its name: remove it")
    return ImageFolder(str(folder), loader=load_image)
