"""The generator of scenes: label maps and COCO's annotations agree, and the seed decides."""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as masks

from scalekd.data.fashion_mnist import DEBIAN_FOLDER
from scalekd.transfer.segmentation.images import open_labelled_images
from scalekd.transfer.segmentation.recipe import SegmentData

pytestmark = pytest.mark.skipif(
    not DEBIAN_FOLDER.is_dir(), reason="dataset-fashion-mnist is not installed"
)

TRAINING, VALIDATION = 30, 6


@pytest.fixture(scope="module")
def scenes() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "experiments" / "transfer"))
        return importlib.import_module("scenes")


@pytest.fixture(scope="module")
def written(scenes: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out: Path = tmp_path_factory.mktemp("scenes")
    scenes.write_scenes(out, training=TRAINING, validation=VALIDATION, seed=1)
    return out


def decode(annotation: dict[str, Any], height: int, width: int) -> np.ndarray:
    """The mask of an annotation: of polygons by pycocotools, of run lengths column by column."""
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, list):
        drawn = masks.merge(masks.frPyObjects(segmentation, height, width))
        return np.asarray(masks.decode(drawn), dtype=bool)
    assert segmentation["size"] == [height, width]
    lengths = segmentation["counts"]
    flat = np.repeat(np.arange(len(lengths)) % 2, lengths)
    return flat.reshape(width, height).T.astype(bool)


def test_the_folder_is_read_as_ade20ks(written: Path) -> None:
    source = open_labelled_images(SegmentData(str(written), workers=0))
    assert [split.images for split in source.splits] == [TRAINING, VALIDATION]
    assert source.class_names[:2] == ("background", "T-shirt/top")


def test_masks_boxes_and_label_maps_agree(written: Path) -> None:
    coco = json.loads((written / "annotations/instances_training.json").read_text())
    assert len({a["id"] for a in coco["annotations"]}) == len(coco["annotations"]) > TRAINING
    assert any(a["iscrowd"] for a in coco["annotations"])
    kinds = [type(a["segmentation"]) for a in coco["annotations"]]
    assert kinds.count(list) > kinds.count(dict) > 0
    annotated = {a["image_id"] for a in coco["annotations"]}
    assert annotated < {image["id"] for image in coco["images"]}, "no image is empty"
    for image in coco["images"]:
        file = written / "annotations/training" / image["file_name"]
        classes = np.asarray(Image.open(file))
        assert classes.shape == (image["height"], image["width"])
        for annotation in (a for a in coco["annotations"] if a["image_id"] == image["id"]):
            mask = decode(annotation, image["height"], image["width"])
            assert set(classes[mask]) == {annotation["category_id"]}
            left, top, width, height = annotation["bbox"]
            assert mask.sum() == annotation["area"] >= 25
            inside = mask[top : top + height, left : left + width]
            assert inside.sum() == mask.sum()
            assert inside[0].any()
            assert inside[-1].any()
            assert inside[:, 0].any()
            assert inside[:, -1].any()


def test_scenes_depend_on_the_seed_alone(scenes: Any, written: Path, tmp_path: Path) -> None:
    for seed, same in ((1, True), (2, False)):
        out = tmp_path / str(seed)
        scenes.write_scenes(out, training=2, validation=1, seed=seed)
        for file in ("images/training/00001.png", "annotations/validation/00000.png"):
            assert ((out / file).read_bytes() == (written / file).read_bytes()) == same


def test_polygons_are_the_masks_that_they_were_made_of(scenes: Any) -> None:
    """Also where parts touch at a corner, and where a hole makes run lengths of them."""
    generator = np.random.default_rng(0)
    kinds = []
    for _ in range(60):
        mask = generator.random(generator.integers(3, 12, size=2)) < 0.7
        mask[0, 0] = True
        annotation = {"segmentation": scenes.polygons(mask)}
        assert (decode(annotation, *mask.shape) == mask).all()
        kinds.append(type(annotation["segmentation"]))
    assert min(kinds.count(list), kinds.count(dict)) > 5
    touching = np.array([[1, 1, 0], [1, 0, 1], [1, 1, 1]], dtype=bool)
    assert (decode({"segmentation": scenes.polygons(touching)}, 3, 3) == touching).all()
    assert scenes.outline(np.ones((5, 7), dtype=bool)) == [0, 0, 7, 0, 7, 5, 0, 5]
