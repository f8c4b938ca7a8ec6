"""The scores of a detection: COCO's average precisions, computed by pycocotools itself."""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scalekd.transfer.detection.coco import CocoSplit
from scalekd.transfer.detection.masks import RunLengths, import_pycocotools

ALL, SMALL, MEDIUM, LARGE = range(4)
"""Numbers of pycocotools' ranges of areas: all; below 32², below 96², and above it."""

AP50, AP75 = 0, 5
"""Numbers of the thresholds of 0.50 and 0.75 among the ten from 0.50 to 0.95."""


@dataclass(frozen=True)
class FoundObjects:
    """What is predicted for one image, on the CPU.

    Attributes:
        image: number of the image in its split.
        boxes: left, top, right, bottom in pixels (N, 4).
        labels: numbers of the classes (N,), from 0.
        scores: (N,), from 0 to 1.
        masks: of each, or None.
    """

    image: int
    boxes: Tensor
    labels: Tensor
    scores: Tensor
    masks: list[RunLengths] | None = None

    def to_plain(self) -> dict[str, Any]:
        """All of it as JSON can hold it."""
        masks = self.masks and [{**m, "counts": m["counts"].decode()} for m in self.masks]
        tensors = {name: getattr(self, name).tolist() for name in ("boxes", "labels", "scores")}
        return {"image": self.image, **tensors, "masks": masks}

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> "FoundObjects":
        """What `to_plain` gave, bit-identical."""
        masks = plain["masks"]
        return cls(
            image=plain["image"],
            boxes=torch.tensor(plain["boxes"], dtype=torch.float32).reshape(-1, 4),
            labels=torch.tensor(plain["labels"], dtype=torch.int64),
            scores=torch.tensor(plain["scores"], dtype=torch.float32),
            masks=masks and [{**m, "counts": m["counts"].encode()} for m in masks],
        )


@dataclass(frozen=True)
class AveragePrecision:
    """COCO's summary of boxes or of masks, as shares; None where no annotated object counts.

    Attributes:
        ap: mean over the classes and over the overlaps 0.50, 0.55, ..., 0.95 of the average
            precision, with at most 100 predictions an image.
        ap50, ap75: at the overlap 0.50, and 0.75.
        small, medium, large: of objects with an area below 32² pixels, from there to 96², and
            above.
        recall: mean recall over the same classes and overlaps.
    """

    ap: float | None
    ap50: float | None
    ap75: float | None
    small: float | None
    medium: float | None
    large: float | None
    recall: float | None


@dataclass(frozen=True)
class ClassPrecision:
    """The average precisions of one class.

    Attributes:
        name: of the class.
        box, mask: average precision of its boxes, and of its masks; None where none counts.
        objects: how many of it are annotated, without crowds.
    """

    name: str
    box: float | None
    mask: float | None
    objects: int


@dataclass(frozen=True)
class DetectionScores:
    """The scores of a detector.

    Attributes:
        box: of the boxes.
        mask: of the masks; None without.
        classes: of each class, in the order of the labels.
    """

    box: AveragePrecision
    mask: AveragePrecision | None
    classes: tuple[ClassPrecision, ...]

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> "DetectionScores":
        """The scores that `dataclasses.asdict` made `plain` from."""
        mask = plain["mask"]
        return cls(
            box=AveragePrecision(**plain["box"]),
            mask=None if mask is None else AveragePrecision(**mask),
            classes=tuple(ClassPrecision(**each) for each in plain["classes"]),
        )


def score_detections(
    split: CocoSplit, found: Sequence[FoundObjects], *, has_masks: bool
) -> DetectionScores:
    """Compute the scores.

    Args:
        split: the annotated images.
        found: what is predicted for those of its images that count; the others are skipped.
        has_masks: whether masks are measured, too.
    """
    annotated = _annotations(split, found)
    box, box_classes = _evaluate(annotated, found, "bbox")
    mask: AveragePrecision | None = None
    mask_classes: list[float | None] = [None] * len(split.class_names)
    if has_masks:
        mask, mask_classes = _evaluate(annotated, found, "segm")
    counts = np.zeros(len(split.class_names), dtype=int)
    for annotation in annotated.dataset["annotations"]:
        counts[annotation["category_id"]] += not annotation["iscrowd"]
    rows = zip(split.class_names, box_classes, mask_classes, counts.tolist(), strict=True)
    return DetectionScores(box=box, mask=mask, classes=tuple(ClassPrecision(*row) for row in rows))


def _annotations(split: CocoSplit, found: Sequence[FoundObjects]) -> Any:
    """The annotated objects of the images that count, as pycocotools' `COCO`."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in (each.image for each in found):
        described = split.images[number]
        images.append({"id": number, "height": described.height, "width": described.width})
        for instance in split.instances[number]:
            left, top, right, bottom = instance.box
            annotations.append(
                {
                    "id": len(annotations) + 1,  # 0 would count as not matched
                    "image_id": number,
                    "category_id": instance.label,
                    "bbox": [left, top, right - left, bottom - top],
                    "area": instance.area,
                    "iscrowd": int(instance.crowd),
                    "segmentation": instance.segmentation or [instance.outline],
                }
            )
    categories = [{"id": label, "name": name} for label, name in enumerate(split.class_names)]
    return _index({"images": images, "annotations": annotations, "categories": categories})


def _evaluate(
    annotated: Any, found: Sequence[FoundObjects], kind: str
) -> tuple[AveragePrecision, list[float | None]]:
    """The summary of boxes ("bbox") or masks ("segm"), and the average precision of each class."""
    from pycocotools.cocoeval import COCOeval

    predicted = _index({**annotated.dataset, "annotations": _predictions(found, kind)})
    evaluation = COCOeval(annotated, predicted, kind)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints
        evaluation.evaluate()
        evaluation.accumulate()
    # (overlaps, recalls, classes, ranges of areas, 3 largest numbers of predictions)
    precision, recall = evaluation.eval["precision"][..., -1], evaluation.eval["recall"][..., -1]
    summary = AveragePrecision(
        ap=_mean(precision[..., ALL]),
        ap50=_mean(precision[AP50, ..., ALL]),
        ap75=_mean(precision[AP75, ..., ALL]),
        small=_mean(precision[..., SMALL]),
        medium=_mean(precision[..., MEDIUM]),
        large=_mean(precision[..., LARGE]),
        recall=_mean(recall[..., ALL]),
    )
    classes = range(precision.shape[2])
    return summary, [_mean(precision[:, :, number, ALL]) for number in classes]


def _predictions(found: Sequence[FoundObjects], kind: str) -> list[dict[str, Any]]:
    """Predictions as COCO's results; an area decides on small, medium and large: that of the box,
    or of the mask."""
    functions = import_pycocotools()
    predictions: list[dict[str, Any]] = []
    for each in found:
        boxes = each.boxes.double()
        sizes = boxes[:, 2:] - boxes[:, :2]
        corners, sides = boxes[:, :2].tolist(), sizes.tolist()
        masks = each.masks if kind == "segm" and each.masks is not None else [None] * len(sides)
        rows = zip(corners, sides, each.labels.tolist(), each.scores.tolist(), masks, strict=True)
        for (left, top), (width, height), label, score, mask in rows:
            area = width * height if mask is None else float(functions.area(mask))
            prediction = {
                "id": len(predictions) + 1,
                "image_id": each.image,
                "category_id": label,
                "bbox": [left, top, width, height],
                "score": score,
                "area": area,
                "iscrowd": 0,
            }
            predictions.append(prediction if mask is None else {**prediction, "segmentation": mask})
    return predictions


def _index(dataset: dict[str, Any]) -> Any:
    from pycocotools.coco import COCO

    with contextlib.redirect_stdout(io.StringIO()):  # it prints
        coco = COCO()
        coco.dataset = dataset
        coco.createIndex()
    return coco


def _mean(values: np.ndarray) -> float | None:
    """The mean of what counts: pycocotools marks the rest by -1."""
    known = values[values > -1]
    return float(known.mean()) if known.size else None
