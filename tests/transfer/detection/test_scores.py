"""Average precisions are those that pycocotools, and another program, compute from files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from scalekd.transfer.detection.coco import CocoFiles, CocoSplit, read_coco
from scalekd.transfer.detection.confusion import count_confusion
from scalekd.transfer.detection.masks import RunLengths, decode_mask, encode_masks
from scalekd.transfer.detection.scores import DetectionScores, FoundObjects, score_detections

IMAGES, CATEGORIES = 220, (3, 4, 8, 20, 21)
SUMMARY = "ap", "ap50", "ap75", "small", "medium", "large"


def random_mask(generator: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A blob of any size that is nowhere empty."""
    down, across = (int(generator.integers(4, side)) for side in (height, width))
    blob = ndimage.gaussian_filter(generator.normal(size=(down, across)), 2)
    mask = np.zeros((height, width), dtype=np.uint8)
    top, left = (
        int(generator.integers(0, side - part + 1))
        for side, part in ((height, down), (width, across))
    )
    mask[top : top + down, left : left + across] = blob > np.quantile(blob, 0.3)
    return mask


def box_of(mask: np.ndarray) -> list[float]:
    rows, columns = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
    top, left = int(rows[0]), int(columns[0])
    return [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1]


def write_annotations(folder: Path) -> Path:
    """Images of many sizes with objects of all sizes, crowds, and images without any object."""
    generator = np.random.default_rng(5)
    images, annotations = [], []
    for number in range(IMAGES):
        height, width = (int(side) for side in generator.integers(40, 200, size=2))
        name = f"{number}.png"
        (folder / name).touch()
        images.append({"id": 3 * number + 1, "file_name": name, "height": height, "width": width})
        for _ in range(int(generator.integers(0, 6))):
            mask = random_mask(generator, height, width)
            (encoded,) = encode_masks(mask[None])
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": 3 * number + 1,
                    "category_id": int(generator.choice(CATEGORIES[:4])),  # one has no object
                    "bbox": box_of(mask),
                    "area": int(mask.sum()),
                    "iscrowd": int(generator.random() < 0.1),
                    "segmentation": {**encoded, "counts": encoded["counts"].decode()},
                }
            )
    categories = [{"id": number, "name": f"class {number}"} for number in CATEGORIES]
    file = folder / "annotations.json"
    content = {"images": images, "annotations": annotations, "categories": categories}
    file.write_text(json.dumps(content))
    return file


def predict(split: CocoSplit) -> list[FoundObjects]:
    """Predictions that are sometimes right: shifted, of another class, twice, missing, wrong; with
    equal scores among them."""
    generator = np.random.default_rng(6)
    found = []
    for number, described in enumerate(split.images):
        height, width = described.height, described.width
        masks, labels = [], []
        for instance in split.instances[number]:
            encoded = instance.segmentation
            mask = decode_mask({**encoded, "counts": encoded["counts"].encode()})
            for _ in range(int(generator.choice([0, 1, 1, 1, 2]))):
                shift = generator.integers(-1, 2, size=2)
                moved = np.roll(mask, shift, axis=(0, 1))
                masks.append(moved if moved.any() else mask)
                right = generator.random() < 0.8
                labels.append(instance.label if right else int(generator.integers(5)))
        for _ in range(int(generator.choice([0, 0, 1, 3]))):
            masks.append(random_mask(generator, height, width))
            labels.append(int(generator.integers(5)))
        boxes = torch.tensor([box_of(mask) for mask in masks], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        boxes += torch.from_numpy(generator.uniform(-1, 1, boxes.shape)).float()
        boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        encoded_masks: list[RunLengths] = encode_masks(np.array(masks)) if masks else []
        scores = torch.from_numpy(np.round(generator.random(len(masks)), 2)).float()
        found.append(
            FoundObjects(number, boxes, torch.tensor(labels).long(), scores, encoded_masks)
        )
    return found


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CocoSplit, Any]:
    folder = tmp_path_factory.mktemp("coco")
    file = write_annotations(folder)
    split = read_coco(CocoFiles(file, folder), "validation")
    return file, split, predict(split)


def results_file(folder: Path, found: list[FoundObjects], kind: str) -> Path:
    """Predictions in COCO's format of results, as its website takes them."""
    results = []
    for each in found:
        for number in range(len(each.labels)):
            left, top, right, bottom = each.boxes[number].double().tolist()
            result: dict[str, Any] = {
                "image_id": 3 * each.image + 1,
                "category_id": CATEGORIES[int(each.labels[number])],
                "score": float(each.scores[number]),
            }
            if kind == "bbox":
                result["bbox"] = [left, top, right - left, bottom - top]
            else:
                assert each.masks is not None
                encoded = each.masks[number]
                result["segmentation"] = {**encoded, "counts": encoded["counts"].decode()}
            results.append(result)
    file = folder / f"{kind}.json"
    file.write_text(json.dumps(results))
    return file


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("program", ["pycocotools", "faster_coco_eval"])
def test_scores_equal_those_of_programs_that_read_files(
    program: str, kind: str, measured: tuple[Path, CocoSplit, Any], tmp_path: Path
) -> None:
    """pycocotools, and a second implementation in another language."""
    file, split, found = measured
    if program == "pycocotools":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    else:
        module = pytest.importorskip("faster_coco_eval")
        COCO, COCOeval = module.COCO, module.COCOeval_faster
    annotated = COCO(str(file))
    results = annotated.loadRes(str(results_file(tmp_path, found, kind)))
    evaluation = COCOeval(annotated, results, kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    scores = score_detections(split, found, has_masks=True)
    ours = scores.box if kind == "bbox" else scores.mask
    assert ours is not None
    theirs = dict(zip(SUMMARY, list(evaluation.stats)[:6], strict=True))
    for name, value in theirs.items():
        assert getattr(ours, name) == pytest.approx(value, abs=1e-9), name
    assert ours.recall == pytest.approx(evaluation.stats[8], abs=1e-9)
    assert 0.2 < theirs["ap"] < 0.9
    assert min(theirs.values()) > 0.1, "a range of areas was not tried"
    for number, each in enumerate(scores.classes):
        precision = np.asarray(evaluation.eval["precision"])[:, :, number, 0, -1]
        own = each.box if kind == "bbox" else each.mask
        if (precision > -1).any():
            assert own == pytest.approx(precision[precision > -1].mean(), abs=1e-9)
        else:
            assert own is None
    assert scores.classes[4].objects == 0
    assert sum(each.objects for each in scores.classes) == split.objects - split.crowds > 400


def test_images_that_are_not_given_do_not_count(measured: tuple[Path, CocoSplit, Any]) -> None:
    _, split, found = measured
    half = score_detections(split, found[:100], has_masks=False)
    assert half.mask is None
    assert half.box.ap != score_detections(split, found, has_masks=False).box.ap
    objects = sum(not i.crowd for n in range(100) for i in split.instances[n])
    assert sum(each.objects for each in half.classes) == objects


def test_nothing_found_scores_zero_and_nothing_annotated_nothing(
    measured: tuple[Path, CocoSplit, Any],
) -> None:
    _, split, found = measured
    nothing = [
        FoundObjects(e.image, torch.zeros(0, 4), torch.zeros(0).long(), torch.zeros(0), [])
        for e in found
    ]
    scores = score_detections(split, nothing, has_masks=True)
    assert scores.box.ap == 0
    assert scores.mask is not None
    assert scores.mask.ap50 == 0
    empty = [e for e in found if not split.instances[e.image]]
    assert score_detections(split, empty, has_masks=True).box.ap is None


def test_scores_are_read_from_what_they_become(measured: tuple[Path, CocoSplit, Any]) -> None:
    from dataclasses import asdict

    _, split, found = measured
    for has_masks in (False, True):
        scores = score_detections(split, found[:20], has_masks=has_masks)
        assert DetectionScores.from_dict(json.loads(json.dumps(asdict(scores)))) == scores


def test_the_confusion_counts_each_object_once(tmp_path: Path) -> None:
    boxes = {"sheep": [0, 0, 10, 10], "dog": [20, 0, 10, 10], "herd": [0, 30, 30, 30]}
    annotations = [
        {"id": n, "image_id": 0, "category_id": n % 2, "bbox": box, "iscrowd": int(name == "herd")}
        for n, (name, box) in enumerate(boxes.items())
    ]
    categories = [{"id": 0, "name": "sheep"}, {"id": 1, "name": "dog"}]
    images = [{"id": 0, "file_name": "0.png", "height": 60, "width": 60}]
    (tmp_path / "0.png").touch()
    file = tmp_path / "annotations.json"
    content = {"images": images, "annotations": annotations, "categories": categories}
    file.write_text(json.dumps(content))
    split = read_coco(CocoFiles(file, tmp_path), "validation")
    found = FoundObjects(
        image=0,
        boxes=torch.tensor(
            [
                [0, 0, 10, 10],  # the sheep, taken for a dog
                [0, 0, 10, 9],  # the sheep again, of a lower score
                [20, 0, 30, 10],  # the dog, of too low a score
                [1, 31, 29, 59],  # the herd
                [40, 0, 50, 10],  # nothing
                [2, 32, 6, 40],  # one of the herd
            ]
        ).float(),
        labels=torch.tensor([1, 0, 1, 0, 0, 0]),
        scores=torch.tensor([0.9, 0.8, 0.4, 0.7, 0.6, 0.5]),
    )
    counts = count_confusion(split, [found], min_score=0.5)
    assert counts.tolist() == [[0, 1, 0], [0, 0, 1], [2, 0, 0]]
    assert count_confusion(split, [found], min_score=0.0).tolist()[1] == [0, 1, 0]


def test_what_was_found_passes_between_ranks_bit_identical() -> None:
    masks = encode_masks((torch.rand(3, 20, 30) > 0.5).byte().numpy())
    found = FoundObjects(4, 100 * torch.rand(3, 4), torch.tensor([2, 0, 1]), torch.rand(3), masks)
    nothing = FoundObjects(7, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0))
    for one in (found, nothing):
        again = FoundObjects.from_plain(json.loads(json.dumps(one.to_plain())))
        assert (again.image, again.masks) == (one.image, one.masks)
        for name in ("boxes", "labels", "scores"):
            before, after = getattr(one, name), getattr(again, name)
            assert torch.equal(before, after)
            assert before.dtype == after.dtype
