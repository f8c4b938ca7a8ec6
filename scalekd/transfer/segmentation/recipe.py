"""The settings of a segmentation, as data that is checked when it is made."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from scalekd.errors import InputError
from scalekd.recipe import check_positive, find_recipe
from scalekd.transfer.recipe import (
    MAX_CLASSES,
    TransferData,
    TransferRecipe,
    check_shares,
    check_sides,
)

RECIPES = Path(__file__).with_name("recipes")


@dataclass(frozen=True)
class SegmentData(TransferData):
    """Images with a label map each, and how crops of them are made.

    Args:
        root: Folder of the images in the layout of ADE20K (images/training, images/validation,
            annotations/training, annotations/validation) or of Pascal VOC (JPEGImages,
            SegmentationClass, ImageSets/Segmentation/train.txt and val.txt). A label map is a PNG
            of 8 or 16 bits, or with a palette, whose values are numbers of classes. Required unless
            --recipe or --config gives it.
        classes: Number of classes. By default that of the names in the folder, which are the lines
            of classes.txt, or objectInfo150.txt of ADE20K; of Pascal VOC 21.
        reduce_zero_label: Whether the label 0 means no class, and the label 1 is the first class,
            as in ADE20K.
        ignore_label: Label of pixels that are neither trained on nor measured.
        crop_size: Size of the training crops in pixels: one number, or [height, width].
        short_side: Length in pixels to which the short side of an image is resized, before the
            random scale in training. By default images keep their size.
        scale: Range of the random factor by which a training image is resized, as [smallest,
            largest].
        max_class_share: Largest share of a training crop, more than 0 and at most 1, that one class
            may take; up to ten other crops are drawn where it takes more.
        color_jitter: Strength, from 0 (off) to 1, of random changes of brightness, contrast and
            saturation of a training crop.
    """

    classes: int | None = None
    reduce_zero_label: bool = False
    ignore_label: int = 255
    crop_size: int | tuple[int, int] = 512
    short_side: int | None = None
    scale: tuple[float, float] = (0.5, 2.0)
    max_class_share: float = 1.0
    color_jitter: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.classes is not None and not 2 <= self.classes <= MAX_CLASSES:
            raise InputError(f"data.classes is {self.classes}: it must be from 2 to {MAX_CLASSES}")
        if not 0 <= self.ignore_label < 2**16:
            raise InputError(f"data.ignore_label is {self.ignore_label}: it must be 0 to 65535")
        short_side = 1 if self.short_side is None else self.short_side
        crop = self.crop_size if isinstance(self.crop_size, tuple) else (self.crop_size,)
        check_sides("data.", crop_size=crop, short_side=(short_side,))
        check_shares("data.", color_jitter=self.color_jitter)
        if not 0.01 <= self.scale[0] <= self.scale[1] <= 100:
            raise InputError(
                f"data.scale is {list(self.scale)}: give two numbers from 0.01 to 100, the smaller "
                "one first"
            )
        if not 0 < self.max_class_share <= 1:
            raise InputError(
                f"data.max_class_share is {self.max_class_share}: it must be more than 0 and at "
                "most 1"
            )

    @property
    def crop(self) -> tuple[int, int]:
        """(height, width) of the training crops in pixels."""
        return self.crop_size if isinstance(self.crop_size, tuple) else (self.crop_size,) * 2


@dataclass(frozen=True)
class SegmentRecipe(TransferRecipe):
    """A semantic segmentation with a student, or any timm model, as its backbone.

    Args:
        data: Images with label maps, and their augmentation.
        head: Network on top of the backbone: upernet, UPerNet with an auxiliary head; or linear,
            one 1x1 convolution on the features of all levels.
        head_channels: Number of channels inside UPerNet. Its auxiliary head has half as many.
        auxiliary: Weight of the loss of UPerNet's auxiliary head; 0 switches it off.
        inference: How a validation image is segmented: whole, or by sliding windows of the crops'
            size whose logits are averaged.
        stride: Pixels between two sliding windows. By default two thirds of a window.
    """

    data: SegmentData
    head: Literal["upernet", "linear"] = "upernet"
    head_channels: int = 512
    auxiliary: float = 0.4
    inference: Literal["whole", "sliding"] = "whole"
    stride: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(head_channels=self.head_channels)
        if self.stride is not None:
            check_positive(stride=self.stride)
            if self.inference == "whole":
                raise InputError(
                    f"stride is {self.stride} and inference is whole, which has no windows: give "
                    "--inference sliding, or drop stride"
                )
        if self.head_channels % 2 or self.head_channels > 2**14:
            raise InputError(
                f"head_channels is {self.head_channels}: it must be even and at most {2**14}"
            )
        if not 0 <= self.auxiliary <= 1000:
            raise InputError(f"auxiliary is {self.auxiliary}: it must be from 0 to 1000")
        if self.stride is not None and self.stride > min(self.data.crop):
            raise InputError(
                f"stride is {self.stride} and a window has {self.data.crop} pixels: a larger "
                "stride would leave pixels out"
            )

    @property
    def has_auxiliary(self) -> bool:
        """Whether the head has an auxiliary one."""
        return self.head == "upernet" and self.auxiliary > 0


def find_segment_recipe(name: str) -> Path:
    """The YAML file of a packaged recipe of a segmentation.

    Raises:
        InputError: there is no such recipe; the message lists all.
    """
    return find_recipe(name, RECIPES, "recipe of a segmentation")
