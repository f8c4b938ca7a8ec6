"""TPP, teacher parameter perception, and the whole feature loss that it holds together.

The student's penultimate feature is projected to the teacher's and sent through the teacher's own
frozen last stage; what comes out mimics the teacher's final feature, and asks as queries what
the student's own final feature has to say to it.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from scalekd.errors import InputError
from scalekd.features import Features, FeatureShapes
from scalekd.method import released
from scalekd.method.logits import logit_distillation
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
        one_token: Literal["refuse", "drop"] = "refuse",
    ) -> None:
        super().__init__()
        if not (math.isfinite(temperature) and temperature > 0):
            raise InputError(f"the temperature is {temperature}: it must be more than 0")
        self.temperature = temperature
        self.weights = seen_in_space(weights or LossWeights(), student, teacher, one_token)
        self.penultimate = nn.ModuleDict()
        self.final = nn.ModuleDict()
        for view in VIEWS:
            asked_by_tail = getattr(self.weights, f"tpp_{view}") > 0
            if asked_by_tail:
                if student.penultimate is None or teacher.penultimate is None:
                    raise InputError(f"the weight tpp_{view} needs penultimate features' shapes")
                self.penultimate[view] = _projector(
                    student.penultimate, teacher.penultimate, True, heads[0], norm, scale
                )
            if getattr(self.weights, f"final_{view}") > 0:
                self.final[view] = _projector(
                    student.final, teacher.final, not asked_by_tail, heads[1], norm, scale
                )

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
        queried = {name: 1.0 for name in weights if penultimate and name.startswith("tpp")}
        loss = cls(**arguments, weights=LossWeights(**{**weights, **queried}))
        # Their tail gives queries even to a view whose own term weighs nothing.
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
                _same_shape(z, target, "the teacher's tail gives tokens")
                if weight := getattr(self.weights, f"tpp_{name}"):
                    terms[f"tpp_{name}"] = weight * distance(view(z), view(target))
            if name in self.final:
                # What varies over space is 0.3 % of a fresh projector's output: bf16 would lose it.
                lose_nothing = name == "alternative"
                w = _project(self.final[name], student.final, z, lose_nothing)
                _same_shape(w, target, "the student's final feature projects to tokens")
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


def _project(
    projector: nn.Module, features: Tensor, query: Tensor | None, full_precision: bool
) -> Tensor:
    if not full_precision:
        projected: Tensor = projector(features, query)
        return projected
    dtype = next(projector.parameters()).dtype
    with torch.autocast(features.device.type, enabled=False):
        projected = projector(features.to(dtype), None if query is None else query.to(dtype))
    return projected


def _projector(
    student: tuple[int, int, int],
    teacher: tuple[int, int, int],
    own_query: bool,
    heads: int,
    norm: Callable[[int], nn.Module],
    scale: float,
) -> CrossAttentionProjector:
    query_grid = teacher[1:] if own_query else None
    return CrossAttentionProjector(
        student[0], teacher[0], student[1:], query_grid, heads, norm, scale
    )


def _same_shape(tokens: Tensor, target: Tensor, what: str) -> None:
    if tokens.shape != target.shape:
        raise InputError(
            f"{what} {tuple(tokens.shape)} and the teacher's final feature has "
            f"{tuple(target.shape)}: (N, L, C) must agree"
        )
