"""The networks of transfers as an estimate needs them: a real step on noise, and a traced one."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

from scalekd.data.loader import images_in_epoch
from scalekd.errors import InputError
from scalekd.step import Learner
from scalekd.transfer.backbone import BackboneSpec, open_backbone
from scalekd.transfer.detection.coco import find_splits, read_coco
from scalekd.transfer.detection.detector import BOX_CELLS, MASK_CELLS, DetectionLearner
from scalekd.transfer.detection.images import Target
from scalekd.transfer.detection.prepare import build_detector_spec
from scalekd.transfer.detection.recipe import DetectRecipe
from scalekd.transfer.recipe import TransferRecipe
from scalekd.transfer.segmentation.folders import find_pairs
from scalekd.transfer.segmentation.prepare import build_segmenter_spec
from scalekd.transfer.segmentation.recipe import SegmentRecipe
from scalekd.transfer.segmentation.segmenter import SegmentationLearner

ASPECT = 4 / 3
"""Assumed: the long side of an image over its short one, as of most of COCO's."""

REGIONS, MASKED_REGIONS = 512, 128
"""Regions of an image that torchvision trains its box head on, and at most its mask head."""

OBJECTS = 7
"""Objects in an image of noise, about as many as an image of COCO has."""


@dataclass(frozen=True)
class Images:
    """How many training images there are, and of how many classes."""

    count: int
    classes: int


@dataclass(frozen=True)
class TransferNetwork(ABC):
    """A transfer's network, and what passes through it in a step.

    Attributes:
        recipe: what would be trained.
        images: what it would be trained on.
    """

    known: ClassVar[tuple[str, Images]]
    """The data.root of the packaged recipes, and the images of that data set."""

    recipe: TransferRecipe
    images: Images

    @property
    @abstractmethod
    def size(self) -> tuple[int, int]:
        """(height, width) of the images in pixels."""

    @property
    def head(self) -> str:
        """The recipe's head, which each kind of recipe has."""
        recipe: Any = self.recipe
        return str(recipe.head)

    @abstractmethod
    def build_on(self, backbone: BackboneSpec, model: nn.Module) -> Learner:
        """The learner on a timm model."""

    @abstractmethod
    def run_step(self, built: "BuiltNetwork", images: int, device: torch.device) -> Tensor:
        """The loss of a real step on noise."""

    @abstractmethod
    def trace_step(self, built: "BuiltNetwork", images: int) -> Tensor:
        """A sum to call `backward` on, of what a step computes, on tensors without values."""

    def build(self) -> "BuiltNetwork":
        """The network with random weights, on the device of the context."""
        recipe = self.recipe
        opened = open_backbone(recipe.backbone, "random", recipe.backbone_args, self.size)
        learner = self.build_on(opened.spec, opened.model).train()
        return BuiltNetwork(learner, opened.input.channels)


@dataclass(frozen=True)
class BuiltNetwork:
    """A network, and the number of channels of its images."""

    learner: Any
    channels: int


@dataclass(frozen=True)
class SegmentationNetwork(TransferNetwork):
    """A segmenter on crops."""

    known = ("ade20k", Images(20_210, 150))

    recipe: SegmentRecipe

    @classmethod
    def count(cls, recipe: SegmentRecipe, images: int | None) -> "SegmentationNetwork":
        """The network of a recipe, whose images are counted where data.root exists."""
        return cls(recipe, _count_images(recipe, images, cls.known, _count_pairs))

    @property
    def size(self) -> tuple[int, int]:
        """The size of a crop."""
        return self.recipe.data.crop

    def build_on(self, backbone: BackboneSpec, model: nn.Module) -> SegmentationLearner:
        """The segmenter with its loss."""
        names = tuple(map(str, range(self.images.classes)))
        spec = build_segmenter_spec(self.recipe, backbone, names)
        return SegmentationLearner(spec.build(model), self.recipe.auxiliary)

    def run_step(self, built: BuiltNetwork, images: int, device: torch.device) -> Tensor:
        """The loss of crops of noise, of random classes."""
        crops = torch.rand(images, built.channels, *self.size, device=device)
        shape = images, *self.size
        labels = torch.randint(self.images.classes, shape, dtype=torch.int16, device=device)
        loss: Tensor = built.learner(crops, labels).loss
        return loss

    def trace_step(self, built: BuiltNetwork, images: int) -> Tensor:
        """The loss."""
        crops = torch.empty(images, built.channels, *self.size)
        labels = torch.empty(images, *self.size, dtype=torch.int16)
        loss: Tensor = built.learner(crops, labels).loss
        return loss


@dataclass(frozen=True)
class DetectionNetwork(TransferNetwork):
    """A detector on images of the recipe's short side."""

    known = ("coco", Images(117_266, 80))  # those with an object

    recipe: DetectRecipe

    @classmethod
    def count(cls, recipe: DetectRecipe, images: int | None) -> "DetectionNetwork":
        """The network of a recipe, whose images are counted where data.root exists."""
        return cls(recipe, _count_images(recipe, images, cls.known, _count_annotated))

    @property
    def size(self) -> tuple[int, int]:
        """The size of an image of the usual aspect."""
        data = self.recipe.data
        short = data.short_sides[-1]
        return short, min(data.long_side, round(ASPECT * short))

    def build_on(self, backbone: BackboneSpec, model: nn.Module) -> DetectionLearner:
        """The detector with its losses."""
        names = tuple(map(str, range(self.images.classes)))
        return DetectionLearner(build_detector_spec(self.recipe, backbone, names).build(model))

    def run_step(self, built: BuiltNetwork, images: int, device: torch.device) -> Tensor:
        """The loss of images of noise, of random objects."""
        noise = [torch.rand(built.channels, *self.size, device=device) for _ in range(images)]
        targets = [self._noise_target(device) for _ in range(images)]
        loss: Tensor = built.learner(noise, targets).loss
        return loss

    def _noise_target(self, device: torch.device) -> Target:
        height, width = self.size
        corners = torch.rand(OBJECTS, 2, device=device) / 2
        sides = 0.05 + 0.45 * torch.rand(OBJECTS, 2, device=device)
        scale = torch.tensor([width, height], device=device)
        boxes = torch.cat([corners * scale, (corners + sides) * scale], dim=1)
        masks = torch.zeros(OBJECTS, height, width, dtype=torch.uint8, device=device)
        for mask, box in zip(masks, boxes.long().tolist(), strict=True):
            mask[box[1] : box[3], box[0] : box[2]] = 1
        labels = torch.randint(1, self.images.classes + 1, (OBJECTS,), device=device)
        return {"boxes": boxes, "labels": labels, "masks": masks}

    def trace_step(self, built: BuiltNetwork, images: int) -> Tensor:
        """Backbone, pyramid and heads, with as many regions as a step may have. What depends on
        values is not computed: proposals, which regions are drawn, and cutting them out."""
        network = built.learner.student.network
        cell = network.transform.size_divisible
        padded = [-(-side // cell) * cell for side in self.size]
        maps = list(network.backbone(torch.empty(images, built.channels, *padded)).values())
        if self.recipe.head == "linear":
            found = network.head(maps)
            logits = found["cls_logits"]
            loss = sigmoid_focal_loss(logits, torch.empty_like(logits), reduction="sum")
            return _sum([loss, found["bbox_regression"]])
        outputs: list[Tensor] = [tensor for part in network.rpn.head(maps) for tensor in part]
        heads, width = network.roi_heads, network.backbone.out_channels
        regions = torch.empty(images * REGIONS, width, BOX_CELLS, BOX_CELLS, requires_grad=True)
        outputs += heads.box_predictor(heads.box_head(regions))
        if self.recipe.has_masks:
            cut = torch.empty(images * MASKED_REGIONS, width, MASK_CELLS, MASK_CELLS)
            outputs.append(heads.mask_predictor(heads.mask_head(cut.requires_grad_())))
        return _sum(outputs)


def _sum(tensors: Any) -> Tensor:
    return torch.stack([tensor.float().sum() for tensor in tensors]).sum()


def _count_images(recipe: TransferRecipe, images: int | None, known: Any, count: Any) -> Images:
    """The images of data.root; of the data set of that name where there is no such folder."""
    root, data_set = known
    if images is not None and not 1 <= images <= 10**12:
        raise InputError(f"images is {images}: it must be from 1 to {10**12}")
    exists = Path(recipe.data.root).exists()
    if not exists and images is None and recipe.data.root != root:
        raise InputError(
            f"data.root is {recipe.data.root!r}, and there is no such folder to count images in: "
            f"give their number with --images, or {root} as data.root for that data set"
        )
    found: Images = count(recipe) if exists else data_set
    return Images(images_in_epoch(recipe.data, images or found.count), found.classes)


def _count_pairs(recipe: SegmentRecipe) -> Images:
    found = find_pairs(recipe.data)
    return Images(len(found.training), len(found.class_names))


def _count_annotated(recipe: DetectRecipe) -> Images:
    split = read_coco(find_splits(Path(recipe.data.root))[0], "training")
    used = split.training_images(empty_images=recipe.data.empty_images)
    return Images(len(used), len(split.class_names))
