"""The validation of a detector while it trains: average precision over the whole validation set."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from scalekd.device import best_device
from scalekd.distributed import ranks
from scalekd.recipe import Precision
from scalekd.training.performance import autocast
from scalekd.training.validation import ScoredValidation
from scalekd.transfer.detection.coco import CocoSplit
from scalekd.transfer.detection.confusion import count_confusion
from scalekd.transfer.detection.detector import to_unit
from scalekd.transfer.detection.masks import encode_masks
from scalekd.transfer.detection.scores import DetectionScores, FoundObjects, score_detections

MASK_PROBABILITY = 0.5
"""From which on a pixel belongs to a mask."""


@torch.no_grad()
def find_objects(
    detector: nn.Module, image: Tensor, number: int, precision: Precision = "32-true"
) -> FoundObjects:
    """What a detector in eval mode finds in an image of bytes (channels, H, W).

    Args:
        detector: on the device that trains.
        image: on the CPU.
        number: of the image in its split.
        precision: precision of the pass.
    """
    device = best_device()
    with autocast(precision, device):
        (found,) = detector([to_unit(image, device)])
    masks = None
    if "masks" in found:
        masks = encode_masks((found["masks"][:, 0] >= MASK_PROBABILITY).byte().cpu().numpy())
    boxes, labels, scores = (found[name].cpu() for name in ("boxes", "labels", "scores"))
    return FoundObjects(number, boxes.float(), labels - 1, scores.float(), masks)


class DetectionValidation(ScoredValidation):
    """Measures the average precision of a run's detector; see `ScoredValidation`.

    The score is that of the boxes.

    Args:
        batches: validation images, as `ValidationImages` gives them, one at a time.
        split: the validation split, with its objects.
        has_masks: whether masks are measured, too.
        min_score: smallest score of a prediction in the confusion matrix.
        every_steps: steps between two validations.
        precision: precision of the passes.
        state: state of the validation to resume from.

    Attributes:
        scores: at the last validation; None before.
        confusion: at the last validation, see `count_confusion`; None before.
    """

    name = "box_ap"

    def __init__(
        self,
        batches: Iterable[Sequence[tuple[int, Tensor | None]]],
        *,
        split: CocoSplit,
        has_masks: bool,
        min_score: float,
        every_steps: int,
        precision: Precision,
        state: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(every_steps=every_steps, state=state)
        self.batches, self.split, self.has_masks = batches, split, has_masks
        self.min_score, self.precision = min_score, precision
        stored = (state or {}).get("scores")
        self.scores = None if stored is None else DetectionScores.from_dict(stored)
        self.confusion: Tensor | None = (state or {}).get("confusion")

    @property
    def has_images(self) -> bool:
        """Whether there is a validation set, which every detection has."""
        return True

    def score_of(self, student: nn.Module) -> float:
        """The average precision of `student`'s boxes, over the images of all ranks; 0 where no
        annotated object counts."""
        mine = [
            find_objects(student, image, number, self.precision)
            for items in self.batches
            for number, image in items
            if image is not None
        ]
        found = sorted(_of_all_ranks(mine), key=lambda each: each.image)
        self.scores = score_detections(self.split, found, has_masks=self.has_masks)
        self.confusion = count_confusion(self.split, found, self.min_score)
        return self.scores.box.ap or 0.0

    def reported(self) -> dict[str, Any]:
        """The average precisions of boxes and masks."""
        assert self.scores is not None
        mask = self.scores.mask
        found = {"box_ap": self.scores.box.ap, "mask_ap": None if mask is None else mask.ap}
        return {"scores": {name: ap for name, ap in found.items() if ap is not None}}

    def state_dict(self) -> dict[str, Any]:
        """Return what the validation needs to resume."""
        scores = None if self.scores is None else asdict(self.scores)
        return {**super().state_dict(), "scores": scores, "confusion": self.confusion}


def _of_all_ranks(mine: list[FoundObjects]) -> list[FoundObjects]:
    if ranks.world_size() == 1:
        return mine
    plain = ranks.gather_lists([each.to_plain() for each in mine])
    return [FoundObjects.from_plain(each) for each in plain]
