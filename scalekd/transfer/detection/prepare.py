"""What a detection is made of: its images, its backbone, and the learner that is trained."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from scalekd.data.seeding import seed_generators
from scalekd.networks import InputConfig
from scalekd.step import Learner
from scalekd.training.run import TrainingRun
from scalekd.transfer.backbone import BackboneSpec, open_backbone
from scalekd.transfer.detection.coco import CocoSplit
from scalekd.transfer.detection.detector import DetectionBatch, DetectionLearner, DetectorSpec
from scalekd.transfer.detection.images import open_annotated_images
from scalekd.transfer.detection.masks import RunLengths, import_pycocotools, to_run_lengths
from scalekd.transfer.detection.pictures import (
    DrawnObject,
    Example,
    draw_confusion_matrix,
    draw_predictions,
)
from scalekd.transfer.detection.recipe import DetectRecipe
from scalekd.transfer.detection.validation import DetectionValidation, find_objects
from scalekd.transfer.prepared import PreparedTransfer, evenly_spread, refusing
from scalekd.transfer.run_folder import Task, TransferFolder


@dataclass(frozen=True, kw_only=True)
class PreparedDetection(PreparedTransfer):
    """A recipe with its images and its backbone; see `PreparedTransfer`.

    Attributes:
        validation: the validation split, with its objects.
    """

    task = Task("detect", network="detector")

    recipe: DetectRecipe
    spec: DetectorSpec
    validation: CocoSplit

    def build_network(self, model: nn.Module) -> DetectionLearner:
        """The detector with its losses."""
        return DetectionLearner(self.spec.build(model))

    def to_batch(
        self, items: Sequence[Any], device: torch.device, config: InputConfig
    ) -> DetectionBatch:
        """Make a micro-batch of images of different sizes."""
        return DetectionBatch.from_loader(items, device, config)

    def try_validation(self, learner: Learner, item: Any) -> None:
        """Find the objects of a validation image."""
        number, image = item
        if image is None:
            return
        with refusing(
            f"a validation image of {image.shape[1]}x{image.shape[2]} pixels cannot be used with "
            f"the backbone {self.recipe.backbone!r}",
            "give other sizes (--data.short_side, --data.long_side) or another backbone",
        ):
            find_objects(learner.student, image, number, self.recipe.precision)

    def build_validation(
        self, batches: DataLoader[Any], every_steps: int, state: dict[str, Any] | None
    ) -> DetectionValidation:
        """Measures the average precisions."""
        return DetectionValidation(
            batches,
            split=self.validation,
            has_masks=self.recipe.has_masks,
            min_score=self.recipe.min_score,
            every_steps=every_steps,
            precision=self.recipe.precision,
            state=state,
        )

    def write_outcome(self, training: TrainingRun, folder: TransferFolder, corrupt: int) -> str:
        """Write detector/, detection.json, predictions.png and confusion.png."""
        validation = cast(DetectionValidation, training.validation)
        scores, confusion = validation.scores, validation.confusion
        assert scores is not None
        assert confusion is not None
        detector, names = self.save_network(training, folder), self.validation.class_names
        text = f"box AP {scores.box.ap or 0:.2%}"
        if scores.mask is not None:
            text += f", mask AP {scores.mask.ap or 0:.2%}"
        assert self.source.validation_set is not None
        examples = [
            self._example(detector, number, image)
            for number, image in evenly_spread(self.source.validation_set(self.input))
            if image is not None
        ]
        folder.write_pictures(
            predictions=draw_predictions(examples, names),
            confusion=draw_confusion_matrix(confusion, names, self.recipe.min_score, text),
        )
        folder.write_scores(
            {
                **self.conditions(training),
                "short_side": self.recipe.data.short_sides[-1],
                "corrupt_images": corrupt,
                **asdict(scores),
                "min_score": self.recipe.min_score,
                "confusion": confusion.tolist(),
            }
        )
        return text

    def _example(self, detector: nn.Module, number: int, image: Tensor) -> Example:
        height, width = image.shape[1:]
        masked = self.recipe.has_masks  # others were not checked
        annotated = [
            DrawnObject(
                i.label,
                i.box,
                to_run_lengths(i.segmentation, height, width)
                if masked and i.segmentation
                else None,
                "crowd" if i.crowd else "",
            )
            for i in self.validation.instances[number]
        ]
        found = find_objects(detector, image, number, self.recipe.precision)
        masks: Sequence[RunLengths | None] = found.masks or [None] * len(found.labels)
        rows = zip(found.labels.tolist(), found.boxes.tolist(), masks, found.scores, strict=True)
        shown = [
            DrawnObject(label, box, mask, f"{score:.2f}")
            for label, box, mask, score in rows
            if score >= self.recipe.min_score
        ]
        return Example(image, annotated, shown)


def prepare_detection(recipe: DetectRecipe) -> PreparedDetection:
    """Open a recipe's images and its backbone.

    Raises:
        InputError: the images or the backbone cannot be used, or pycocotools is not installed.
    """
    import_pycocotools()
    images = open_annotated_images(recipe)
    seed_generators(recipe.seed)  # of a backbone that is random, as asked
    data = recipe.data
    opened = open_backbone(
        recipe.backbone,
        recipe.backbone_weights,
        recipe.backbone_args,
        (data.short_sides[-1], data.short_sides[-1]),
    )
    spec = build_detector_spec(recipe, opened.spec, images.validation.class_names)
    return PreparedDetection(
        recipe=recipe,
        source=images.source,
        spec=spec,
        opened=opened,
        validation=images.validation,
    )


def build_detector_spec(
    recipe: DetectRecipe, backbone: BackboneSpec, class_names: tuple[str, ...]
) -> DetectorSpec:
    """What builds a recipe's detector on a backbone."""
    return DetectorSpec(
        backbone=backbone,
        head=recipe.head,
        head_channels=recipe.head_channels,
        anchor_scale=recipe.anchor_scale,
        frozen=recipe.frozen,
        frozen_stages=recipe.frozen_stages,
        frozen_batchnorm=recipe.frozen_batchnorm,
        short_sides=recipe.data.short_sides,
        long_side=recipe.data.long_side,
        class_names=class_names,
    )
