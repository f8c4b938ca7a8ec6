"""Find out what `data.root` is, and open it as a `Source`."""

from pathlib import Path
from typing import Literal

from torchvision.datasets.folder import IMG_EXTENSIONS

from scalekd.data.digits import open_digits
from scalekd.data.huggingface import PREFIX, open_hugging_face
from scalekd.data.image_folder import files_below, open_class_folders, open_flat_folder
from scalekd.data.source import Source
from scalekd.data.webdataset import find_tars, open_webdataset
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
    root = Path(data.root)
    if data.root == "digits":
        return "digits"
    if data.root.startswith(PREFIX):
        return "hugging_face"
    if "://" in data.root or data.root.startswith("pipe:"):
        raise InputError(
            f"{data.root!r} is not on this machine: copy or mount it, and give --data.root its "
            "folder"
        )
    if not root.is_dir():
        raise InputError(
            f"no folder {data.root!r}; --data.root takes one with train/ and val/ in it, or one of "
            "images without labels"
        )
    if find_tars(root):
        return "webdataset"
    if (root / "train").is_dir() and (root / "val").is_dir():
        return "class_folders"
    # Folders like Training/ and Valid/ are meant to have labels: they are not one unlabelled pool.
    splits = [p for p in root.iterdir() if p.is_dir() and p.name.lower() in SPLIT_NAMES]
    if not splits and next(files_below(root, IMG_EXTENSIONS), None):
        return "flat_folder"
    raise InputError(
        f"{data.root!r} must hold train/CLASS/*.jpg and val/CLASS/*.jpg, or train/*.tar and "
        "val/*.tar, or, to train without labels, images and neither train/ nor val/; it holds "
        f"{', '.join(sorted(p.name for p in root.iterdir())[:5]) or 'nothing'}"
    )
