"""TPP, teacher parameter perception, and the whole feature loss that it holds together.

The student's penultimate feature is projected to the teacher's and sent through the teacher's own
frozen last stage; what comes out mimics the teacher's final feature, and asks as queries what
the student's own final feature has to say to it.
"""

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor, nn

from scalekd.errors import InputError
from scalekd.features import Features, FeatureShapes, MapShape
from scalekd.method import released
from scalekd.method.logits import check_temperature, logit_distillation
from scalekd.method.mimicking import alternative_view, distance, original_view
from scalekd.method.projector import SOFTMAX_SCALE, CrossAttentionProjector
from scalekd.method.weights import LossWeights, seen_in_space

Tail = Callable[[Tensor], Tensor]
"""The teacher's frozen last stage: tokens (N, L, C), row-major on the teacher's penultimate grid,
to tokens (N, L', C') on its final grid, final norm included."""

VIEWS = {"original": original_view, "alternative": alternative_view}


class ScaleKDLoss(nn.Module):
    """sum over views v of w3_v D_v(z_v, T4) + w4_v D_v(w_v, T4), and a kd.

        z_v = tail(CAP3_v(S3))          w_v = CAP4_v(S4, query = z_v), z_v not detached

    The whole objective is (1 - a) times the task's loss plus the sum of these terms.

    Args:
        student: shapes of S3 and S4.
        teacher: shapes of its penultimate feature (a grid and channels, never a target) and T4.
        heads: attention heads of CAP3 and CAP4.
        weights: of the terms.
        temperature: T of the logits.
        norm: of the projectors' stems, from a number of channels (ConvNeXt students: ChannelNorm).
        scale: s of the projectors' attention.
        separable_stem: cheaper stems than the paper's; see `projector.separable`.
        one_token: what to do with an alternative view of a one-token grid, which is always zero
            and has an exploding gradient: "refuse" it, or "drop" that term with a warning.

    Raises:
        InputError: heads that do not divide the channels, a temperature that is not positive,
            a one-token grid under an alternative view.
    """

    def __init__(
        self,
        student: FeatureShapes,
        teacher: FeatureShapes,
        heads: tuple[int, int],
        weights: LossWeights | None = None,
        temperature: float = 1.0,
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
        scale: float = SOFTMAX_SCALE,
        separable_stem: bool = False,
        one_token: Literal["refuse", "drop"] = "refuse",
    ) -> None:
        super().__init__()
        self.temperature = check_temperature(temperature)
        self.weights = seen_in_space(weights or LossWeights(), student, teacher, one_token)

        def projector(source: MapShape, target: MapShape, heads: int, own_query: bool) -> nn.Module:
            grid = target[1:] if own_query else None
            channels = source[0], target[0]
            return CrossAttentionProjector(
                *channels, source[1:], grid, heads, norm, scale, separable_stem
            )

        self.penultimate = nn.ModuleDict()
        self.final = nn.ModuleDict()
        for view in VIEWS:
            asked_by_tail = getattr(self.weights, f"tpp_{view}") > 0
            if asked_by_tail:
                s3, t3 = student.penultimate, teacher.penultimate
                if s3 is None or t3 is None:
                    raise InputError(f"the weight tpp_{view} needs penultimate features' shapes")
                self.penultimate[view] = projector(s3, t3, heads[0], own_query=True)
            if getattr(self.weights, f"final_{view}") > 0:
                s4, t4 = student.final, teacher.final
                self.final[view] = projector(s4, t4, heads[1], own_query=not asked_by_tail)

    @classmethod
    def from_released(
        cls,
        penultimate: dict[str, Any] | None,
        final: dict[str, Any],
        kd: dict[str, Any] | None,
        state_dict: dict[str, Tensor],
    ) -> "ScaleKDLoss":
        """The same loss from the released code's arguments and weights, to continue or to compare.

        Args:
            penultimate: `s3_cfg`, or None without teacher parameter perception.
            final: `s4_cfg`.
            kd: `kd_cfg`, or None without logits.
            state_dict: weights by their released names, `loss_fmd_s3.projector_0.pos_embed`, ...

        Raises:
            InputError: names that are missing or left over.
        """
        arguments, weights = released.arguments(penultimate, final, kd, state_dict)
        # Their tail gives queries also to a view of which only the final term weighs anything.
        asked = {f"tpp_{v}": 1.0 for v in VIEWS if penultimate and weights[f"final_{v}"]}
        loss = cls(**arguments, weights=LossWeights(**{**weights, **asked}))
        loss.weights = LossWeights(**weights)
        released.load(loss, state_dict)
        return loss

    def forward(self, student: Features, teacher: Features, tail: Tail) -> dict[str, Tensor]:
        """The weighted terms by name: tpp_original, tpp_alternative, final_original,
        final_alternative, logits; those switched off are absent. Gradients reach the student's
        features and the projectors, and run through `tail` without training it."""
        terms: dict[str, Tensor] = {}
        target = teacher.final.detach().flatten(2).transpose(1, 2)
        for name, view in VIEWS.items():
            z: Tensor | None = None
            if name in self.penultimate:
                z = tail(self.penultimate[name](student.penultimate))
                if weight := getattr(self.weights, f"tpp_{name}"):
                    terms[f"tpp_{name}"] = weight * distance(view(z), view(target))
            if name in self.final:
                project: Any = self.final[name]
                if name == "alternative":
                    # What varies over space is 0.3 % of a fresh projector's output, lost in bf16.
                    project = project.in_full_precision
                w = project(student.final, z)
                weight = getattr(self.weights, f"final_{name}")
                terms[f"final_{name}"] = weight * distance(view(w), view(target))
        if self.weights.logits:
            if student.logits is None or teacher.logits is None:
                who = "student" if student.logits is None else "teacher"
                raise InputError(
                    f"the {who} gives no logits and the weight logits is {self.weights.logits}: "
                    "set it to 0 to distil features alone"
                )
            kd = logit_distillation(student.logits, teacher.logits.detach(), self.temperature)
            terms["logits"] = self.weights.logits * kd
        return terms
