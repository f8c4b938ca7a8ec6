"""Relations: the student relates images, and an image's tokens, to each other as the teacher does.

It needs neither labels nor a classifier.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scalekd.baselines.checks import check_positive, check_weight
from scalekd.baselines.feature_queue import FeatureQueue
from scalekd.baselines.maps import in_full_precision, outside_autocast, pooled, resized, tokens
from scalekd.errors import InputError
from scalekd.features import Features, FeatureShapes
from scalekd.kinds import check_kinds
from scalekd.method.mimicking import EPSILON
from scalekd.method.perception import Tail

MAX_QUEUE = 2**20


@dataclass(frozen=True)
class Relations:
    """Settings of the distillation of relations, which LightlyTrain's third version made known.

        images = mean over images of KL( softmax(u_t Q^T / tau) || softmax(u_s Q^T / tau) )
        tokens = mean over tokens of KL( softmax(v_t V_t^T / tau) || softmax(v_s V_s^T / tau) )
        loss   = task + w_images images + w_tokens tokens

    u_t is an image's pooled feature of the teacher at unit length, u_s a linear layer of the
    student's pooled feature at unit length, Q the queue of the latest u_t. V_t and V_s are the
    unit-length tokens (H W, C) of one image of teacher and student, v_t and v_s their rows. Here
    pooled features are the mean over space of the final feature, after the final norm; a ViT's
    class token has no part in them.

    What is ours, because no paper has it: an image's own u_t enters the queue before its relations
    are computed, so there is something to compare with from the first step on; the student's tokens
    are those of its final feature, without a layer in between, resized to the teacher's grid
    (bilinear); the queue has 4096 rows. With several devices the queue holds the features of all.
    Arithmetic is in float32 under autocast, too.

    Args:
        images: Weight of the relations of an image to those in the queue, 0 or more.
        tokens: Weight of the relations between an image's tokens, 0 or more.
        temperature: Temperature tau that divides the similarities of both sides, more than 0.
        queue: Number of the latest images that the queue holds, at least 2 and at least a few
            batches. Checkpoints hold the queue.

    Raises:
        InputError: A value is out of its range.

    Example:
        >>> import torch
        >>> from scalekd.baselines import Relations
        >>> from scalekd.features import Features, FeatureShapes
        >>> student, teacher = FeatureShapes(None, (8, 4, 4)), FeatureShapes(None, (12, 2, 2))
        >>> loss = Relations(queue=64).build(student=student, teacher=teacher)
        >>> terms = loss(
        ...     Features(None, torch.randn(4, 8, 4, 4)),
        ...     Features(None, torch.randn(4, 12, 2, 2)),
        ...     tail=torch.nn.Identity(),
        ... )
        >>> list(terms), int(loss.queue.is_filled().sum())
        (['images', 'tokens'], 4)
    """

    name: ClassVar[str] = "relations"
    reads_stages: ClassVar[bool] = False
    reads_penultimate: ClassVar[bool] = False

    images: float = 1.0
    tokens: float = 1.0
    temperature: float = 0.07
    queue: int = 4096

    def __post_init__(self) -> None:
        check_kinds(self, f"{self.name}.")
        check_weight(f"{self.name}.images", self.images)
        check_weight(f"{self.name}.tokens", self.tokens)
        check_positive(f"{self.name}.temperature", self.temperature)
        if not 2 <= self.queue <= MAX_QUEUE:
            raise InputError(f"{self.name}.queue is {self.queue}: it must be from 2 to {MAX_QUEUE}")

    def build(self, *, student: FeatureShapes, teacher: FeatureShapes) -> "RelationsLoss":
        """Build the loss of a student and a teacher with these shapes.

        Raises:
            InputError: A final grid has one token, which has no relation to others.
        """
        for network, shapes in (("student", student), ("teacher", teacher)):
            if self.tokens and shapes.final[1:] == (1, 1):
                raise InputError(
                    f"{self.name}.tokens is {self.tokens} and the {network}'s final grid is 1x1, "
                    "where there are no relations between tokens: set it to 0, or use larger images"
                )
        return RelationsLoss(self, in_channels=student.final[0], out_channels=teacher.final[0])


class RelationsLoss(nn.Module):
    """The loss of `Relations`, as a dictionary of weighted terms.

    Args:
        settings: The weights, the temperature and the size of the queue.
        in_channels: Channels of the student's final feature.
        out_channels: Channels of the teacher's final feature.

    Attributes:
        settings: The weights, the temperature and the size of the queue.
        task_weight: Weight of the task's loss, which the caller adds: 1.
        projection: The linear layer of the student's pooled feature, dropped after training; None
            without the relations of images.
        queue: The teacher's latest features, which change in training mode only; None likewise.
    """

    def __init__(self, settings: Relations, *, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.settings = settings
        self.task_weight = 1.0
        self.projection: nn.Linear | None = None
        self.queue: FeatureQueue | None = None
        if settings.images:
            self.projection = nn.Linear(in_channels, out_channels)
            self.queue = FeatureQueue(settings.queue, channels=out_channels)

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
            The scalars `images` and `tokens`, in nats times their weights; those of weight 0 are
            absent.
        """
        s, t = in_full_precision(student.final), in_full_precision(teacher.final.detach())
        terms: dict[str, Tensor] = {}
        with outside_autocast(s):
            if self.queue is not None and self.projection is not None:
                u_t, u_s = unit_length(pooled(t)), unit_length(self.projection(pooled(s)))
                terms["images"] = self.settings.images * self._of_images(u_s, u_t, self.queue)
            if self.settings.tokens:
                v_t = unit_length(tokens(t))
                v_s = unit_length(tokens(resized(s, (t.shape[2], t.shape[3]))))
                tau = self.settings.temperature
                gap = divergence(v_s @ v_s.mT / tau, v_t @ v_t.mT / tau)
                terms["tokens"] = self.settings.tokens * gap
        return terms

    def _of_images(self, u_s: Tensor, u_t: Tensor, queue: FeatureQueue) -> Tensor:
        if self.training:
            queue.add(u_t)
        others = queue.rows.clone()  # the next batch changes the rows before a later backward pass
        # Not -inf: an empty queue gives equal rows, and no product of 0 and infinity.
        nothing, empty = torch.finfo(others.dtype).min, ~queue.is_filled()
        tau = self.settings.temperature
        s, t = ((u @ others.T / tau).masked_fill(empty, nothing) for u in (u_s, u_t))
        return divergence(s, t)


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean over rows of KL(softmax(teacher) || softmax(student)), over the last axis."""
    log_s, log_t = F.log_softmax(student, dim=-1), F.log_softmax(teacher, dim=-1)
    return (log_t.exp() * (log_t - log_s)).sum(-1).mean()


def unit_length(features: Tensor) -> Tensor:
    """Return features (..., C) at unit length; those shorter than 1e-4 are not scaled up to it."""
    return F.normalize(features, dim=-1, eps=EPSILON)
