"""VkD: an orthogonal projection of the student's pooled feature mimics the teacher's."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from scalekd.baselines.checks import check_weight
from scalekd.baselines.maps import outside_autocast, pooled
from scalekd.features import Features, FeatureShapes
from scalekd.kinds import check_kinds
from scalekd.method.perception import Tail


@dataclass(frozen=True)
class Vkd:
    """Settings of VkD (Miles et al., CVPR 2024, arXiv 2403.06213).

        loss = task + w smooth_l1(P f_s, layer_norm(f_t))

    f are the pooled features (N, C), P is a matrix with orthonormal columns, or orthonormal rows
    where the teacher has fewer channels than the student, layer_norm is over the channels and has
    no parameters, and smooth_l1 is a mean over images and channels. Here f is the mean over space
    of the final feature, after the final norm; a ViT's class token has no part in it. The authors'
    whitening of a teacher that was trained to generate is not offered. P is kept orthonormal by
    torch's parametrization (the Cayley map, one linear system of as many unknowns as the wider side
    has channels), and the loss is computed in float32, under autocast, too.

    Args:
        weight: Weight w of the loss, 0 or more.

    Raises:
        InputError: A value is out of its range.

    Example:
        >>> import torch
        >>> from scalekd.baselines import Vkd
        >>> from scalekd.features import Features, FeatureShapes
        >>> student, teacher = FeatureShapes(None, (8, 4, 4)), FeatureShapes(None, (12, 2, 2))
        >>> loss = Vkd().build(student=student, teacher=teacher)
        >>> terms = loss(
        ...     Features(None, torch.randn(4, 8, 4, 4)),
        ...     Features(None, torch.randn(4, 12, 2, 2)),
        ...     tail=torch.nn.Identity(),
        ... )
        >>> list(terms)
        ['features']
    """

    name: ClassVar[str] = "vkd"
    reads_stages: ClassVar[bool] = False
    reads_penultimate: ClassVar[bool] = False

    weight: float = 1.0

    def __post_init__(self) -> None:
        check_kinds(self, f"{self.name}.")
        check_weight(f"{self.name}.weight", self.weight)

    def build(self, *, student: FeatureShapes, teacher: FeatureShapes) -> "VkdLoss":
        """Build the loss of a student and a teacher with these shapes."""
        return VkdLoss(self, in_channels=student.final[0], out_channels=teacher.final[0])


class VkdLoss(nn.Module):
    """The loss of `Vkd`, as a dictionary of weighted terms.

    Args:
        settings: The weight.
        in_channels: Channels of the student's final feature.
        out_channels: Channels of the teacher's final feature.

    Attributes:
        settings: The weight.
        task_weight: Weight of the task's loss, which the caller adds: 1.
        projection: P, whose `weight` (teacher's channels, student's channels) is orthonormal.
    """

    def __init__(self, settings: Vkd, *, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.settings = settings
        self.task_weight = 1.0
        linear = nn.Linear(in_channels, out_channels, bias=False)
        # Not the default, "householder", which reads signs from a parameter's diagonal as integers:
        # any weight decay makes 0 of 1 there, and columns of the projection vanish. Trivialization
        # needs a QR decomposition, which the meta device does not have.
        self.projection = parametrizations.orthogonal(
            linear, orthogonal_map="cayley", use_trivialization=False
        )

    def forward(
        self, student: Features, teacher: Features, tail: Tail, targets: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Compute the weighted term.

        Args:
            student: The student's features, of which the final one (N, C, H, W) is read.
            teacher: The teacher's features, of which the final one is read, detached.
            tail: Not read.
            targets: Not read.

        Returns:
            The scalar `features`; nothing where its weight is 0.
        """
        if not self.settings.weight:
            return {}
        with outside_autocast(student.final):  # half precision would lose the orthogonality
            mimicking = self.projection(pooled(student.final))
            f_t = pooled(teacher.final.detach())
            gap = F.smooth_l1_loss(mimicking, F.layer_norm(f_t, f_t.shape[1:]))
        return {"features": self.settings.weight * gap}
