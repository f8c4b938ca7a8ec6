"""Collect what a model predicts for labelled images, and measure it."""

import time

import torch
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

from scalekd.device import best_device
from scalekd.evaluation.batches import check_finite, fitting_memory
from scalekd.evaluation.by_class import Labels, class_results, confusions
from scalekd.evaluation.classes import ClassMatch
from scalekd.evaluation.opened_model import OpenedModel
from scalekd.evaluation.results import ModelResult
from scalekd.networks import InputConfig
from scalekd.networks.input_config import normalize

BINS = 15
"""Bins of equal width between the confidences 0 and 1 of the calibration error."""


class Meter:
    """Measures one model on batches of labelled images.

    The first batch warms the model up: its time counts only if no other full batch follows.

    Args:
        model: the model.
        match: the logit of each class of the images.
        labels: numbers of the classes, the same for all models that are to be compared.
        statistics: mean and standard deviation that the images are normalised by before the model
            is given them; None where they come as it takes them.
    """

    def __init__(
        self, model: OpenedModel, match: ClassMatch, labels: Labels, statistics: InputConfig | None
    ) -> None:
        self.model, self.labels, self._statistics = model, labels, statistics
        self._logit_of_class = torch.tensor(match.logits)
        self._label_of_logit = labels.number_logits(model, match)
        self._top1 = MulticlassAccuracy(model.classes, average="micro")
        few = model.classes <= 5
        self._top5 = None if few else MulticlassAccuracy(model.classes, 5, average="micro")
        self._calibration = MulticlassCalibrationError(model.classes, n_bins=BINS, norm="l1")
        self._targets: list[Tensor] = []
        self._predicted: list[Tensor] = []
        self._first: Tensor | None = None
        self._times: list[tuple[int, float]] = []

    @torch.no_grad()
    def update(self, pixels: Tensor, targets: Tensor) -> None:
        """Classify a batch.

        Args:
            pixels: images (N, channels, H, W) with values from 0 to 1, unless they come normalised.
            targets: their classes (N,), by the number among the images' classes.

        Raises:
            InputError: the model gives NaN or Inf, or the batch does not fit into the memory.
        """
        images = self._normalise(pixels).to(best_device())
        if self._first is None:
            self._first = images
        logits = self._classify(images)
        check_finite(self.model.name, logits)
        own_targets = self._logit_of_class[targets]
        for metric in (self._top1, self._top5):
            if metric is not None:
                metric.update(logits, own_targets)
        self._calibration.update(logits.softmax(1), own_targets)
        self._targets.append(targets)
        self._predicted.append(self._label_of_logit[logits.argmax(1)])

    def compute(self) -> ModelResult:
        """What was measured on all batches."""
        return ModelResult(
            model=self.model.name,
            classes=self.model.classes,
            top1=float(self._top1.compute()),
            top5=None if self._top5 is None else float(self._top5.compute()),
            calibration_error=float(self._calibration.compute()),
            images_per_second=self._images_per_second(),
            per_class=class_results(self.predicted, self.targets, self.labels),
            confusions=confusions(self.predicted, self.targets, self.labels),
        )

    @property
    def targets(self) -> Tensor:
        """The class of each image so far (N,), by the number of its label."""
        return torch.cat(self._targets)

    @property
    def predicted(self) -> Tensor:
        """The predicted class of each image so far (N,), by the number of its label."""
        return torch.cat(self._predicted)

    def _normalise(self, pixels: Tensor) -> Tensor:
        return pixels if self._statistics is None else normalize(pixels, self._statistics)

    def _classify(self, images: Tensor) -> Tensor:
        """The logits (N, classes) on the CPU; remembers the time."""
        with fitting_memory(self.model.name, len(images)):
            _finish_kernels()
            start = time.perf_counter()
            logits = self.model.network(images)
            _finish_kernels()
        self._times.append((len(images), time.perf_counter() - start))
        return logits.float().cpu()

    @torch.no_grad()
    def _images_per_second(self) -> float:
        assert self._first is not None
        full = len(self._first)
        if not any(images == full for images, _ in self._times[1:]):
            self._classify(self._first)
        timed = [(images, seconds) for images, seconds in self._times[1:] if images == full]
        return sum(images for images, _ in timed) / sum(seconds for _, seconds in timed)


def _finish_kernels() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
