"""The validation of a segmenter while it trains: mean IoU over the whole validation set."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix

from scalekd.data.source import IGNORED
from scalekd.device import best_device
from scalekd.networks import InputConfig
from scalekd.networks.input_config import normalize_bytes
from scalekd.recipe import Precision
from scalekd.training.performance import autocast
from scalekd.training.validation import ScoredValidation
from scalekd.transfer.segmentation.inference import Inference
from scalekd.transfer.segmentation.scores import SegmentationScores, scores_of


@torch.no_grad()
def predict_classes(
    segmenter: nn.Module,
    images: Tensor,
    size: tuple[int, int],
    *,
    inference: Inference,
    input: InputConfig,
    precision: Precision = "32-true",
) -> Tensor:
    """The class of each pixel (N, *size) of images of bytes (N, channels, H, W), on the CPU."""
    device = best_device()
    with autocast(precision, device):
        pixels = normalize_bytes(images.to(device), input)
        return inference.logits(segmenter, pixels, size).argmax(dim=1).cpu()


class SegmentationValidation(ScoredValidation):
    """Measures the mean IoU of a run's segmenter; see `ScoredValidation`.

    Args:
        batches: validation images of bytes (1, channels, H, W), and the labels of their own size.
        class_names: names of the classes.
        inference: how an image is segmented.
        input: how images are normalised.
        every_steps: steps between two validations.
        precision: precision of the passes.
        state: state of the validation to resume from.

    Attributes:
        confusion: pixels by class and predicted class at the last validation; None before.
    """

    name = "miou"

    def __init__(
        self,
        batches: Iterable[tuple[Tensor, Tensor]],
        *,
        class_names: tuple[str, ...],
        inference: Inference,
        input: InputConfig,
        every_steps: int,
        precision: Precision,
        state: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(every_steps=every_steps, state=state)
        self.batches, self.class_names, self.inference = batches, class_names, inference
        self.input, self.precision = input, precision
        self.confusion: Tensor | None = (state or {}).get("confusion")

    @property
    def has_images(self) -> bool:
        """Whether there is a validation set, which every segmentation has."""
        return True

    @property
    def scores(self) -> SegmentationScores:
        """The scores of the last validation."""
        assert self.confusion is not None
        return scores_of(self.confusion, self.class_names)

    def score_of(self, student: nn.Module) -> float:
        """The mean IoU of `student`, over the images of all ranks."""
        matrix = MulticlassConfusionMatrix(
            len(self.class_names), ignore_index=IGNORED, validate_args=False
        )
        for images, labels in self.batches:
            height, width = labels.shape[1:]
            predicted = predict_classes(
                student,
                images,
                (height, width),
                inference=self.inference,
                input=self.input,
                precision=self.precision,
            )
            matrix.update(predicted.flatten(), labels.long().flatten())
        self.confusion = matrix.compute()
        return self.scores.miou

    def reported(self) -> dict[str, Any]:
        """Mean IoU and pixel accuracy."""
        scores = self.scores
        return {"scores": {"miou": scores.miou, "pixel_accuracy": scores.pixel_accuracy}}

    def state_dict(self) -> dict[str, Any]:
        """Return what the validation needs to resume."""
        return {**super().state_dict(), "confusion": self.confusion}
