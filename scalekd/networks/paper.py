"""The models and pairs of the paper, by their names in timm.

These tables hold only the exceptions to the general rules (the defaults of `FeatureSelection`,
projector heads of 64 channels). They are closed: they describe what one paper did, and other
models need no entry.
"""

from dataclasses import dataclass, field
from typing import Any

from scalekd.networks.feature_selection import FeatureSelection

SWIN_S = "swin_small_patch4_window7_224"
SWIN_B = "swin_base_patch4_window7_224"
SWIN_L = "swin_large_patch4_window7_224"
EVA_L = "eva_large_patch14_196"

STUDENT_SELECTIONS = {
    "mixer_s16_224": FeatureSelection(penultimate=5, norm="none"),
    "mixer_b16_224": FeatureSelection(penultimate=9, norm="none"),
    "mixer_b14_224": FeatureSelection(penultimate=9, norm="none"),
}

TEACHER_SELECTIONS = {
    EVA_L: FeatureSelection(penultimate=21),
    "vit_base_patch16_224": FeatureSelection(penultimate=7),
}

TEACHER_HEADS = {SWIN_S: (3, 6), SWIN_B: (8, 16), SWIN_L: (16, 24)}
"""Attention heads of CAP3 and CAP4, where the teacher decides them."""

PAIR_HEADS = {(SWIN_L, "vit_base_patch16_224"): (8, 8)}
"""Attention heads of CAP3 and CAP4, where the student changes the teacher's."""


@dataclass(frozen=True)
class PublishedPair:
    """A pair of the paper, and what the paper reports.

    teacher, student: timm's names.
    parameters: of the student, in millions.
    gmac: multiply-accumulate operations of the student for one image, in billions.
    supervised, scalekd: the student's top-1 accuracy on ImageNet-1K in %, trained without and with
        the teacher; None for the ablations' teachers.
    teacher_args, student_args: more arguments for `timm.create_model`.
    """

    teacher: str
    student: str
    parameters: float
    gmac: float
    supervised: float | None
    scalekd: float | None
    teacher_args: dict[str, Any] = field(default_factory=dict)
    student_args: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.teacher}-{self.student}"


_EVA: dict[str, Any] = {"img_size": 224}
_VIT: dict[str, Any] = {"class_token": False, "global_pool": "avg", "fc_norm": False}

PAIRS = [
    PublishedPair(SWIN_L, "mobilenetv1_100", 4.23, 0.58, 72.10, 75.15),
    PublishedPair(SWIN_L, "resnet50", 25.56, 4.12, 78.64, 82.03),
    PublishedPair(SWIN_L, "convnext_tiny", 28.59, 4.46, 82.14, 84.16),
    PublishedPair(SWIN_L, "mixer_s16_224", 18.53, 3.78, 74.02, 78.63),
    PublishedPair(SWIN_L, "mixer_b16_224", 59.88, 12.61, 76.44, 81.96),
    PublishedPair(SWIN_L, "vit_small_patch16_224", 22.05, 4.61, 79.90, 83.93, {}, _VIT),
    PublishedPair(SWIN_L, "swin_tiny_patch4_window7_224", 28.29, 4.36, 81.18, 83.80),
    PublishedPair(SWIN_L, "vit_base_patch16_224", 86.57, 17.58, 81.80, 85.53, {}, _VIT),
    PublishedPair(EVA_L, "resnet50", 25.56, 4.12, 78.64, 82.34, _EVA),
    PublishedPair(EVA_L, "mixer_b14_224", 59.88, 16.45, 76.62, 82.89, _EVA),
    PublishedPair(
        EVA_L, "vit_base_patch16_224", 86.57, 23.09, 82.02, 86.43, _EVA, {**_VIT, "patch_size": 14}
    ),
]
"""The pairs of Table 3."""

ABLATION_PAIRS = [
    PublishedPair(SWIN_S, "resnet50", 25.56, 4.12, None, None),
    PublishedPair(SWIN_B, "resnet50", 25.56, 4.12, None, None),
]
"""Pairs with the smaller Swin teachers of the paper's ablations."""
