"""A segmenter: a backbone with a head, and the loss that trains it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scalekd.data.source import IGNORED
from scalekd.notes import Note
from scalekd.step import Learner, StepOutput
from scalekd.transfer.backbone import Backbone, BackboneSpec
from scalekd.transfer.network_folder import load_network
from scalekd.transfer.rescale import resize_maps
from scalekd.transfer.segmentation.heads import HeadOutput, build_head


@dataclass(frozen=True)
class SegmenterSpec:
    """What builds a segmenter without its run.

    Attributes:
        backbone: what builds its backbone.
        head: "upernet" or "linear".
        head_channels: channels inside UPerNet.
        has_auxiliary: whether it has an auxiliary head.
        frozen: whether its backbone is not trained.
        class_names: of its classes, in the order of its logits.
    """

    backbone: BackboneSpec
    head: str
    head_channels: int
    has_auxiliary: bool
    frozen: bool
    class_names: tuple[str, ...]

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> "SegmenterSpec":
        """The spec that `dataclasses.asdict` made `plain` from.

        Raises:
            TypeError, ValueError, KeyError: it is not such a one.
        """
        backbone = BackboneSpec.from_dict(plain["backbone"])
        names = tuple(map(str, plain["class_names"]))
        return cls(**{**plain, "backbone": backbone, "class_names": names})

    def build(self, model: nn.Module | None = None) -> "Segmenter":
        """Build the segmenter with a random head.

        Args:
            model: the backbone's timm model, which becomes a part of it; by default a random one.
        """
        backbone = Backbone(model or self.backbone.build(), frozen=self.frozen)
        head = build_head(
            self.head,
            backbone,
            classes=len(self.class_names),
            width=self.head_channels,
            has_auxiliary=self.has_auxiliary,
        )
        return Segmenter(backbone, head)


class Segmenter(nn.Module):
    """A backbone with a head: images to logits of each pixel.

    Args:
        backbone: gives levels.
        head: gives a `HeadOutput` for them.
    """

    def __init__(self, backbone: Backbone, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits (N, classes, H, W) of images (N, channels, H, W) at their own size."""
        height, width = images.shape[2:]
        logits = self.at_padded_size(self.heads(images).logits, (height, width))
        return logits[..., :height, :width]

    def heads(self, images: Tensor) -> HeadOutput:
        """The logits of both heads at their levels' resolutions."""
        output: HeadOutput = self.head(self.backbone(images))
        return output

    def at_padded_size(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Logits in float32, upsampled to the size that images of `size` are padded to."""
        return resize_maps(logits.float(), self.backbone.padded_size(size))

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that timm's optimizers should not decay."""
        return {f"backbone.{name}" for name in self.backbone.no_weight_decay()}


class SegmentationLearner(Learner):
    """A segmenter with its loss: the cross-entropy of its pixels, and that of its auxiliary head.

    The sum over the labelled pixels is divided by the number of all pixels, so that the gradient of
    a batch does not depend on how it is split into micro-batches and ranks.

    Args:
        student: the segmenter.
        auxiliary: weight of the auxiliary head's loss.

    Example:
        >>> import timm, torch
        >>> from scalekd.transfer.segmentation.heads import LinearHead
        >>> backbone = Backbone(timm.create_model("test_resnet"))
        >>> head = LinearHead(channels=backbone.channels, classes=3)
        >>> learner = SegmentationLearner(Segmenter(backbone, head))
        >>> step = learner(torch.randn(2, 3, 64, 64), torch.zeros(2, 64, 64, dtype=torch.int16))
        >>> list(step.terms)
        ['task']
    """

    def __init__(self, student: Segmenter, auxiliary: float = 0.4) -> None:
        super().__init__()
        self.student: Segmenter = student
        self.auxiliary = auxiliary
        self.notes: list[Note] = []

    def forward(self, images: Tensor, targets: Tensor) -> StepOutput:
        """Compute the loss of one step.

        Args:
            images: (N, channels, H, W), normalised for the backbone.
            targets: class of each pixel (N, H, W), or `IGNORED`.
        """
        output = self.student.heads(images)
        labels = targets.long()
        terms = {"task": self._loss(output.logits, labels)}
        if output.auxiliary is not None:
            terms["auxiliary"] = self.auxiliary * self._loss(output.auxiliary, labels)
        return StepOutput(torch.stack(list(terms.values())).sum(), terms, None)

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that timm's optimizers should not decay."""
        return {f"student.{name}" for name in self.student.no_weight_decay()}

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        height, width = labels.shape[1:]
        logits = self.student.at_padded_size(logits, (height, width))[..., :height, :width]
        total = nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
        return total / labels.numel()


def load_segmenter(folder: Path) -> tuple[Segmenter, SegmenterSpec]:
    """The segmenter of a folder that a run wrote, in eval mode, and what builds it.

    `spec.backbone` has the mean and standard deviation of its images.

    Raises:
        InputError: the folder is no segmenter's, or damaged.
    """
    return load_network(folder, SegmenterSpec.from_dict, "segmenter")
