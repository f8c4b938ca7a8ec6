"""COCO's format as real files have it, and what is refused of damaged ones."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.objects import (
    CLASSES,
    SIDE,
    change_coco,
    coco_folder,
    draw_image,
    tiny_detection,
    write_coco,
)
from helpers.refusals import refused
from helpers.warned import warned
from PIL import Image

from scalekd.networks import InputConfig
from scalekd.transfer.detection.coco import CocoSplit, find_splits, read_coco
from scalekd.transfer.detection.images import open_annotated_images

INPUT = InputConfig(
    channels=3, size=(SIDE, SIDE), mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear", crop=1
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return coco_folder(tmp_path / "objects")


def read(root: Path, part: int = 0) -> CocoSplit:
    return read_coco(find_splits(root)[part], "training")


def test_ids_with_gaps_become_labels_in_their_order(root: Path) -> None:
    split = read(root)
    assert split.class_names == CLASSES
    assert len(split) == 8
    for number in range(8):
        instances = [i for i in split.instances[number] if not i.crowd]
        annotated = draw_image(number)[1]
        assert [i.label for i in instances] == [(a["category_id"] - 3) // 4 for a in annotated]
        for instance, annotation in zip(instances, annotated, strict=True):
            left, top, width, height = annotation["bbox"]
            assert instance.box == (left, top, left + width, top + height)
            assert instance.area == width * height
    assert Path(split.images[1].path).name == "Möwe.png"
    assert (split.objects, split.crowds, split.images_without_objects) == (13, 1, 2)


def test_targets_have_masks_and_no_crowds_and_end_with_the_image(root: Path) -> None:
    change_coco(root, "train", "annotations", 0, bbox=[-5, 2, 20, 60])
    change_coco(root, "train", "annotations", 1, bbox=[5, 2, 0, 9])
    recipe = tiny_detection(root)
    recipe = replace(recipe, data=replace(recipe.data, flip=0.0))
    images: Any = open_annotated_images(recipe).source.training_set(INPUT, 0)
    pixels, target = images[1]
    assert pixels.dtype == torch.uint8
    assert (pixels.permute(1, 2, 0).numpy() == draw_image(1)[0]).all()
    assert target["boxes"].tolist() == [[0, 2, 15, SIDE]]
    pixels, target = images[2]  # two objects, of which one has no area, and a crowd
    assert len(target["boxes"]) == len(target["labels"]) == len(target["masks"]) == 1
    assert images[0][1]["boxes"].shape == (0, 4)
    assert images[0][1]["masks"].shape == (0, SIDE, SIDE)
    for number in (3, 7):
        _, target = images[number]
        for box, mask in zip(target["boxes"].long().tolist(), target["masks"], strict=True):
            left, top, right, bottom = box
            assert mask[top:bottom, left:right].all()
            assert mask.sum() == (bottom - top) * (right - left)


def test_a_mirrored_image_has_mirrored_boxes_and_masks(root: Path) -> None:
    recipe = tiny_detection(root)
    plain, mirrored = (
        open_annotated_images(
            replace(recipe, data=replace(recipe.data, flip=flip))
        ).source.training_set(INPUT, 0)
        for flip in (0.0, 1.0)
    )
    pixels, target = plain[3]
    other, flipped = mirrored[3]
    assert torch.equal(pixels.flip(-1), other)
    assert torch.equal(target["masks"].flip(-1), flipped["masks"])
    assert torch.equal(target["boxes"][:, [1, 3]], flipped["boxes"][:, [1, 3]])
    assert torch.equal(SIDE - target["boxes"][:, [2, 0]], flipped["boxes"][:, [0, 2]])


def test_images_without_objects_can_be_left_out(root: Path) -> None:
    recipe = tiny_detection(root)
    recipe = replace(recipe, data=replace(recipe.data, empty_images=False))
    opened = open_annotated_images(recipe)
    assert [split.images for split in opened.source.splits] == [6, 3]


def test_the_layout_of_annotation_tools_is_read(root: Path, tmp_path: Path) -> None:
    other = tmp_path / "tool"
    other.mkdir()
    for split, name in (("train", "train"), ("val", "valid")):
        (root / split).rename(other / name)
        file = root / f"annotations/instances_{split}.json"
        file.rename(other / name / "_annotations.coco.json")
    assert len(read(other)) == 8
    assert len(read(other, 1)) == 3


def test_compressed_run_lengths_are_masks(root: Path) -> None:
    pycocotools = pytest.importorskip("pycocotools.mask")
    mask = np.zeros((SIDE, SIDE), dtype=np.uint8)
    mask[3:20, 5:9] = 1
    mask[10, 30:40] = 1
    encoded = pycocotools.encode(np.asfortranarray(mask))
    plain = {"size": [SIDE, SIDE], "counts": encoded["counts"].decode()}
    change_coco(root, "train", "annotations", 0, segmentation=plain)
    recipe = tiny_detection(root)
    recipe = replace(recipe, data=replace(recipe.data, flip=0.0))
    images: Any = open_annotated_images(recipe).source.training_set(INPUT, 0)
    assert (images[1][1]["masks"][0].numpy() == mask).all()


@pytest.mark.parametrize(
    ("part", "changes", "named"),
    [
        ("annotations", {"image_id": 1}, ["annotation 5", "image 1", "not in its images"]),
        ("annotations", {"category_id": 4}, ["annotation 5", "category 4"]),
        ("annotations", {"category_id": "3"}, ["category '3'"]),
        ("annotations", {"bbox": [1, 2, 3]}, ["bbox of four numbers"]),
        ("annotations", {"bbox": None}, ["bbox of four numbers"]),
        ("annotations", {"bbox": [1, 2, 3, float("nan")]}, ["bbox of four numbers"]),
        ("annotations", {"bbox": [1, 2, -3, 4]}, ["negative size"]),
        ("annotations", {"area": "large"}, ["the area 'large'"]),
        ("annotations", {"segmentation": [[1, 2, 3, 4]]}, ["fewer than three points"]),
        ("annotations", {"segmentation": [1, 2, 3]}, ["fewer than three points"]),
        ("annotations", {"segmentation": "mask"}, ["neither a list of polygons nor run lengths"]),
        ("annotations", {"segmentation": {"counts": [3]}}, ["no size"]),
        ("annotations", {"segmentation": {"size": [9, 9], "counts": [81]}}, ["9x9", "48x48"]),
        ("annotations", {"segmentation": {"size": [48, 48], "counts": [3]}}, ["cover 3", "2304"]),
        ("annotations", {"segmentation": {"size": [48, 48], "counts": "52P"}}, ["end early"]),
        ("annotations", {"segmentation": {"size": [48, 48], "counts": "\t"}}, ["foreign"]),
        ("annotations", {"segmentation": None}, ["1 of the 13 objects", "--head faster_rcnn"]),
        ("images", {"id": 9}, ["two images have the id 9"]),
        ("images", {"id": None}, ["needs a whole id"]),
        ("images", {"file_name": "away.png"}, ["no image", "away.png"]),
        ("images", {"file_name": 7}, ["file_name"]),
        ("images", {"height": 0}, ["a height and a width"]),
        ("images", {"width": 50}, ["48x48", "48x50", "of one size"]),
        ("categories", {"id": 3}, ["there twice"]),
        ("categories", {"name": "wide"}, ["'wide'", "there twice"]),
        ("categories", {"name": "tall"}, ["different categories", "high, tall"]),
        ("categories", {"name": None}, ["whole id and a name"]),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_in_one_line(
    part: str, changes: dict[str, Any], named: list[str], root: Path
) -> None:
    change_coco(root, "train", part, 0, **changes)
    with refused(*named):
        open_annotated_images(tiny_detection(root))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", ["no JSON"]),
        ("[1, 2]", ["the lists images, annotations and categories"]),
        ('{"images": [], "annotations": []}', ["the lists images, annotations and categories"]),
        ('{"images": [3], "annotations": [], "categories": []}', ["each entry of images"]),
        ('{"images": [], "annotations": [], "categories": []}', ["no categories"]),
        (
            '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}',
            ["no images"],
        ),
        ("[" * 10**5, ["no JSON"]),
    ],
    ids=["empty", "list", "no categories", "number", "nothing", "no images", "deep"],
)
def test_what_is_not_cocos_format_is_refused(text: str, named: list[str], root: Path) -> None:
    (root / "annotations/instances_train.json").write_text(text)
    with refused("instances_train.json", *named):
        read(root)


def test_folders_of_another_layout_are_refused(tmp_path: Path, root: Path) -> None:
    with refused("no folder", "nowhere"):
        find_splits(tmp_path / "nowhere")
    with refused("instances_train2017.json"):
        find_splits(tmp_path)
    (root / "val").rename(root / "test")
    with refused("neither in val/ nor in images/val/"):
        find_splits(root)


@pytest.mark.parametrize("name", ["objects", "wide"])
def test_the_category_of_a_project_is_skipped(name: str, root: Path) -> None:
    """Annotation tools add one that groups all others, sometimes of the same name as a class."""
    for split in ("train", "val"):
        file = root / f"annotations/instances_{split}.json"
        content = json.loads(file.read_text())
        for category in content["categories"]:
            category["supercategory"] = name
        content["categories"].append({"id": 0, "name": name, "supercategory": "none"})
        file.write_text(json.dumps(content))
    source = open_annotated_images(tiny_detection(root)).source
    assert source.class_names == CLASSES
    assert f"the category {name!r} of training is skipped" in "\n".join(map(str, source.notes))
    change_coco(root, "val", "annotations", 0, category_id=0)
    with refused("different categories" if name == "objects" else "is there twice"):
        open_annotated_images(tiny_detection(root))


def test_a_category_that_names_itself_as_its_group_stays(root: Path) -> None:
    """As COCO's own `person` does."""
    for split in ("train", "val"):
        for number, name in enumerate(("high", "wide")):
            change_coco(root, split, "categories", number, supercategory=name)
    write = json.loads((root / "annotations/instances_train.json").read_text())
    assert write["categories"][0]["supercategory"] == "high"
    assert read(root).class_names == CLASSES


def test_objects_that_have_no_area_in_float32_are_not_trained_on(root: Path) -> None:
    change_coco(root, "train", "annotations", 0, bbox=[SIDE - 1e-6, 2, 5, 9])
    change_coco(root, "train", "annotations", 1, bbox=[-12, 2, 12.000001, 9])
    images: Any = open_annotated_images(tiny_detection(root)).source.training_set(INPUT, 0)
    for key in range(5 * 8):
        boxes = images[key][1]["boxes"]
        assert (boxes[:, 2:] > boxes[:, :2]).all()


def test_categories_in_another_order_are_refused(root: Path) -> None:
    image = {"id": 1, "file_name": "0.png", "height": SIDE, "width": SIDE}
    categories = [{"id": 7, "name": "wide"}, {"id": 3, "name": "high"}]
    write_coco(root, "val", [image], [], categories)
    with refused("different categories", "order of their ids"):
        open_annotated_images(tiny_detection(root))


def test_training_images_without_any_object_are_refused(root: Path) -> None:
    image = {"id": 1, "file_name": "0.png", "height": SIDE, "width": SIDE}
    categories = [{"id": 7, "name": "high"}, {"id": 3, "name": "wide"}]
    write_coco(root, "train", [image], [], categories)
    with refused("no training image has an object", "1 images and 0 annotations"):
        open_annotated_images(tiny_detection(root))


def test_a_damaged_image_is_named_or_skipped(root: Path) -> None:
    (root / "train/3.png").write_bytes(b"no image")
    (root / "val/0.png").write_bytes(b"no image")
    recipe = tiny_detection(root)
    with refused("3.png"):
        open_annotated_images(recipe)
    recipe = replace(recipe, data=replace(recipe.data, corrupt_images="skip"))
    with warned(r"[30].png"):
        source = open_annotated_images(recipe).source
    assert source.corrupt_count() == 2
    assert source.validation_set is not None
    images: Any = source.validation_set(INPUT)
    assert images[0] == (0, None)
    assert images[1][1].shape == (3, SIDE, SIDE)


def test_an_image_is_made_grey_for_a_backbone_of_one_channel(root: Path) -> None:
    grey = replace(INPUT, channels=1, mean=(0.5,), std=(0.5,))
    images: Any = open_annotated_images(tiny_detection(root)).source.training_set(grey, 0)
    assert images[1][0].shape == (1, SIDE, SIDE)


def test_the_identity_of_a_set_is_that_of_images_and_annotations(root: Path) -> None:
    recipe = tiny_detection(root)
    before = open_annotated_images(recipe).source
    again = open_annotated_images(recipe).source
    assert before.identity == again.identity
    change_coco(root, "train", "annotations", 0, bbox=[1, 1, 5, 5])
    changed = open_annotated_images(recipe).source
    assert before.identity != changed.identity
    assert before.validation_identity == changed.validation_identity
    Image.new("RGB", (SIDE, SIDE)).save(root / "val/0.png")
    assert open_annotated_images(recipe).source.validation_identity != before.validation_identity
    file = root / "annotations/instances_train.json"
    file.write_text(json.dumps(json.loads(file.read_text()), indent=1))
    assert open_annotated_images(recipe).source.identity == changed.identity
