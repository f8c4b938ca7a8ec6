"""RSD: the student's pooled feature correlates with the teacher's, channel by channel."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from scalekd.baselines.checks import check_several_images, check_weight
from scalekd.baselines.maps import outside_autocast, pooled
from scalekd.features import Features, FeatureShapes
from scalekd.kinds import check_kinds
from scalekd.method.perception import Tail

PUBLISHED_WEIGHT, PUBLISHED_CHANNELS = 0.1, 768
"""The published weight, and the channels of the teachers that it was chosen for."""

EPSILON = 1e-6
"""Added to the variance over the batch: a channel that is constant there becomes 0."""


@dataclass(frozen=True)
class Rsd:
    """Settings of redundancy suppression distillation, RSD (Zhang et al., ICCV 2025).

        P    = n(f_t)^T n(h(f_s)) / N                                           (C, C)
        loss = task + l [ sum_i (P_ii - 1)^2 + k sum_{i != j} P_ij^2 ]

    f are the pooled features, n subtracts the mean over the batch of N images and divides by the
    standard deviation, C are the teacher's channels, and h is Linear(2 C), BatchNorm, GELU,
    Linear(C), which is dropped after training. Here f is the mean over space of the final feature,
    after the final norm; a ViT's class token has no part in it. Arithmetic is in float32 under
    autocast, too. As in the published code, the batch is that of one device and one micro-batch.

    Args:
        weight: Weight l of the loss, 0 or more. By default 0.1 for a teacher of 768 channels, as
            published, and 0.1 x 768 / C for one of C, because the loss sums over the channels.
        off_diagonal: Weight k of the correlations between different channels, relative to those of
            the same channel, 0 or more.

    Raises:
        InputError: A value is out of its range.

    Example:
        >>> import torch
        >>> from scalekd.baselines import Rsd
        >>> from scalekd.features import Features, FeatureShapes
        >>> student, teacher = FeatureShapes(None, (8, 4, 4)), FeatureShapes(None, (12, 2, 2))
        >>> loss = Rsd().build(student=student, teacher=teacher)
        >>> terms = loss(
        ...     Features(None, torch.randn(16, 8, 4, 4)),
        ...     Features(None, torch.randn(16, 12, 2, 2)),
        ...     tail=torch.nn.Identity(),
        ... )
        >>> list(terms), round(loss.weight, 3)
        (['diagonal', 'off_diagonal'], 6.4)
    """

    name: ClassVar[str] = "rsd"
    reads_stages: ClassVar[bool] = False
    reads_penultimate: ClassVar[bool] = False

    weight: float | None = None
    off_diagonal: float = 0.01

    def __post_init__(self) -> None:
        check_kinds(self, f"{self.name}.")
        if self.weight is not None:
            check_weight(f"{self.name}.weight", self.weight)
        check_weight(f"{self.name}.off_diagonal", self.off_diagonal)

    def build(self, *, student: FeatureShapes, teacher: FeatureShapes) -> "RsdLoss":
        """Build the loss of a student and a teacher with these shapes."""
        return RsdLoss(self, in_channels=student.final[0], out_channels=teacher.final[0])


class RsdLoss(nn.Module):
    """The loss of `Rsd`, as a dictionary of weighted terms.

    Args:
        settings: The weights.
        in_channels: Channels of the student's final feature.
        out_channels: Channels of the teacher's final feature.

    Attributes:
        weight: l, resolved for the teacher's channels.
        off_diagonal: k.
        task_weight: Weight of the task's loss, which the caller adds: 1.
        head: h, dropped after training.
    """

    def __init__(self, settings: Rsd, *, in_channels: int, out_channels: int) -> None:
        super().__init__()
        published = PUBLISHED_WEIGHT * PUBLISHED_CHANNELS / out_channels
        self.weight = published if settings.weight is None else settings.weight
        self.off_diagonal = settings.off_diagonal
        self.task_weight = 1.0
        self.head = nn.Sequential(
            nn.Linear(in_channels, 2 * out_channels),
            nn.BatchNorm1d(2 * out_channels),
            nn.GELU(),
            nn.Linear(2 * out_channels, out_channels),
        )

    def forward(
        self, student: Features, teacher: Features, tail: Tail, targets: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Compute the weighted terms.

        Args:
            student: The student's features, of which the final one (N, C, H, W) is read.
            teacher: The teacher's features, of which the final one is read, detached.
            tail: Not read.
            targets: Not read.

        Returns:
            The scalars `diagonal` and `off_diagonal`; those of weight 0 are absent.

        Raises:
            InputError: One image, of which there are no statistics.
        """
        if not self.weight:
            return {}
        check_several_images("RSD's correlation", len(student.final))
        with outside_autocast(student.final):
            mimicking = standardized(self.head(pooled(student.final)))
            target = standardized(pooled(teacher.final.detach()))
            correlations = target.T @ mimicking / len(target)
        diagonal = correlations.diagonal()
        terms = {"diagonal": self.weight * (diagonal - 1).square().sum()}
        if self.off_diagonal:
            others = correlations - diagonal.diag_embed()
            terms["off_diagonal"] = self.weight * self.off_diagonal * others.square().sum()
        return terms


def standardized(features: Tensor) -> Tensor:
    """Return features (N, C) with mean 0 and standard deviation 1 of each channel over the N."""
    centred = features - features.mean(0)
    return centred / (centred.square().mean(0) + EPSILON).sqrt()
