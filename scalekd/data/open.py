"""Find out what `data.root` is, and open it as a `Source`."""

import os
import stat
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from scalekd.data.decoding import is_image_name, unreadable
from scalekd.data.digits import open_digits
from scalekd.data.fashion_mnist import (
    NAMES as FASHION_MNIST_NAMES,
)
from scalekd.data.fashion_mnist import (
    open_fashion_mnist,
    open_fashion_mnist_validation,
)
from scalekd.data.huggingface import PREFIX, open_hugging_face, open_hugging_face_validation
from scalekd.data.image_folder import (
    open_class_folders,
    open_flat_folder,
    open_split_folders,
    open_undivided_folder,
    open_validation_folder,
)
from scalekd.data.source import Source, without_labels
from scalekd.data.splits import (
    SPLIT_NAMES,
    TRAINING_NAMES,
    VALIDATION_NAMES,
    first_named,
    refuse_val_share,
)
from scalekd.data.table import is_table_name, open_table, open_table_validation
from scalekd.data.walk import has_images, is_folder, is_hidden, scan
from scalekd.data.webdataset import find_tars, open_webdataset, open_webdataset_validation
from scalekd.errors import InputError
from scalekd.notes import Note
from scalekd.recipe import Data

DataLayout = Literal[
    "digits",
    "fashion_mnist",
    "hugging_face",
    "table",
    "webdataset",
    "split_folders",
    "class_folders",
    "flat_folder",
]


@dataclass(frozen=True)
class Contents:
    """What is directly in a folder.

    Args:
        folder: the folder.
        names: of all that is not hidden, sorted.
        folders: names of the folders among them.
        image: name of an image file among them; None where there is none.
        tar: name of a tar file among them; None where there is none.
    """

    folder: Path
    names: list[str]
    folders: list[str]
    image: str | None
    tar: str | None

    @property
    def training(self) -> Path | None:
        """The folder of the images to train on."""
        return self._first(TRAINING_NAMES)

    @property
    def validation(self) -> Path | None:
        """The folder of the images to validate on; None where that is flat."""
        return None if self.flat_validation else self._first(VALIDATION_NAMES)

    @cached_property
    def flat_validation(self) -> Path | None:
        """The folder with a validation split's name whose images have no class folders, as some
        competitions give their test images."""
        folder = self._first(VALIDATION_NAMES)
        if folder is None:
            return None
        contents = _list_contents(folder)
        return folder if contents.image and not _has_filled_folders(contents, at_least=1) else None

    @property
    def has_splits(self) -> bool:
        """Whether a folder has the name of a split: then it is no class, nor a part of a pool."""
        return any(name.lower() in SPLIT_NAMES for name in self.folders)

    def _first(self, wanted: tuple[str, ...]) -> Path | None:
        name = first_named(self.folders, wanted, repr(str(self.folder)))
        return None if name is None else self.folder / name


def open_source(data: Data) -> Source:
    """Open the images that `data` names.

    Raises:
        InputError: `data.root` is no source of images, or its images are not as they must be.
    """
    layout = find_layout(data)
    _check_labels_setting(data, layout)
    match layout:
        case "digits":
            return open_digits(data)
        case "fashion_mnist":
            return open_fashion_mnist(data)
        case "hugging_face":
            source = open_hugging_face(data)
        case "table":
            return open_table(data)
        case "webdataset":
            source = open_webdataset(data)
        case "split_folders" | "class_folders":
            return _open_labelled_folders(data)
        case "flat_folder":
            source = open_flat_folder(data)
            source.notes.insert(0, Note("info", _why_without_labels(data)))
    if data.labels and source.classes is None:
        raise InputError(f"data.labels is true, and the images of {data.root!r} have no labels")
    return source


def find_layout(data: Data) -> DataLayout:
    """Find out how the images of `data.root` are stored, without reading one.

    - digits: the packaged digits.
    - fashion_mnist: Fashion-MNIST.
    - hugging_face: a dataset that Hugging Face's library loads.
    - table: a CSV, TSV or Parquet file of paths and labels.
    - webdataset: tar files, with or without labels.
    - split_folders: train/ and val/, or only train/ and a share to hold out, with a folder for
      each class.
    - class_folders: a folder for each class.
    - flat_folder: images without labels, in folders of any name.

    Raises:
        InputError: `data.root` is none of these.
    """
    if (layout := _layout_by_name(data.root)) is not None:
        return layout
    root = _find_folder(data.root)
    contents = _list_contents(root)
    if _is_webdataset(contents):
        return "webdataset"
    if contents.training and (contents.validation or data.val_share is not None):
        return "split_folders"
    if not contents.has_splits:
        if data.labels is not False and _has_class_folders(contents, at_least=2):
            return "class_folders"
        if has_images(root):
            return "flat_folder"
    raise InputError(
        f"{data.root!r} must hold train/CLASS/*.jpg and val/CLASS/*.jpg, or CLASS/*.jpg alone, or "
        "train/*.tar and val/*.tar, or, to train without labels, images and neither train/ nor "
        f"val/; it holds {', '.join(contents.names[:5]) or 'nothing'}"
        + f"; the images in {str(contents.flat_validation)!r} have no class folders"
        * bool(contents.flat_validation)
        + "; to hold out a part of train/, give --data.val_share 0.1" * bool(contents.training)
    )


def open_validation(data: Data) -> Source:
    """Open the labelled images that `data` names to evaluate on; images to train on need not be.

    In a folder these are val/, validation/, valid/ or test/, the first that there is, or the class
    folders that it has itself: all their images, or with `data.val_share` what training holds out.

    Raises:
        InputError: there are no labelled images to evaluate on.
    """
    match _layout_by_name(data.root):
        case "digits":
            refuse_val_share(data, "the digits have images to validate on")
            return open_digits(data)
        case "fashion_mnist":
            refuse_val_share(data, f"{data.root} has images to validate on")
            return open_fashion_mnist_validation(data)
        case "hugging_face":
            refuse_val_share(data, f"{data.root!r} has splits of its own")
            return open_hugging_face_validation(data)
        case "table":
            return open_table_validation(data)
    root = _find_folder(data.root)
    contents = _list_contents(root)
    if _is_webdataset(contents):
        refuse_val_share(data, "tar files are not divided")
        return open_webdataset_validation(data)
    if contents.validation:
        refuse_val_share(data, f"{str(contents.validation)!r} has the images to validate on")
        return open_validation_folder(data, contents.validation)
    if contents.training:
        if data.val_share is not None:
            return open_undivided_folder(data, contents.training)
        raise InputError(
            f"{data.root!r} has images to train on and none to evaluate on: give --data.val_share "
            "with the share that the training held out, or add val/CLASS/*.jpg; --data.root "
            f"{contents.training} measures on all that is there"
        )
    if contents.has_splits or not _has_class_folders(contents, at_least=1):
        raise without_labels(data.root)
    return open_undivided_folder(data, root)


def _open_labelled_folders(data: Data) -> Source:
    contents = _list_contents(Path(data.root))
    if contents.training and contents.validation:
        source = open_split_folders(data, contents.training, contents.validation)
    else:
        source = open_class_folders(data, contents.training or contents.folder)
    notes = []
    if contents.flat_validation:
        notes.append(
            f"the images in {contents.flat_validation} have no class folders: none is measured on"
        )
    if contents.tar:
        notes.append(
            f"tar files beside folders of images are not read, for example {contents.tar} in "
            f"{data.root}"
        )
    return replace(source, notes=[*source.notes, *(Note("info", text) for text in notes)])


def _check_labels_setting(data: Data, layout: DataLayout) -> None:
    """Raise InputError where the user asked for labels, for none, or for a part to be held out,
    of images with which it cannot be done."""
    if layout == "flat_folder" and data.labels:
        raise InputError(f"data.labels is true, and {_why_without_labels(data)}")
    if layout in ("digits", "fashion_mnist", "hugging_face", "webdataset"):
        refuse_val_share(data, f"of {data.root!r} no images are held out")
    if layout == "flat_folder":
        refuse_val_share(data, f"{_why_without_labels(data)}, of which none are held out")
    if data.labels is False and layout not in ("table", "flat_folder"):
        raise InputError(
            f"data.labels is false, and {data.root!r} is not used without its labels: give a "
            "folder of images that has neither train/ nor val/, for example DIR/train"
        )


def _why_without_labels(data: Data) -> str:
    """Why the images of a flat folder have no labels."""
    contents = _list_contents(Path(data.root))
    why = "it has fewer than two folders with images"
    if data.labels is False:
        why = "data.labels is false"
    elif contents.folders and contents.image:
        why = f"there are images beside its folders, for example {contents.image}"
    return f"the images in {data.root} have no labels, because {why}"


def _is_webdataset(contents: Contents) -> bool:
    """Whether a folder has tar files and no class folders, neither itself nor in its splits: tar
    files beside those are archives."""
    if not find_tars(contents.folder):
        return False
    splits = filter(None, (contents.training, contents.validation))
    if any(_has_filled_folders(_list_contents(split), at_least=1) for split in splits):
        return False
    return contents.has_splits or not _has_class_folders(contents, at_least=2)


def _has_class_folders(contents: Contents, at_least: int) -> bool:
    """Whether a folder has no images but those in its folders, which then are classes."""
    return contents.image is None and _has_filled_folders(contents, at_least)


def _has_filled_folders(contents: Contents, at_least: int) -> bool:
    filled = (name for name in contents.folders if has_images(contents.folder / name))
    return sum(1 for _, _ in zip(range(at_least), filled, strict=False)) == at_least


def _list_contents(folder: Path) -> Contents:
    kinds = {e.name: is_folder(e) for e in scan(folder) if not is_hidden(e.name)}
    files = [name for name in sorted(kinds) if not kinds[name]]
    return Contents(
        folder=folder,
        names=sorted(kinds),
        folders=[name for name in sorted(kinds) if kinds[name]],
        image=next(filter(is_image_name, files), None),
        tar=next((name for name in files if name.endswith(".tar")), None),
    )


def _layout_by_name(
    root: str,
) -> Literal["digits", "fashion_mnist", "hugging_face", "table"] | None:
    """The layout of what is no folder; None for a folder."""
    if root == "digits":
        return "digits"
    if root in FASHION_MNIST_NAMES:
        return "fashion_mnist"
    if root.startswith(PREFIX):
        return "hugging_face"
    if "://" in root or root.startswith("pipe:"):
        raise InputError(
            f"{root!r} is not on this machine: copy or mount it, and give --data.root its folder"
        )
    return "table" if is_table_name(root) and not os.path.isdir(root) else None


def _find_folder(root: str) -> Path:
    """The folder that `data.root` names; InputError where there is none, or it is unreadable."""
    try:
        is_directory = stat.S_ISDIR(os.stat(root).st_mode)
    except PermissionError as error:
        raise unreadable(root, error) from error
    except OSError:  # there is none, or it cannot be a name
        is_directory = False
    if not is_directory:
        raise InputError(
            f"no folder {root!r}; --data.root takes one with train/ and val/ in it, one of class "
            "folders, one of images without labels, or a CSV, TSV or Parquet file"
        )
    return Path(root)
