"""OFA-KD: every stage of the student gets a classifier of its own and learns in logit space."""

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
from scalekd.baselines.stage_heads import build_stage_head
from scalekd.errors import InputError
from scalekd.features import Features, FeatureShapes, MapShape
from scalekd.kinds import check_kinds
from scalekd.method.perception import Tail

MAX_EXPONENT = 10.0


@dataclass(frozen=True)
class Ofa:
    """Settings of OFA-KD (Hao et al., NeurIPS 2023, arXiv 2310.19444).

        ofa(z) = - mean over images of sum over classes ((p_t + m)^e - m) log softmax(z / T)
        loss   = task + w_logits ofa(z_s) + w_stages sum over the student's stages of ofa(head(S))

    z_s are the student's logits, p_t is the teacher's softmax(z_t / T), m is 1 for the image's
    class and 0 for the others, S the map of a stage. Exponents e above 1 raise the weight of the
    image's class; at 1 it has no part and ofa is the cross-entropy under the teacher. As published,
    there is no factor T^2.

    A stage's head halves the map by separable 3x3 convolutions of stride 2 up to the grid of the
    last stage, each with BatchNorm and ReLU and twice the channels (at most the last stage's), then
    takes the mean over space and a linear layer to the classes. A stage on that grid already, which
    is the last one and every stage of a student with tokens, has one such convolution of stride 1.
    The published heads of students with tokens are made of patch merging and attention blocks;
    ours are the same for all students. Of class probabilities (Mixup) the most probable class
    counts as the image's: the probabilities in place of m would give negative targets.

    Args:
        logits: Weight of the term of the student's own logits, 0 or more.
        stages: Weight of the term of each stage's head, 0 or more.
        exponent: Exponent e, more than 0; the authors choose it from 1 to 1.5 by teacher and
            student, so it must be tuned.
        temperature: Temperature T that divides the logits of teacher, student and heads, more
            than 0.

    Raises:
        InputError: A value is out of its range.

    Example:
        >>> import torch
        >>> from scalekd.baselines import Ofa
        >>> from scalekd.features import Features, FeatureShapes
        >>> teacher = FeatureShapes(None, (12, 2, 2), classes=10)
        >>> student = FeatureShapes(None, (8, 2, 2), classes=10, stages=((4, 4, 4), (8, 2, 2)))
        >>> loss = Ofa(exponent=1.2).build(student=student, teacher=teacher)
        >>> stages = torch.randn(4, 4, 4, 4), torch.randn(4, 8, 2, 2)
        >>> terms = loss(
        ...     Features(None, stages[-1], torch.randn(4, 10), stages),
        ...     Features(None, torch.randn(4, 12, 2, 2), torch.randn(4, 10)),
        ...     tail=torch.nn.Identity(),
        ...     targets=torch.tensor([0, 3, 9, 3]),
        ... )
        >>> list(terms)
        ['logits', 'stage_1', 'stage_2']
    """

    name: ClassVar[str] = "ofa"
    reads_stages: ClassVar[bool] = True
    reads_penultimate: ClassVar[bool] = False

    logits: float = 1.0
    stages: float = 1.0
    exponent: float = 1.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_kinds(self, f"{self.name}.")
        check_weight(f"{self.name}.logits", self.logits)
        check_weight(f"{self.name}.stages", self.stages)
        check_positive(f"{self.name}.exponent", self.exponent, most=MAX_EXPONENT)
        check_positive(f"{self.name}.temperature", self.temperature)

    def build(self, *, student: FeatureShapes, teacher: FeatureShapes) -> "OfaLoss":
        """Build the loss of a student and a teacher with these shapes.

        Raises:
            InputError: One of them has no classifier, their numbers of classes differ, or the
                student gives no maps of its stages.
        """
        remedy = "take a teacher with the student's classes, or a method that needs no logits"
        classes = check_same_classes("OFA-KD", student=student, teacher=teacher, remedy=remedy)
        if self.stages and not student.stages:
            raise InputError(
                f"{self.name}.stages is {self.stages} and the student gives no maps of its stages: "
                "take a timm model, or set it to 0"
            )
        return OfaLoss(self, stages=student.stages, classes=classes)


class OfaLoss(nn.Module):
    """The loss of `Ofa`, as a dictionary of weighted terms.

    Args:
        settings: The weights, the exponent and the temperature.
        stages: Shapes of the maps of the student's stages, the first one first.
        classes: The number of classes.

    Attributes:
        settings: The weights, the exponent and the temperature.
        task_weight: Weight of the task's loss, which the caller adds: 1.
        heads: One classifier for each stage, dropped after training.
    """

    def __init__(self, settings: Ofa, *, stages: tuple[MapShape, ...], classes: int) -> None:
        super().__init__()
        self.settings = settings
        self.task_weight = 1.0
        self.heads = nn.ModuleList()
        if settings.stages:
            for shape in stages:
                self.heads.append(build_stage_head(shape, last=stages[-1], classes=classes))

    def forward(
        self, student: Features, teacher: Features, tail: Tail, targets: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Compute the weighted terms.

        Args:
            student: The student's features, of which the logits (N, classes) and the maps of all
                stages (N, C, H, W) are read.
            teacher: The teacher's features, of which the logits are read, detached.
            tail: Not read.
            targets: Class indices (N,), or class probabilities (N, classes).

        Returns:
            The scalars `logits` and `stage_1`, `stage_2`, ...; those of weight 0 are absent.

        Raises:
            InputError: There are no targets, logits or maps of stages; the maps are not as many as
                the heads; or one image in training, which the heads' BatchNorm cannot take.
        """
        if targets is None:
            raise InputError(
                "OFA-KD needs labels, and there are no targets: take images with labels, or "
                "another method"
            )
        s, t = both_logits("OFA-KD", student=student, teacher=teacher)
        indices = targets.argmax(1) if targets.is_floating_point() else targets
        t = in_full_precision(t)
        image_class = F.one_hot(indices, t.shape[1]).to(t.dtype)
        p_t = F.softmax(t / self.settings.temperature, dim=1)
        goal = (p_t + image_class) ** self.settings.exponent - image_class
        terms: dict[str, Tensor] = {}
        if self.settings.logits:
            terms["logits"] = self.settings.logits * self._cross_entropy(s, goal)
        if self.heads:
            self._check_stages(student)
        for number, head in enumerate(self.heads):
            by_stage = self._cross_entropy(head(student.stages[number]), goal)
            terms[f"stage_{number + 1}"] = self.settings.stages * by_stage
        return terms

    def _cross_entropy(self, logits: Tensor, goal: Tensor) -> Tensor:
        softened = in_full_precision(logits) / self.settings.temperature
        return -(goal * F.log_softmax(softened, dim=1)).sum(1).mean()

    def _check_stages(self, student: Features) -> None:
        if len(student.stages) != len(self.heads):
            raise InputError(
                f"the student gives maps of {len(student.stages)} stages and OFA-KD was built for "
                f"{len(self.heads)}: give the features of the same network"
            )
        if self.training:
            check_several_images("BatchNorm in the stages' heads", len(student.stages[0]))
