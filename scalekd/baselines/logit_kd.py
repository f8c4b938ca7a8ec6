"""Logit KD: logit distillation alone, the baseline that every other method is measured against."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from scalekd.baselines.checks import (
    both_logits,
    check_positive,
    check_same_classes,
    check_weight,
)
from scalekd.features import Features, FeatureShapes
from scalekd.kinds import check_kinds
from scalekd.method import logit_distillation
from scalekd.method.perception import Tail


@dataclass(frozen=True)
class LogitKd:
    """Settings of logit KD (Hinton et al., 2015), scaled as in ScaleKD's configurations.

        loss = (1 - a) task - a T^2 mean_n sum_c softmax(t / T) log_softmax(s / T)

    s and t are the logits of student and teacher. The terms are bit-identical to those of
    `ScaleKDLoss` whose only weight is `logits`.

    Args:
        logits: Weight a of logit distillation, from 0 to 1; the task's loss has weight 1 - a.
        temperature: Temperature T that divides the logits of both sides, more than 0.

    Raises:
        InputError: A value is out of its range.

    Example:
        >>> import torch
        >>> from scalekd.baselines import LogitKd
        >>> from scalekd.features import Features, FeatureShapes
        >>> shapes = FeatureShapes(None, (8, 2, 2), classes=10)
        >>> loss = LogitKd(logits=0.9, temperature=4.0).build(student=shapes, teacher=shapes)
        >>> student, teacher = (
        ...     Features(None, torch.randn(4, 8, 2, 2), torch.randn(4, 10)) for _ in range(2)
        ... )
        >>> list(loss(student, teacher, tail=torch.nn.Identity()))
        ['logits']
        >>> round(loss.task_weight, 3)
        0.1
    """

    name: ClassVar[str] = "logit_kd"
    reads_stages: ClassVar[bool] = False
    reads_penultimate: ClassVar[bool] = False

    logits: float = 0.5
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_kinds(self, f"{self.name}.")
        check_weight(f"{self.name}.logits", self.logits, most=1)
        check_positive(f"{self.name}.temperature", self.temperature)

    def build(self, *, student: FeatureShapes, teacher: FeatureShapes) -> "LogitKdLoss":
        """Build the loss of a student and a teacher with these shapes.

        Raises:
            InputError: One of them has no classifier, or their numbers of classes differ.
        """
        if self.logits:
            remedy = "take a teacher with the student's classes, or a method that needs no logits"
            check_same_classes("logit KD", student=student, teacher=teacher, remedy=remedy)
        return LogitKdLoss(self)


class LogitKdLoss(nn.Module):
    """The loss of `LogitKd`, as a dictionary of weighted terms; it has no parameters.

    Args:
        settings: The weight and the temperature.

    Attributes:
        settings: The weight and the temperature.
        task_weight: Weight of the task's loss, which the caller adds.
    """

    def __init__(self, settings: LogitKd) -> None:
        super().__init__()
        self.settings = settings
        self.task_weight = 1 - settings.logits

    def forward(
        self, student: Features, teacher: Features, tail: Tail, targets: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Compute the weighted term.

        Args:
            student: The student's features, of which the logits (N, classes) are read.
            teacher: The teacher's features, of which the logits are read, detached.
            tail: Not read.
            targets: Not read.

        Returns:
            The scalar `logits`; nothing where its weight is 0.

        Raises:
            InputError: Logits that are missing or differ in shape.
        """
        weight = self.settings.logits
        if not weight:
            return {}
        s, t = both_logits("logit KD", student=student, teacher=teacher)
        return {"logits": weight * logit_distillation(s, t, self.settings.temperature)}
