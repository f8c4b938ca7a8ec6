"""DIST: the student's probabilities correlate with the teacher's, over classes and over images."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from scalekd.baselines.checks import (
    both_logits,
    check_positive,
    check_same_classes,
    check_several_images,
    check_weight,
)
from scalekd.baselines.maps import in_full_precision
from scalekd.errors import InputError
from scalekd.features import Features, FeatureShapes
from scalekd.kinds import check_kinds
from scalekd.method.perception import Tail

SMALLEST_SPREAD = 1e-2
"""Values whose spread is a smaller share of their length than this are not scaled up to it.

A classifier that starts at zero, as an MLP-Mixer's, gives all classes the same probability. There
the correlation is undefined and the gradient of its usual form, bounded by 1e-8, is 1e7 times that
of any later step.
"""


@dataclass(frozen=True)
class Dist:
    """Settings of DIST (Huang et al., NeurIPS 2022, arXiv 2205.10536).

        p     = softmax(logits / tau)                               (N, classes), for both sides
        inter = 1 - mean over images of corr(p_s, p_t) over the classes
        intra = 1 - mean over classes of corr(p_s, p_t) over the images of the batch
        loss  = task + tau^2 (w_inter inter + w_intra intra)

    corr is the Pearson correlation. One thing differs from the published code: probabilities that
    are nearly constant (`SMALLEST_SPREAD`) are divided by a share of their length in place of their
    spread, so that the first steps of a classifier that starts at zero stay finite. The images of
    `intra` are those of one device and one micro-batch, as published; it says little with few
    classes.

    Args:
        inter: Weight of the correlation over an image's classes, 0 or more. It needs at least three
            classes, because a correlation of two values is 1 or -1.
        intra: Weight of the correlation over the images of a batch, for each class, 0 or more.
        temperature: Temperature tau that divides the logits of both sides, more than 0.

    Raises:
        InputError: A value is out of its range.

    Example:
        >>> import torch
        >>> from scalekd.baselines import Dist
        >>> from scalekd.features import Features, FeatureShapes
        >>> shapes = FeatureShapes(None, (8, 2, 2), classes=10)
        >>> loss = Dist(temperature=4.0).build(student=shapes, teacher=shapes)
        >>> student, teacher = (
        ...     Features(None, torch.randn(4, 8, 2, 2), torch.randn(4, 10)) for _ in range(2)
        ... )
        >>> list(loss(student, teacher, tail=torch.nn.Identity()))
        ['inter', 'intra']
    """

    name: ClassVar[str] = "dist"
    reads_stages: ClassVar[bool] = False
    reads_penultimate: ClassVar[bool] = False

    inter: float = 2.0
    intra: float = 2.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_kinds(self, f"{self.name}.")
        check_weight(f"{self.name}.inter", self.inter)
        check_weight(f"{self.name}.intra", self.intra)
        check_positive(f"{self.name}.temperature", self.temperature)

    def build(self, *, student: FeatureShapes, teacher: FeatureShapes) -> "DistLoss":
        """Build the loss of a student and a teacher with these shapes.

        Raises:
            InputError: One of them has no classifier, their numbers of classes differ, or there are
                too few classes.
        """
        remedy = "take a teacher with the student's classes, or a method that needs no logits"
        classes = check_same_classes("DIST", student=student, teacher=teacher, remedy=remedy)
        if classes < 3 and self.inter:
            raise InputError(
                f"{self.name}.inter is {self.inter} and there are {classes} classes: the "
                "correlation of fewer than 3 values has no gradient; set it to 0"
            )
        return DistLoss(self)


class DistLoss(nn.Module):
    """The loss of `Dist`, as a dictionary of weighted terms; it has no parameters.

    Args:
        settings: The weights and the temperature.

    Attributes:
        settings: The weights and the temperature.
        task_weight: Weight of the task's loss, which the caller adds: 1.
    """

    def __init__(self, settings: Dist) -> None:
        super().__init__()
        self.settings = settings
        self.task_weight = 1.0

    def forward(
        self, student: Features, teacher: Features, tail: Tail, targets: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Compute the weighted terms.

        Args:
            student: The student's features, of which the logits (N, classes) are read.
            teacher: The teacher's features, of which the logits are read, detached.
            tail: Not read.
            targets: Not read.

        Returns:
            The scalars `inter` and `intra`; those of weight 0 are absent.

        Raises:
            InputError: Logits that are missing or differ in shape; one image under `intra`.
        """
        tau = self.settings.temperature
        s, t = both_logits("DIST", student=student, teacher=teacher)
        p_s = F.softmax(in_full_precision(s) / tau, dim=1)
        p_t = F.softmax(in_full_precision(t) / tau, dim=1)
        terms: dict[str, Tensor] = {}
        if self.settings.inter:
            inter = 1 - correlation(p_s, p_t).mean()
            terms["inter"] = self.settings.inter * tau**2 * inter
        if self.settings.intra:
            check_several_images("dist.intra", len(p_s))
            intra = 1 - correlation(p_s.T, p_t.T).mean()
            terms["intra"] = self.settings.intra * tau**2 * intra
        return terms


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Return the Pearson correlation of the rows of two tensors (R, V), as (R,).

    Rows that are nearly constant, see `SMALLEST_SPREAD`, give values closer to 0.
    """
    return (_standardized(a) * _standardized(b)).sum(1)


def _standardized(rows: Tensor) -> Tensor:
    """The rows minus their means, at unit length."""
    centred = rows - rows.mean(1, keepdim=True)
    smallest = SMALLEST_SPREAD * rows.detach().norm(dim=1, keepdim=True)
    spread = centred.norm(dim=1, keepdim=True).maximum(smallest)
    standardized: Tensor = centred / spread.clamp_min(1e-30)  # where all probabilities are 0
    return standardized
