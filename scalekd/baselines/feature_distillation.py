"""FD, plain feature distillation: the baseline against which the paper motivates its method."""

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor, nn

from scalekd.baselines.checks import (
    both_logits,
    check_positive,
    check_same_classes,
    check_weight,
)
from scalekd.baselines.maps import resized, tokens
from scalekd.errors import InputError
from scalekd.features import Features, FeatureShapes
from scalekd.kinds import check_kinds
from scalekd.method import distance, logit_distillation
from scalekd.method.perception import Tail


@dataclass(frozen=True)
class FeatureDistillation:
    """Settings of feature distillation (FD), the paper's own baseline.

        loss = (1 - a) task + a kd + w3 D(P3 r(S3), T3) + w4 D(P4 r(S4), T4)

    S3, S4 and T3, T4 are the penultimate and final features of student and teacher, r resizes a map
    to the teacher's grid (bilinear), P3 and P4 are 1x1 convolutions to the teacher's channels, D is
    `scalekd.method.distance`, the squared distance of unit-length tokens, and kd is
    `scalekd.method.logit_distillation`.

    The paper (arXiv 2411.06786) compares with FD at the penultimate stage, the final one and both,
    and its code for that was never released. This form takes from ScaleKD whatever the two may
    share: the distance in the original view, the weights, and T4 after the teacher's final norm. In
    the place of the cross-attention projector is a convolution with bias, without norm or
    activation. Resizing before the convolution gives the same map as after it.

    Args:
        penultimate: Weight w3 of the penultimate features' distance, 0 or more. A cache of the
            teacher's outputs does not hold its penultimate feature: set it to 0 there.
        final: Weight w4 of the final features' distance, 0 or more.
        logits: Weight a of logit distillation, from 0 to 1; the task's loss has weight 1 - a. By
            default 0.5, and in a recipe that of weights.logits.
        temperature: Temperature that divides the logits in logit distillation, more than 0. By
            default 1, and in a recipe its own.

    Raises:
        InputError: A value is out of its range.

    Example:
        >>> import torch
        >>> from scalekd.baselines import FeatureDistillation
        >>> from scalekd.features import Features, FeatureShapes
        >>> student, teacher = FeatureShapes(None, (8, 4, 4)), FeatureShapes(None, (12, 2, 2))
        >>> loss = FeatureDistillation(penultimate=0.0, logits=0.0).build(
        ...     student=student, teacher=teacher
        ... )
        >>> terms = loss(
        ...     Features(None, torch.randn(4, 8, 4, 4)),
        ...     Features(None, torch.randn(4, 12, 2, 2)),
        ...     tail=torch.nn.Identity(),
        ... )
        >>> list(terms)
        ['final']
    """

    name: ClassVar[str] = "fd"
    reads_stages: ClassVar[bool] = False

    penultimate: float = 0.08
    final: float = 0.08
    logits: float | None = None
    temperature: float | None = None

    def __post_init__(self) -> None:
        check_kinds(self, f"{self.name}.")
        check_weight(f"{self.name}.penultimate", self.penultimate)
        check_weight(f"{self.name}.final", self.final)
        if self.logits is not None:
            check_weight(f"{self.name}.logits", self.logits, most=1)
        if self.temperature is not None:
            check_positive(f"{self.name}.temperature", self.temperature)

    def with_defaults(
        self, *, logits: float = 0.5, temperature: float = 1.0
    ) -> "FeatureDistillation":
        """The same settings with these two where they are not set."""
        return replace(
            self,
            logits=logits if self.logits is None else self.logits,
            temperature=temperature if self.temperature is None else self.temperature,
        )

    @property
    def reads_penultimate(self) -> bool:
        """Whether the penultimate features of teacher and student are read."""
        return self.penultimate > 0

    def build(self, *, student: FeatureShapes, teacher: FeatureShapes) -> "FeatureDistillationLoss":
        """Build the loss of a student and a teacher with these shapes.

        Raises:
            InputError: A feature or a classifier is missing that a weight above 0 needs, or the
                numbers of classes differ.
        """
        if self.with_defaults().logits:
            check_same_classes(
                f"{self.name}.logits",
                student=student,
                teacher=teacher,
                remedy="set it to 0 to distil only features",
            )
        return FeatureDistillationLoss(self, student=student, teacher=teacher)


class FeatureDistillationLoss(nn.Module):
    """The loss of `FeatureDistillation`, as a dictionary of weighted terms.

    Args:
        settings: The weights and the temperature.
        student: Shapes of the student's features.
        teacher: Shapes of the teacher's features.

    Attributes:
        settings: The weights and the temperature, with defaults where they were not set.
        task_weight: Weight of the task's loss, which the caller adds.
        projections: The 1x1 convolutions by the names of their terms.

    Raises:
        InputError: The penultimate feature has a weight and one side has no such feature.
    """

    def __init__(
        self, settings: FeatureDistillation, *, student: FeatureShapes, teacher: FeatureShapes
    ) -> None:
        super().__init__()
        self.settings = settings = settings.with_defaults()
        assert settings.logits is not None
        self.task_weight = 1 - settings.logits
        self.projections = nn.ModuleDict()
        for stage in ("penultimate", "final"):
            if getattr(settings, stage):
                s, t = getattr(student, stage), getattr(teacher, stage)
                _check_present(stage, student=s, teacher=t)
                self.projections[stage] = nn.Conv2d(s[0], t[0], 1)

    def forward(
        self, student: Features, teacher: Features, tail: Tail, targets: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Compute the weighted terms.

        Args:
            student: The student's features; gradients reach them and the projections.
            teacher: The teacher's features, detached here.
            tail: Not read.
            targets: Not read.

        Returns:
            The scalars `penultimate`, `final` and `logits`; those of weight 0 are absent.

        Raises:
            InputError: A feature, or logits, that a weight above 0 needs are missing.
        """
        terms: dict[str, Tensor] = {}
        for stage, project in self.projections.items():
            s, t = getattr(student, stage), getattr(teacher, stage)
            _check_present(stage, student=s, teacher=t)
            mimicking = project(resized(s, tuple(t.shape[2:])))
            gap = distance(tokens(mimicking), tokens(t.detach()))
            terms[stage] = getattr(self.settings, stage) * gap
        if self.settings.logits and self.settings.temperature:
            s, t = both_logits("logit distillation", student=student, teacher=teacher)
            kd = logit_distillation(s, t, self.settings.temperature)
            terms["logits"] = self.settings.logits * kd
        return terms


def _check_present(stage: str, *, student: object, teacher: object) -> None:
    """Raise an InputError where one side has no feature of this stage."""
    for network, feature in (("student", student), ("teacher", teacher)):
        if feature is None:
            raise InputError(
                f"{FeatureDistillation.name}.{stage} needs the {network}'s {stage} feature, which "
                "is not given (a cache of a teacher's outputs does not hold it): set it to 0"
            )
