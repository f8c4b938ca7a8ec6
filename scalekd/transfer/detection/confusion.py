"""Which classes a detector takes for which: its predictions against the objects that they cover."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_area, box_iou

from scalekd.transfer.detection.coco import CocoSplit, Instance
from scalekd.transfer.detection.scores import FoundObjects

LEAST_OVERLAP = 0.5
"""Intersection over union of two boxes from which on they are of one object."""


def count_confusion(split: CocoSplit, found: Sequence[FoundObjects], min_score: float) -> Tensor:
    """Count objects by their class and by the class that is predicted for them.

    A prediction is of the object that it overlaps most and that no prediction of a higher score
    has; its class does not matter. One that is of no object and lies in a crowd is not counted, as
    in COCO's metrics.

    Args:
        split: the annotated images.
        found: what is predicted for its images.
        min_score: predictions of a lower score are skipped.

    Returns:
        (classes + 1, classes + 1): rows are annotated classes and columns predicted ones; the last
        row has predictions where no object is, the last column objects that were missed.
    """
    classes = len(split.class_names)
    counts = torch.zeros(classes + 1, classes + 1, dtype=torch.int64)
    for each in found:
        instances = [i for i in split.instances[each.image] if not i.is_empty]
        objects = [i for i in instances if not i.crowd]
        overlaps = box_iou(each.boxes.float(), _boxes(objects))
        in_crowds = _shares_within(each.boxes.float(), _boxes([i for i in instances if i.crowd]))
        missed = dict(enumerate(objects))
        for number in each.scores.argsort(descending=True, stable=True).tolist():
            if each.scores[number] < min_score:
                break
            label = int(each.labels[number])
            row = overlaps[number].tolist()
            best = max(missed, key=row.__getitem__, default=None)
            if best is not None and row[best] >= LEAST_OVERLAP:
                counts[missed.pop(best).label, label] += 1
            elif not (in_crowds[number] >= LEAST_OVERLAP).any():
                counts[classes, label] += 1
        for instance in missed.values():
            counts[instance.label, classes] += 1
    return counts


def _shares_within(boxes: Tensor, crowds: Tensor) -> Tensor:
    """The share of each box (N, 4) that lies within each crowd (M, 4), as (N, M): its size is no
    matter, since a crowd is larger than one of those in it."""
    upper_left = torch.maximum(boxes[:, None, :2], crowds[None, :, :2])
    lower_right = torch.minimum(boxes[:, None, 2:], crowds[None, :, 2:])
    shares: Tensor = (lower_right - upper_left).clamp(min=0).prod(dim=2)
    return shares.div_(box_area(boxes)[:, None].clamp(min=1e-9))


def _boxes(instances: Sequence[Instance]) -> Tensor:
    return torch.tensor([instance.box for instance in instances]).reshape(-1, 4)
