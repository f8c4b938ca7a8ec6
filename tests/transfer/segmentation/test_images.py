"""Folders of images with label maps: layouts, labels, crops, and what is refused."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.refusals import refused
from helpers.scenes import CLASSES, ade20k_folder, scene, voc_folder
from helpers.warned import warned
from PIL import Image

from scalekd.data.source import IGNORED
from scalekd.networks import InputConfig
from scalekd.transfer.segmentation.crops import CropTransform
from scalekd.transfer.segmentation.folders import VOC_CLASSES, find_pairs
from scalekd.transfer.segmentation.images import open_labelled_images
from scalekd.transfer.segmentation.label_maps import LabelCoding, read_label_map
from scalekd.transfer.segmentation.recipe import SegmentData

INPUT = InputConfig(3, (32, 32), (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return ade20k_folder(tmp_path / "scenes")


def data(root: Path, **changes: Any) -> SegmentData:
    return SegmentData(str(root), crop_size=32, workers=0, **changes)


def test_the_layout_of_ade20k_is_read(root: Path) -> None:
    source = open_labelled_images(data(root))
    assert [split.images for split in source.splits] == [8, 3]
    assert source.class_names == CLASSES
    assert source.validation_set is not None
    image, labels = source.validation_set(INPUT)[0]
    pixels, expected = scene(100)
    assert torch.equal(image, torch.from_numpy(pixels).permute(2, 0, 1))
    assert torch.equal(labels, torch.from_numpy(expected).to(torch.int16))


def test_the_layout_of_pascal_voc_is_read(tmp_path: Path) -> None:
    root = voc_folder(tmp_path)
    found = find_pairs(data(root))
    assert [len(found.training), len(found.validation)] == [3, 1]
    assert found.class_names == VOC_CLASSES
    assert find_pairs(SegmentData(str(root), classes=21)).class_names == VOC_CLASSES
    own = find_pairs(SegmentData(str(root), classes=3))
    assert own.class_names == ("class 0", "class 1", "class 2")
    source = open_labelled_images(data(root))
    assert source.validation_set is not None
    _, labels = source.validation_set(INPUT)[0]
    assert torch.equal(labels[:, 1:], torch.from_numpy(scene(3)[1]).to(torch.int16)[:, 1:])
    assert set(labels[:, 0].tolist()) == {IGNORED}


def test_ade20ks_own_table_of_classes_is_read(root: Path) -> None:
    (root / "classes.txt").unlink()
    lines = [
        "Idx\tRatio\tTrain\tVal\tStuff\tName",
        "1\t0.1\t3\t4\t1\twall",
        "2\t0.1\t3\t4\t1\tsky, x",
    ]
    (root / "objectInfo150.txt").write_text("\n".join(lines) + "\n")
    assert find_pairs(data(root)).class_names == ("wall", "sky, x")


def test_labels_of_16_bits_and_a_reduced_zero(tmp_path: Path) -> None:
    values = np.array([[0, 1, 300], [2, 65535, 1]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "labels.png")
    coding = LabelCoding(classes=300, reduce_zero_label=True, ignore_label=65535)
    labels = read_label_map(str(tmp_path / "labels.png"), coding)
    assert labels.tolist() == [[IGNORED, 0, 299], [1, IGNORED, 0]]


def test_labels_that_would_leave_a_class_without_pixels_are_refused(root: Path) -> None:
    with refused("data.ignore_label is 2", "the labels of 3 classes are 0 to 2"):
        open_labelled_images(data(root, ignore_label=2))
    with refused("data.ignore_label is 3", "are 1 to 3"):
        LabelCoding(classes=3, reduce_zero_label=True, ignore_label=3)
    LabelCoding(classes=3, reduce_zero_label=True, ignore_label=0)
    with refused("data.epoch_images is 9", "8 images to train on"):
        open_labelled_images(data(root, epoch_images=9))


def test_masks_of_0_and_255_are_refused_where_255_is_ignored(root: Path) -> None:
    for file in (root / "annotations").rglob("*.png"):
        binary = np.asarray(Image.open(file)) > 0
        Image.fromarray((binary * 255).astype(np.uint8)).save(file)
    (root / "classes.txt").write_text("ground\nthing\n")
    with refused("of the 2 classes", "pixels of ground alone", "the value 255 is ignored"):
        open_labelled_images(data(root))


def test_a_class_without_a_pixel_to_train_on_is_noted(root: Path) -> None:
    assert open_labelled_images(data(root)).notes == []
    (root / "classes.txt").write_text("\n".join([*CLASSES, "unicorn"]))
    (note,) = open_labelled_images(data(root)).notes
    assert note.text == "no training image has a pixel of unicorn"


def test_a_resized_validation_image_keeps_the_labels_of_its_own_size(root: Path) -> None:
    source = open_labelled_images(data(root, short_side=24))
    assert source.validation_set is not None
    image, labels = source.validation_set(INPUT)[1]
    assert (image.shape, labels.shape) == ((3, 24, 24), (48, 48))


def test_a_crop_depends_on_seed_and_key_alone(root: Path) -> None:
    source = open_labelled_images(data(root, color_jitter=0.3))
    first, again, other = (source.training_set(INPUT, seed) for seed in (1, 1, 2))
    torch.rand(7)
    for one, same in zip(first[11], again[11], strict=True):
        assert torch.equal(one, same)
    assert not torch.equal(first[11][0], other[11][0])
    assert not torch.equal(first[11][0], first[19][0])  # the same image in the next epoch


def test_a_crop_keeps_each_pixel_with_its_label() -> None:
    """An image that shows its labels as grey values still does after scale, crop and mirroring."""
    labels = (np.arange(40)[:, None] // 8 + np.arange(60) // 12).astype(np.int16)
    image = Image.fromarray((labels * 20).astype(np.uint8)).convert("RGB")
    settings = SegmentData("any", crop_size=(24, 32), scale=(1.0, 1.0), flip=0.5)
    transform = CropTransform.build(settings, INPUT)
    mirrored = set()
    for seed in range(10):
        torch.manual_seed(seed)
        pixels, classes = transform(image, labels)
        assert (pixels.shape, classes.shape) == ((3, 24, 32), (24, 32))
        assert torch.equal(pixels[0].int(), classes.int() * 20)
        mirrored.add(bool(classes[0, 0] > classes[0, -1]))
    assert mirrored == {True, False}


def test_where_an_image_ends_a_crop_has_the_mean_colour_and_no_labels() -> None:
    image = Image.new("RGB", (20, 10), (255, 255, 255))
    settings = SegmentData("any", crop_size=32, scale=(1.0, 1.0), flip=0.0)
    pixels, labels = CropTransform.build(settings, INPUT)(image, np.zeros((10, 20), np.int16))
    assert pixels[:, 20, 25].tolist() == [128, 102, 76]
    assert (labels == 0).sum() == 200
    assert (labels == IGNORED).sum() == 32 * 32 - 200


def test_crops_with_too_much_of_one_class_are_drawn_again() -> None:
    labels = np.zeros((32, 320), np.int16)
    labels[:, 300:] = 1
    image = Image.new("RGB", (320, 32))
    settings = SegmentData("any", crop_size=32, scale=(1.0, 1.0))
    shares = []
    for share in (1.0, 0.75):
        transform = CropTransform.build(replace(settings, max_class_share=share), INPUT)
        mixed = 0
        for seed in range(30):
            torch.manual_seed(seed)
            mixed += len(transform(image, labels)[1].unique()) > 1
        shares.append(mixed)
    assert shares[1] > 2 * shares[0]


def remove_annotation(root: Path) -> None:
    (root / "annotations/training/0.png").unlink()


def other_size(root: Path) -> None:
    Image.fromarray(scene(0, 40)[1]).save(root / "annotations/training/0.png")


def label_out_of_range(root: Path) -> None:
    Image.fromarray(np.full((48, 48), 3, np.uint8)).save(root / "annotations/validation/0.png")


def in_colours(root: Path) -> None:
    Image.fromarray(scene(0)[0]).save(root / "annotations/training/0.png")


def without_training_images(root: Path) -> None:
    for file in (root / "images/training").iterdir():
        file.unlink()


def without_validation(root: Path) -> None:
    os.rename(root / "images/validation", root / "images/test")


def without_names(root: Path) -> None:
    (root / "classes.txt").unlink()


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (remove_annotation, ["images/training/0.png", "no annotation"]),
        (other_size, ["images/training/0.png", "48x48", "40x40"]),
        (label_out_of_range, ["annotations/validation/0.png", "label 3", "0 to 2"]),
        (in_colours, ["annotations/training/0.png", "RGB"]),
        (without_training_images, ["no image", "images/training"]),
        (without_validation, ["images/validation"]),
        (without_names, ["classes", "--data.classes"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_folder_that_does_not_fit_is_refused(
    damage: Callable[[Path], None], parts: list[str], root: Path
) -> None:
    damage(root)
    with refused(*parts):
        open_labelled_images(data(root))


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with refused("nowhere"):
        open_labelled_images(data(tmp_path / "nowhere"))
    with refused("ADE20K", "Pascal VOC"):
        open_labelled_images(data(tmp_path))


def test_a_name_in_a_list_without_a_file_is_refused(tmp_path: Path) -> None:
    root = voc_folder(tmp_path)
    (root / "SegmentationClass/201.png").unlink()
    with refused("train.txt", "'201'", "annotation"):
        open_labelled_images(data(root))


@pytest.mark.parametrize("kind", ["images", "annotations"])
def test_a_broken_image_stops_or_is_skipped(root: Path, kind: str) -> None:
    file = root / kind / "training/0.png"
    file.write_bytes(file.read_bytes()[:60])
    with refused("training/0.png"):
        open_labelled_images(data(root))
    with warned("skipped"):
        source = open_labelled_images(data(root, corrupt_images="skip"))
    assert source.corrupt_count() == 1
    crops = source.training_set(INPUT, 0)
    assert all(crops[key][0].shape == (3, 32, 32) for key in range(8))


def test_a_broken_validation_image_is_not_measured(root: Path) -> None:
    (root / "images/validation/0.png").write_bytes(b"none")
    with warned("skipped"):
        source = open_labelled_images(data(root, corrupt_images="skip"))
    assert source.validation_set is not None
    assert set(source.validation_set(INPUT)[0][1].unique().tolist()) == {IGNORED}
