"""A detector: Mask R-CNN, Faster R-CNN or a linear probe on a backbone, and its loss."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import MultiScaleRoIAlign

from scalekd.networks import InputConfig
from scalekd.notes import Note
from scalekd.step import Learner, StepOutput
from scalekd.transfer.backbone import LEVELS, Backbone, BackboneSpec
from scalekd.transfer.detection.images import Target
from scalekd.transfer.detection.pyramid import (
    ConcatenatedLevels,
    FeaturePyramid,
    pyramid_strides,
)
from scalekd.transfer.network_folder import load_network

BOX_CELLS, MASK_CELLS = 7, 14
"""Cells on a side of the regions that boxes, and masks, are predicted from."""

RATIOS = 0.5, 1.0, 2.0
"""Height over width of the anchors."""

DIVISIBLE = 32
"""Images are padded to a multiple of it, or of the backbone's largest stride."""

PRIOR = 0.01
"""Probability of an object at an anchor before training (RetinaNet, arXiv:1708.02002)."""

# fmt: off
TERMS = {
    "loss_classifier": "classes", "loss_box_reg": "boxes", "loss_mask": "masks",
    "loss_objectness": "objectness", "loss_rpn_box_reg": "proposals",
    "classification": "classes", "bbox_regression": "boxes",
}
# fmt: on
"""The names of torchvision's losses, and ours."""


@dataclass(frozen=True)
class DetectorSpec:
    """What builds a detector without its run.

    Attributes:
        backbone: what builds its backbone.
        head: "mask_rcnn", "faster_rcnn" or "linear".
        head_channels: channels of the feature pyramid.
        anchor_scale: side of an anchor in strides of its level.
        frozen: whether the backbone is not trained.
        frozen_stages: so many of its first levels are not.
        frozen_batchnorm: whether its BatchNorm layers are not.
        short_sides: lengths of the short side of a resized image in pixels; the last in validation.
        long_side: largest length of its long side.
        class_names: of its classes; label 1 is the first one.
    """

    backbone: BackboneSpec
    head: str
    head_channels: int
    anchor_scale: float
    frozen: bool
    frozen_stages: int
    frozen_batchnorm: bool
    short_sides: tuple[int, ...]
    long_side: int
    class_names: tuple[str, ...]

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> "DetectorSpec":
        """The spec that `dataclasses.asdict` made `plain` from.

        Raises:
            TypeError, ValueError, KeyError: it is not such a one.
        """
        own = {
            "backbone": BackboneSpec.from_dict(plain["backbone"]),
            "short_sides": tuple(map(int, plain["short_sides"])),
            "class_names": tuple(map(str, plain["class_names"])),
        }
        return cls(**{**plain, **own})

    def build(self, model: nn.Module | None = None) -> "Detector":
        """Build the detector with a random head.

        Args:
            model: the backbone's timm model, which becomes a part of it; by default a random one.
        """
        backbone = Backbone(
            model or self.backbone.build(),
            frozen=self.frozen,
            frozen_stages=self.frozen_stages,
            frozen_batchnorm=self.frozen_batchnorm,
            blocks=LEVELS if self.head == "linear" else 1,
        )
        cell = max(backbone.strides)
        shared = {
            "min_size": self.short_sides,
            "max_size": self.long_side,
            "image_mean": list(self.backbone.mean),
            "image_std": list(self.backbone.std),
            "size_divisible": math.lcm(DIVISIBLE, cell),
        }
        build = {
            "linear": self._build_probe,
            "faster_rcnn": self._build_faster_rcnn,
            "mask_rcnn": self._build_mask_rcnn,
        }[self.head]
        network = build(backbone, shared)
        # torchvision computes anchors, proposals and boxes in the precision of these outputs, and
        # bf16 has a spacing of 4 pixels from 512 on.
        probe = self.head == "linear"
        heads = [network.head] if probe else [network.rpn.head, network.roi_heads.box_predictor]
        for module in (network.backbone, *heads):
            give_float32(module)
        return Detector(network)

    def _build_probe(self, backbone: Backbone, shared: dict[str, Any]) -> Any:
        """RetinaNet whose head is one convolution: at each place of the largest level, anchors of
        the sizes that a feature pyramid has on all its levels."""
        levels = ConcatenatedLevels(backbone)
        sizes = tuple(round(self.anchor_scale * stride) for stride in pyramid_strides(backbone))
        anchors = AnchorGenerator((sizes,), (RATIOS,))
        classes = len(self.class_names) + 1
        head = LinearHead(levels.out_channels, anchors=len(sizes) * len(RATIOS), classes=classes)
        return RetinaNet(
            levels,
            classes,
            anchor_generator=anchors,
            head=head,
            detections_per_img=100,
            **shared,
        )

    def _build_faster_rcnn(self, backbone: Backbone, shared: dict[str, Any]) -> Any:
        pyramid = FeaturePyramid(backbone, self.head_channels)
        return FasterRCNN(pyramid, **self._two_stages(pyramid), **shared)

    def _build_mask_rcnn(self, backbone: Backbone, shared: dict[str, Any]) -> Any:
        pyramid, width = FeaturePyramid(backbone, self.head_channels), self.head_channels
        return MaskRCNN(
            pyramid,
            mask_roi_pool=MultiScaleRoIAlign(pyramid.names, MASK_CELLS, sampling_ratio=2),
            mask_head=MaskRCNNHeads(width, (width,) * 4, dilation=1),
            mask_predictor=MaskRCNNPredictor(width, width, len(self.class_names) + 1),
            **self._two_stages(pyramid),
            **shared,
        )

    def _two_stages(self, pyramid: FeaturePyramid) -> dict[str, Any]:
        """Anchors and the box head; in the usual width they are torchvision's own."""
        sizes = tuple((round(self.anchor_scale * stride),) for stride in pyramid.strides)
        width = 4 * self.head_channels
        return {
            "rpn_anchor_generator": AnchorGenerator(sizes, (RATIOS,) * len(sizes)),
            "box_roi_pool": MultiScaleRoIAlign(pyramid.names, BOX_CELLS, sampling_ratio=2),
            "box_head": TwoMLPHead(self.head_channels * BOX_CELLS**2, width),
            "box_predictor": FastRCNNPredictor(width, len(self.class_names) + 1),
        }


class LinearHead(RetinaNetHead):  # type: ignore[misc]
    """RetinaNet's losses for one 1x1 convolution each of classes and boxes.

    Args:
        channels: of the map.
        anchors: at each of its places.
        classes: number of classes, the background included.
    """

    def __init__(self, channels: int, *, anchors: int, classes: int) -> None:
        super().__init__(1, anchors, classes)
        self.classification_head.conv = nn.Identity()
        self.classification_head.cls_logits = nn.Conv2d(channels, anchors * classes, kernel_size=1)
        self.regression_head.conv = nn.Identity()
        self.regression_head.bbox_reg = nn.Conv2d(channels, anchors * 4, kernel_size=1)
        for layer in (self.classification_head.cls_logits, self.regression_head.bbox_reg):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)
        prior = -math.log((1 - PRIOR) / PRIOR)
        nn.init.constant_(self.classification_head.cls_logits.bias, prior)

    def forward(self, maps: list[Tensor]) -> dict[str, Tensor]:
        """Compute `cls_logits` (N, anchors, classes) and `bbox_regression` (N, anchors, 4).

        Outside training the background's logit is minus infinity: torchvision takes each class for
        an object.
        """
        found: dict[str, Tensor] = super().forward(maps)
        if not self.training:
            found["cls_logits"][..., 0] = -math.inf
        return found


def give_float32(module: nn.Module) -> None:
    """Make a module's outputs float32 where autocast computes them in another precision."""
    module.register_forward_hook(_convert_outputs)


def _convert_outputs(module: nn.Module, inputs: Any, outputs: Any) -> Any:
    return tree_map(Tensor.float, outputs)


class Detector(nn.Module):
    """One of torchvision's detectors on a backbone.

    It resizes and normalises images itself, and gives boxes and masks at their own size.

    Args:
        network: the detector, with a `FeaturePyramid` or `ConcatenatedLevels`.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    @property
    def backbone(self) -> Backbone:
        """The backbone without its pyramid."""
        backbone: Any = self.network.backbone
        assert isinstance(backbone.backbone, Backbone)
        return backbone.backbone

    def forward(self, images: Sequence[Tensor], targets: Sequence[Target] | None = None) -> Any:
        """Compute the losses by name in training; the objects of each image in eval mode.

        Args:
            images: (channels, H, W), from 0 to 1, of any size.
            targets: their objects; only in training.

        Returns:
            In eval mode for each image `boxes` (N, 4), `labels` (N,) from 1, `scores` (N,), and
            `masks` (N, 1, H, W) of probabilities if it has a mask head.
        """
        return self.network(list(images), None if targets is None else list(targets))

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that timm's optimizers should not decay."""
        return {f"network.backbone.backbone.{name}" for name in self.backbone.no_weight_decay()}


class DetectionLearner(Learner):
    """A detector with its losses.

    They are means over the anchors and regions that are drawn for a micro-batch, so they depend on
    how a batch is split into micro-batches and ranks, as in all public implementations.

    Args:
        student: the detector.
    """

    def __init__(self, student: Detector) -> None:
        super().__init__()
        self.student: Detector = student
        self.notes: list[Note] = []

    def forward(self, images: Sequence[Tensor], targets: Sequence[Target]) -> StepOutput:
        """Compute the losses of a micro-batch; see `Detector.forward`."""
        losses: dict[str, Tensor] = self.student(images, targets)
        terms = {TERMS[name]: loss for name, loss in losses.items()}
        return StepOutput(torch.stack(list(terms.values())).sum(), terms, None)

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that timm's optimizers should not decay."""
        return {f"student.{name}" for name in self.student.no_weight_decay()}


@dataclass
class DetectionBatch:
    """A micro-batch on the device that trains.

    Attributes:
        images: (channels, H, W), from 0 to 1, of any size.
        targets: their objects.
    """

    images: list[Tensor]
    targets: list[Target]

    @classmethod
    def from_loader(
        cls, items: Sequence[Any], device: torch.device, config: InputConfig
    ) -> "DetectionBatch":
        """Make a batch of a loader's items, pairs of an image in bytes and its objects."""
        images = [to_unit(image, device) for image, _ in items]
        moved = [
            {name: tensor.to(device, non_blocking=True) for name, tensor in target.items()}
            for _, target in items
        ]
        return cls(images, moved)

    def loss(self, learner: nn.Module, mixup: nn.Module | None = None) -> StepOutput:
        """Compute the losses of `learner` on this batch."""
        step: StepOutput = learner(self.images, self.targets)
        return step


def to_unit(image: Tensor, device: torch.device) -> Tensor:
    """An image of bytes as numbers from 0 to 1 on a device."""
    return image.to(device, non_blocking=True).float() / 255


def load_detector(folder: Path) -> tuple[Detector, DetectorSpec]:
    """The detector of a folder that a run wrote, in eval mode, and what builds it.

    Raises:
        InputError: the folder is no detector's, or damaged.
    """
    return load_network(folder, DetectorSpec.from_dict, "detector")
