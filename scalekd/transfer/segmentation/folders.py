"""Folders of images with label maps, in the layouts of ADE20K and of Pascal VOC."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scalekd.data.decoding import is_image_name
from scalekd.data.source import normal_name, normal_names
from scalekd.data.walk import is_file, is_hidden, scan
from scalekd.errors import InputError
from scalekd.reading import read_text
from scalekd.transfer.segmentation.recipe import SegmentData

# fmt: off
VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)
# fmt: on
"""Pascal VOC's names of its classes, in the order of their labels."""

ADE20K_SPLITS = "training", "validation"
VOC_SPLITS = "train", "val"

CLASS_NAMES, ADE20K_CLASS_NAMES = "classes.txt", "objectInfo150.txt"


@dataclass(frozen=True)
class Pair:
    """Paths of an image and of its label map."""

    image: str
    labels: str


@dataclass(frozen=True)
class LabelledFolder:
    """What a folder has.

    Attributes:
        training: images to train on.
        validation: images to measure on.
        class_names: in the order of their labels.
    """

    training: tuple[Pair, ...]
    validation: tuple[Pair, ...]
    class_names: tuple[str, ...]


def find_pairs(data: SegmentData) -> LabelledFolder:
    """Find the images of a folder and their label maps, without reading one.

    Raises:
        InputError: the folder has neither layout, an image has no label map, a split is empty, or
            the classes are not known.
    """
    root = Path(data.root)
    if not root.is_dir():
        raise InputError(f"no folder {data.root!r}; --data.root takes one of images and label maps")
    if (root / "images").is_dir() and (root / "annotations").is_dir():
        splits = [_ade20k_split(root, split) for split in ADE20K_SPLITS]
        names: tuple[str, ...] = ()
    elif (root / "JPEGImages").is_dir() and (root / "SegmentationClass").is_dir():
        splits = [_voc_split(root, split) for split in VOC_SPLITS]
        names = VOC_CLASSES
    else:
        raise InputError(
            f"{data.root!r} must hold images/ and annotations/, as ADE20K, or JPEGImages/, "
            "SegmentationClass/ and ImageSets/Segmentation/, as Pascal VOC"
        )
    names = _class_names(root, names, data.classes)
    return LabelledFolder(training=splits[0], validation=splits[1], class_names=names)


def _ade20k_split(root: Path, split: str) -> tuple[Pair, ...]:
    images, annotations = root / "images" / split, root / "annotations" / split
    for folder in (images, annotations):
        if not folder.is_dir():
            raise InputError(f"there is no folder {str(folder)!r}, which ADE20K's layout has")
    maps = {_stem(name): name for name in _file_names(annotations) if name.lower().endswith(".png")}
    pairs = []
    for name in filter(is_image_name, _file_names(images)):
        if _stem(name) not in maps:
            raise InputError(
                f"the image {str(images / name)!r} has no annotation "
                f"{annotations / name.rpartition('.')[0]!s}.png: add it, or remove the image"
            )
        pairs.append(Pair(str(images / name), str(annotations / maps[_stem(name)])))
    return _not_empty(pairs, images)


def _voc_split(root: Path, split: str) -> tuple[Pair, ...]:
    listed = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    images, annotations = root / "JPEGImages", root / "SegmentationClass"
    files = {_stem(name): name for name in filter(is_image_name, _file_names(images))}
    maps = {_stem(name): name for name in _file_names(annotations) if name.lower().endswith(".png")}
    pairs = []
    for name in read_text(listed, repr(str(listed)), limit=2**28).splitlines():
        stem = normal_name(name.strip())
        if not stem:
            continue
        for folder, found, kind in ((images, files, "image"), (annotations, maps, "annotation")):
            if stem not in found:
                raise InputError(
                    f"{str(listed)!r} lists {stem!r}, and there is no {kind} of this name in "
                    f"{str(folder)!r}: add it, or remove the line"
                )
        pairs.append(Pair(str(images / files[stem]), str(annotations / maps[stem])))
    return _not_empty(pairs, listed)


def _not_empty(pairs: Sequence[Pair], place: Path) -> tuple[Pair, ...]:
    if not pairs:
        raise InputError(f"there is no image in {str(place)!r}: give a folder that has some")
    return tuple(pairs)


def _file_names(folder: Path) -> list[str]:
    return sorted(e.name for e in scan(folder) if not is_hidden(e.name) and is_file(e))


def _stem(name: str) -> str:
    """A file's name without its ending, in the one Unicode form that file systems may change."""
    return normal_name(name.rpartition(".")[0])


def _class_names(root: Path, known: tuple[str, ...], classes: int | None) -> tuple[str, ...]:
    names = _listed_names(root) or (known if classes in (None, len(known)) else ())
    if classes is None and not names:
        raise InputError(
            f"the classes of {str(root)!r} are not known: give --data.classes with their number, "
            f"or a file {CLASS_NAMES} in it with a class's name on each line"
        )
    if classes is not None and names and len(names) != classes:
        raise InputError(
            f"data.classes is {classes}, and {str(root)!r} names {len(names)} classes: drop "
            "data.classes, or correct the names"
        )
    return names or tuple(f"class {number}" for number in range(classes or 0))


def _listed_names(root: Path) -> tuple[str, ...]:
    """The names in the folder's classes.txt, or of ADE20K; empty where neither is there."""
    for file_name in (CLASS_NAMES, ADE20K_CLASS_NAMES):
        file = root / file_name
        if not os.path.lexists(file):
            continue
        lines = [line.strip() for line in read_text(file, repr(str(file))).splitlines()]
        if file_name == ADE20K_CLASS_NAMES:  # a table: Idx, Ratio, Train, Val, Stuff, Name
            lines = [line.split("\t")[-1] for line in lines[1:]]
        names = normal_names([line for line in lines if line], repr(str(file)))
        if len(names) < 2:
            raise InputError(f"{str(file)!r} names {len(names)} classes: at least 2 are needed")
        return names
    return ()
