"""The settings of a detection, as data that is checked when it is made."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from scalekd.errors import InputError
from scalekd.recipe import Optim, check_positive, find_recipe
from scalekd.transfer.recipe import TransferData, TransferRecipe, check_sides

RECIPES = Path(__file__).with_name("recipes")


@dataclass(frozen=True)
class DetectData(TransferData):
    """Images with boxes, in COCO's format, and how they are resized.

    Args:
        root: Folder with annotations/instances_SPLIT.json and the images in SPLIT/ or
            images/SPLIT/, for the splits train2017 and val2017, train and val, or training and
            validation; or with train/_annotations.coco.json and valid/_annotations.coco.json
            beside the images. Required unless --recipe or --config gives it.
        short_side: Length in pixels to which the short side of an image is resized: one number, or
            several of which each training image gets one at random, as in [480,640,800]; the last
            is used in validation.
        long_side: Largest length in pixels of the long side of a resized image.
        empty_images: Whether training images without any object are used. Public zoos leave them
            out of COCO.
    """

    short_side: int | tuple[int, ...] = 800
    long_side: int = 1333
    empty_images: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sides("data.", short_side=self.short_sides, long_side=(self.long_side,))
        if max(self.short_sides) > self.long_side:
            raise InputError(
                f"data.short_side is {max(self.short_sides)} and data.long_side {self.long_side}: "
                "the long side must not be the smaller one"
            )

    @property
    def short_sides(self) -> tuple[int, ...]:
        """All lengths of the short side."""
        return self.short_side if isinstance(self.short_side, tuple) else (self.short_side,)


@dataclass(frozen=True)
class DetectRecipe(TransferRecipe):
    """A detection with a student, or any timm model, as its backbone.

    Args:
        data: Images with boxes, and how they are resized.
        head: Network on top of the backbone: mask_rcnn, Mask R-CNN, which needs a mask of each
            object; faster_rcnn, the same without masks; or linear, one 1x1 convolution on the
            features of all levels, for the classes and boxes of anchors.
        head_channels: Number of channels of the feature pyramid; the box head has four times as
            many.
        anchor_scale: Side of an anchor in strides of its level; 8 gives 32 to 512 pixels on five
            levels. Smaller objects need a smaller one, or larger images.
        frozen_stages: Number of first levels of the backbone that are not trained, nor what comes
            before them.
        frozen_batchnorm: Whether BatchNorm layers of the backbone keep their statistics and are not
            trained, as public zoos do for small batches.
        min_score: Smallest score, from 0 to 1, of a predicted object in the pictures and in the
            confusion matrix. The average precision counts all.
    """

    data: DetectData
    epochs: int = 12
    optim: Optim = field(
        default_factory=lambda: Optim(lr=1e-4, weight_decay=0.05, warmup_epochs=0.5, clip=0.0)
    )
    head: Literal["mask_rcnn", "faster_rcnn", "linear"] = "mask_rcnn"
    head_channels: int = 256
    anchor_scale: float = 8.0
    frozen_stages: int = 0
    frozen_batchnorm: bool = False
    min_score: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(head_channels=self.head_channels, anchor_scale=self.anchor_scale)
        if self.head_channels > 2**14:
            raise InputError(f"head_channels is {self.head_channels}: it must be at most {2**14}")
        if self.frozen_stages < 0:
            raise InputError(f"frozen_stages is {self.frozen_stages}: it must be 0 or more")
        if not 0 <= self.min_score <= 1:
            raise InputError(f"min_score is {self.min_score}: it must be in [0, 1]")
        if self.frozen and (self.frozen_stages or self.frozen_batchnorm):
            raise InputError(
                "frozen is true, so that nothing of the backbone is trained: drop frozen_stages "
                "and frozen_batchnorm"
            )

    @property
    def has_masks(self) -> bool:
        """Whether masks are trained and measured."""
        return self.head == "mask_rcnn"


def find_detect_recipe(name: str) -> Path:
    """The YAML file of a packaged recipe of a detection.

    Raises:
        InputError: there is no such recipe; the message lists all.
    """
    return find_recipe(name, RECIPES, "recipe of a detection")
