"""COCO's format: which objects are in which image. Everything is checked when a file is read."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scalekd.data.source import normal_name
from scalekd.data.walk import scan
from scalekd.errors import InputError
from scalekd.reading import is_number, is_whole, read_text

MAX_BYTES = 2**32
"""Largest file of annotations; COCO's own has less than a half of 2**30."""

SPLITS = ("train2017", "val2017"), ("train", "val"), ("training", "validation")
BESIDE = "_annotations.coco.json"
"""The file of annotations beside the images, as annotation tools export it."""


@dataclass(frozen=True)
class CocoFiles:
    """A split's file of annotations, and the folder of its images."""

    annotations: Path
    images: Path


@dataclass(frozen=True)
class CocoImage:
    """An image as its annotations describe it.

    Attributes:
        path: of its file.
        height, width: in pixels.
    """

    path: str
    height: int
    width: int


@dataclass(frozen=True)
class Instance:
    """An object in an image.

    Attributes:
        label: number of its class, from 0.
        box: left, top, right, bottom in pixels, as annotated.
        area: in pixels, as annotated; of its box where it is not.
        crowd: whether it is a group of objects, which is neither trained on nor missed.
        segmentation: its mask: polygons, or run lengths; None without.
    """

    label: int
    box: tuple[float, float, float, float]
    area: float
    crowd: bool
    segmentation: Any = None

    @property
    def is_empty(self) -> bool:
        """Whether its box has no area."""
        left, top, right, bottom = self.box
        return right <= left or bottom <= top

    @property
    def outline(self) -> list[float]:
        """Its box as a polygon, which stands for the mask of a crowd that has none."""
        left, top, right, bottom = self.box
        return [left, top, right, top, right, bottom, left, bottom]

    @property
    def lacks_mask(self) -> bool:
        """Whether it is an object to train on that has no mask."""
        return self.segmentation is None and not self.crowd and not self.is_empty


@dataclass
class PackedInstances:
    """The objects of many images in one tensor, which worker processes share.

    As Python objects, those of COCO's training images take gigabytes in each process. torch moves
    the tensor to shared memory where it starts worker processes, and not before.
    """

    content: Tensor
    ends: Tensor

    @classmethod
    def pack(cls, images: list[list[Instance]]) -> "PackedInstances":
        """Pack the objects of each image."""
        texts = [json.dumps([vars(instance) for instance in found]).encode() for found in images]
        content = torch.frombuffer(bytearray(b"".join(texts) or b" "), dtype=torch.uint8)
        ends = torch.tensor(np.cumsum([len(text) for text in texts]), dtype=torch.int64)
        return cls(content, ends)

    def __getitem__(self, index: int) -> list[Instance]:
        start = int(self.ends[index - 1]) if index else 0
        text = self.content[start : int(self.ends[index])].numpy().tobytes()
        return [Instance(**{**plain, "box": tuple(plain["box"])}) for plain in json.loads(text)]


@dataclass(frozen=True)
class CocoSplit:
    """The images of a file of annotations, and their objects.

    Attributes:
        name: of the split.
        images: in the order of the file.
        instances: the objects of each image.
        class_names: in the order of their labels.
        objects: how many there are.
        crowds, empty_boxes, without_mask: how many of them are crowds, have no area, or no mask.
        images_without_objects: how many have none.
        skipped_categories: names of those that only group others.
    """

    name: str
    images: tuple[CocoImage, ...]
    instances: PackedInstances
    class_names: tuple[str, ...]
    objects: int = 0
    crowds: int = 0
    empty_boxes: int = 0
    without_mask: int = 0
    images_without_objects: int = 0
    skipped_categories: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def training_images(self, *, empty_images: bool) -> list[int]:
        """Numbers of the images to train on: all, or those with an object that is no crowd."""
        return [
            number
            for number in range(len(self))
            if empty_images or any(not i.crowd for i in self.instances[number])
        ]


def find_splits(root: Path) -> tuple[CocoFiles, CocoFiles]:
    """The files of the training and of the validation split in a folder.

    Raises:
        InputError: the folder has none of the layouts.
    """
    if not root.is_dir():
        raise InputError(f"no folder {str(root)!r}; --data.root takes one in COCO's layout")
    beside = [CocoFiles(root / split / BESIDE, root / split) for split in ("train", "valid")]
    if all(files.annotations.is_file() for files in beside):
        return beside[0], beside[1]
    for names in SPLITS:
        files = [root / "annotations" / f"instances_{name}.json" for name in names]
        if not all(file.is_file() for file in files):
            continue
        folders = [_image_folder(root, name) for name in names]
        return CocoFiles(files[0], folders[0]), CocoFiles(files[1], folders[1])
    raise InputError(
        f"{str(root)!r} must hold annotations/instances_train2017.json and instances_val2017.json "
        "(or _train and _val, or _training and _validation) with the images in folders of these "
        f"names, or train/{BESIDE} and valid/{BESIDE} beside the images"
    )


def _image_folder(root: Path, split: str) -> Path:
    for folder in (root / split, root / "images" / split):
        if folder.is_dir():
            return folder
    raise InputError(
        f"{str(root)!r} has annotations/instances_{split}.json, and the images of {split} are "
        f"neither in {split}/ nor in images/{split}/"
    )


def read_coco(files: CocoFiles, name: str) -> CocoSplit:
    """Read a file of annotations, and check that its parts fit each other and the images exist.

    Args:
        files: where it is.
        name: of the split.

    Raises:
        InputError: the file is not of COCO's format, an image is missing, or an annotation is of an
            image or a category that the file does not have.
    """
    reader = _Reader(files)
    plain = reader.read()
    grouping = grouping_categories(plain)
    labels, names = reader.categories([c for c in plain["categories"] if c not in grouping])
    numbers, images = reader.images(plain)
    found: list[list[Instance]] = [[] for _ in images]
    for index, instance in reader.annotations(plain, numbers, labels):
        found[index].append(instance)
    every = [instance for instances in found for instance in instances]
    return CocoSplit(
        name=name,
        images=tuple(images),
        instances=PackedInstances.pack(found),
        class_names=names,
        objects=len(every),
        crowds=sum(instance.crowd for instance in every),
        empty_boxes=sum(instance.is_empty for instance in every),
        without_mask=sum(i.lacks_mask for i in every),
        images_without_objects=sum(not instances for instances in found),
        skipped_categories=tuple(str(category["name"]) for category in grouping),
    )


def grouping_categories(plain: dict[str, Any]) -> list[dict[str, Any]]:
    """The categories that stand only for a group of others, as annotation tools add one for the
    project: without a group of their own, without annotations, and named by others as theirs."""
    annotated = {str(annotation.get("category_id")) for annotation in plain["annotations"]}
    groups = [category.get("supercategory") for category in plain["categories"]]
    return [
        category
        for category in plain["categories"]
        if category.get("supercategory") in (None, "", "none")
        and category.get("name") in groups
        and str(category.get("id")) not in annotated
    ]


@dataclass
class _Reader:
    """Reads the parts of a file, and names it where one is wrong."""

    files: CocoFiles
    known_folders: dict[Path, dict[str, str]] = field(default_factory=dict)

    def fail(self, problem: str) -> InputError:
        return InputError(f"{str(self.files.annotations)!r}: {problem}")

    def read(self) -> dict[str, Any]:
        file = self.files.annotations
        text = read_text(file, repr(str(file)), limit=MAX_BYTES)
        try:
            plain = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise self.fail(f"it is no JSON ({str(error)[:100]})") from error
        parts = "images", "annotations", "categories"
        if not isinstance(plain, dict) or not all(isinstance(plain.get(p), list) for p in parts):
            raise self.fail("COCO's format has the lists images, annotations and categories")
        for part in parts:
            if not all(isinstance(entry, dict) for entry in plain[part]):
                raise self.fail(f"each entry of {part} must be a mapping")
        return plain

    def categories(self, plain: list[Any]) -> tuple[dict[int, int], tuple[str, ...]]:
        """The label of each category's id, and the names in the order of the labels."""
        names: dict[int, str] = {}
        for category in plain:
            number, name = category.get("id"), category.get("name")
            if not is_whole(number) or not isinstance(name, str) or not name:
                raise self.fail(f"the category {_short(category)} needs a whole id and a name")
            if number in names or name in names.values():
                raise self.fail(f"the category {name!r} with the id {number} is there twice")
            names[number] = name
        if not names:
            raise self.fail("it has no categories")
        ordered = sorted(names)
        return {number: n for n, number in enumerate(ordered)}, tuple(names[n] for n in ordered)

    def images(self, plain: dict[str, Any]) -> tuple[dict[int, int], list[CocoImage]]:
        """The place of each image's id in the list, and the list."""
        numbers: dict[int, int] = {}
        images: list[CocoImage] = []
        for entry in plain["images"]:
            number, name = entry.get("id"), entry.get("file_name")
            height, width = entry.get("height"), entry.get("width")
            if not is_whole(number) or not isinstance(name, str) or not name:
                raise self.fail(f"the image {_short(entry)} needs a whole id and a file_name")
            if not all(is_whole(side) and side > 0 for side in (height, width)):
                raise self.fail(f"the image {name!r} needs a height and a width in pixels")
            if number in numbers:
                raise self.fail(f"two images have the id {number}, one of them is {name!r}")
            numbers[number] = len(images)
            images.append(CocoImage(self.path_of(name), height, width))
        if not images:
            raise self.fail("it has no images")
        return numbers, images

    def path_of(self, name: str) -> str:
        """The path of an image's file, which must exist; a folder is listed once."""
        path = self.files.images / name
        if path.parent not in self.known_folders:
            present = scan(path.parent) if path.parent.is_dir() else ()
            self.known_folders[path.parent] = {normal_name(e.name): e.path for e in present}
        found = self.known_folders[path.parent].get(normal_name(path.name))
        if found is None:
            raise self.fail(f"there is no image {str(path)!r}, which it lists")
        return found

    def annotations(
        self, plain: dict[str, Any], numbers: dict[int, int], labels: dict[int, int]
    ) -> Iterator[tuple[int, Instance]]:
        """The place of the image of each object, and the object."""
        for entry in plain["annotations"]:
            title = f"the annotation {_short(entry.get('id', entry))}"
            image, category = entry.get("image_id"), entry.get("category_id")
            if not is_whole(image) or image not in numbers:
                raise self.fail(f"{title} is of the image {image!r}, which is not in its images")
            if not is_whole(category) or category not in labels:
                raise self.fail(
                    f"{title} has the category {category!r}, which is not in its categories"
                )
            box = entry.get("bbox")
            if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
                raise self.fail(f"{title} needs a bbox of four numbers: x, y, width, height")
            left, top, width, height = map(float, box)
            if width < 0 or height < 0:
                raise self.fail(f"{title} has a bbox of a negative size, {box}")
            area = entry.get("area", width * height)
            if not is_number(area):
                raise self.fail(f"{title} has the area {area!r}, which is not a finite number")
            segmentation = entry.get("segmentation") or None
            if problem := _problem_with(segmentation):
                raise self.fail(f"{title} has a segmentation {problem}")
            yield (
                numbers[image],
                Instance(
                    label=labels[category],
                    box=(left, top, left + width, top + height),
                    area=float(area),
                    crowd=bool(entry.get("iscrowd", 0)),
                    segmentation=segmentation,
                ),
            )


def _problem_with(segmentation: Any) -> str | None:
    """What is wrong with the form of a segmentation, if anything is."""
    if segmentation is None:
        return None
    if isinstance(segmentation, dict):
        size, counts = segmentation.get("size"), segmentation.get("counts")
        if not isinstance(size, list) or len(size) != 2 or not all(map(is_whole, size)):
            return "whose run lengths have no size of two whole numbers"
        if isinstance(counts, str) or (isinstance(counts, list) and all(map(is_whole, counts))):
            return None
        return "whose run lengths are neither a text nor whole numbers"
    if not isinstance(segmentation, list):
        return "that is neither a list of polygons nor run lengths"
    for polygon in segmentation:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            return "with a polygon of fewer than three points"
        if not all(map(is_number, polygon)):
            return "with a polygon whose points are not finite numbers"
    return None


def _short(value: Any) -> str:
    return repr(value)[:80]
