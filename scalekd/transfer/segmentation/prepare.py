"""What a segmentation is made of: its images, its backbone, and the learner that is trained."""

from dataclasses import asdict, dataclass
from typing import Any, cast

from torch import Tensor, nn
from torch.utils.data import DataLoader

from scalekd.data.seeding import seed_generators
from scalekd.step import Learner
from scalekd.training.run import TrainingRun
from scalekd.transfer.backbone import BackboneSpec, open_backbone
from scalekd.transfer.prepared import PreparedTransfer, evenly_spread, refusing
from scalekd.transfer.run_folder import Task, TransferFolder
from scalekd.transfer.segmentation.images import open_labelled_images
from scalekd.transfer.segmentation.inference import Inference
from scalekd.transfer.segmentation.pictures import (
    Example,
    draw_confusion_matrix,
    draw_predictions,
)
from scalekd.transfer.segmentation.recipe import SegmentRecipe
from scalekd.transfer.segmentation.segmenter import SegmentationLearner, SegmenterSpec
from scalekd.transfer.segmentation.validation import SegmentationValidation, predict_classes


@dataclass(frozen=True, kw_only=True)
class PreparedSegmentation(PreparedTransfer):
    """A recipe with its images and its backbone; see `PreparedTransfer`."""

    task = Task("segment", network="segmenter")

    recipe: SegmentRecipe
    spec: SegmenterSpec

    def build_network(self, model: nn.Module) -> SegmentationLearner:
        """The segmenter with its loss."""
        return SegmentationLearner(self.spec.build(model), self.recipe.auxiliary)

    def try_validation(self, learner: Learner, item: Any) -> None:
        """Segment a validation image."""
        images, labels = item
        with refusing(
            f"a validation image of {images.shape[1]}x{images.shape[2]} pixels cannot be segmented "
            f"with the backbone {self.recipe.backbone!r}",
            "give --inference sliding",
        ):
            self.predict(learner.student, images, labels)

    def predict(self, segmenter: nn.Module, image: Tensor, labels: Tensor) -> Tensor:
        """The class of each pixel of a validation image, at the size of its labels."""
        height, width = labels.shape
        return predict_classes(
            segmenter.eval(),
            image[None],
            (height, width),
            inference=Inference.of(self.recipe),
            input=self.input,
            precision=self.recipe.precision,
        )[0]

    def build_validation(
        self, batches: DataLoader[Any], every_steps: int, state: dict[str, Any] | None
    ) -> SegmentationValidation:
        """Measures the mean IoU."""
        return SegmentationValidation(
            batches,
            class_names=self.source.class_names,
            inference=Inference.of(self.recipe),
            input=self.input,
            every_steps=every_steps,
            precision=self.recipe.precision,
            state=state,
        )

    def write_outcome(self, training: TrainingRun, folder: TransferFolder, corrupt: int) -> str:
        """Write segmenter/, segmentation.json, predictions.png and confusion.png."""
        validation = cast(SegmentationValidation, training.validation)
        assert validation.confusion is not None
        segmenter, scores = self.save_network(training, folder), validation.scores
        assert self.source.validation_set is not None
        examples = [
            Example(image, labels, self.predict(segmenter, image, labels))
            for image, labels in evenly_spread(self.source.validation_set(self.input))
        ]
        folder.write_pictures(
            predictions=draw_predictions(examples, validation.class_names),
            confusion=draw_confusion_matrix(validation.confusion, scores),
        )
        folder.write_scores(
            {
                **self.conditions(training),
                "inference": self.recipe.inference,
                "corrupt_images": corrupt,
                **asdict(scores),
                "confusion": validation.confusion.tolist(),
            }
        )
        return f"mean IoU {scores.miou:.2%}, pixel accuracy {scores.pixel_accuracy:.2%}"


def prepare_segmentation(recipe: SegmentRecipe) -> PreparedSegmentation:
    """Open a recipe's images and its backbone.

    Raises:
        InputError: the images or the backbone cannot be used.
    """
    source = open_labelled_images(recipe.data)
    seed_generators(recipe.seed)  # of a backbone that is random, as asked
    opened = open_backbone(
        recipe.backbone, recipe.backbone_weights, recipe.backbone_args, recipe.data.crop
    )
    spec = build_segmenter_spec(recipe, opened.spec, source.class_names)
    return PreparedSegmentation(recipe=recipe, source=source, spec=spec, opened=opened)


def build_segmenter_spec(
    recipe: SegmentRecipe, backbone: BackboneSpec, class_names: tuple[str, ...]
) -> SegmenterSpec:
    """What builds a recipe's segmenter on a backbone."""
    return SegmenterSpec(
        backbone=backbone,
        head=recipe.head,
        head_channels=recipe.head_channels,
        has_auxiliary=recipe.has_auxiliary,
        frozen=recipe.frozen,
        class_names=class_names,
    )
