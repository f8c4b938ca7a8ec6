"""Find out what `data.root` is, and open it as a `Source`."""

import os
import stat
from pathlib import Path
from typing import Literal

from scalekd.data.decoding import is_image_name, unreadable
from scalekd.data.digits import open_digits
from scalekd.data.huggingface import PREFIX, open_hugging_face, open_hugging_face_validation
from scalekd.data.image_folder import (
    VALIDATION_FOLDERS,
    open_class_folders,
    open_flat_folder,
    open_validation_folder,
)
from scalekd.data.source import Source, without_labels
from scalekd.data.walk import has_images, is_folder, is_hidden, scan
from scalekd.data.webdataset import find_tars, open_webdataset, open_webdataset_validation
from scalekd.errors import InputError
from scalekd.recipe import Data

SPLIT_NAMES = ("train", "training", "val", "valid", "validation")
"""Names, in any case, of folders that are no part of a flat folder without labels."""

DataLayout = Literal["digits", "hugging_face", "webdataset", "class_folders", "flat_folder"]


def open_source(data: Data) -> Source:
    """Open the images that `data` names.

    Raises:
        InputError: `data.root` is no source of images, or its images are not as they must be.
    """
    match find_layout(data):
        case "digits":
            return open_digits(data)
        case "hugging_face":
            return open_hugging_face(data)
        case "webdataset":
            return open_webdataset(data)
        case "class_folders":
            return open_class_folders(data)
        case "flat_folder":
            return open_flat_folder(data)


def find_layout(data: Data) -> DataLayout:
    """Find out how the images of `data.root` are stored, without reading one.

    - digits: the packaged digits.
    - hugging_face: a dataset that Hugging Face's library loads.
    - webdataset: tar files, with or without labels.
    - class_folders: train/ and val/ with a folder for each class.
    - flat_folder: images without labels, in folders of any name.

    Raises:
        InputError: `data.root` is none of these.
    """
    if (layout := _layout_by_name(data.root)) is not None:
        return layout
    root = _find_folder(data.root)
    if find_tars(root):
        return "webdataset"
    names = {entry.name: is_folder(entry) for entry in scan(root)}
    if names.get("train") and names.get("val"):
        return "class_folders"
    # Folders like Training/ and Valid/ are meant to have labels: they are not one unlabelled pool.
    splits = [name for name, folder in names.items() if folder and name.lower() in SPLIT_NAMES]
    if not splits and has_images(root):
        return "flat_folder"
    raise InputError(
        f"{data.root!r} must hold train/CLASS/*.jpg and val/CLASS/*.jpg, or train/*.tar and "
        "val/*.tar, or, to train without labels, images and neither train/ nor val/; it holds "
        f"{', '.join(sorted(names)[:5]) or 'nothing'}"
    )


def open_validation(data: Data) -> Source:
    """Open the labelled images that `data` names to evaluate on; images to train on need not be.

    In a folder these are val/, validation/, valid/ or test/, the first that there is, or the class
    folders that it has itself.

    Raises:
        InputError: there are no labelled images to evaluate on.
    """
    match _layout_by_name(data.root):
        case "digits":
            return open_digits(data)
        case "hugging_face":
            return open_hugging_face_validation(data)
    root = _find_folder(data.root)
    if find_tars(root):
        return open_webdataset_validation(data)
    names = {entry.name: is_folder(entry) for entry in scan(root) if not is_hidden(entry.name)}
    if split := next((name for name in VALIDATION_FOLDERS if names.get(name)), None):
        return open_validation_folder(data, root / split)
    folders = [name for name, folder in names.items() if folder]
    images = any(is_image_name(name) for name, folder in names.items() if not folder)
    if not folders or images or any(name.lower() in SPLIT_NAMES for name in folders):
        raise without_labels(data.root)
    return open_validation_folder(data, root)


def _layout_by_name(root: str) -> Literal["digits", "hugging_face"] | None:
    """The layout of what is no folder; None for a folder."""
    if root == "digits":
        return "digits"
    if root.startswith(PREFIX):
        return "hugging_face"
    if "://" in root or root.startswith("pipe:"):
        raise InputError(
            f"{root!r} is not on this machine: copy or mount it, and give --data.root its folder"
        )
    return None


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
            f"no folder {root!r}; --data.root takes one with train/ and val/ in it, or one of "
            "images without labels"
        )
    return Path(root)
