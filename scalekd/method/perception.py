"""TPP, teacher parameter perception, and the loss that joins it with CAP, DFM and logits.

The student's penultimate feature is projected (CAP) to the teacher's penultimate grid and passed
through the teacher's own frozen last stage, its tail. The result mimics the teacher's final feature
(DFM), and it is the query with which the student's final feature is projected (CAP) in its turn.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn

from scalekd.errors import InputError
from scalekd.features import Features, FeatureShapes
from scalekd.method.logits import check_temperature, logit_distillation
from scalekd.method.mimicking import alternative_view, distance, original_view
from scalekd.method.projector import SOFTMAX_SCALE, CrossAttentionProjector
from scalekd.method.weights import LossWeights, without_one_token_views

Tail = Callable[[Tensor], Tensor]
"""The teacher's frozen last stage, its final norm included: from tokens (N, H3 W3, C3), row-major
on the teacher's penultimate grid, to tokens (N, H4 W4, C4) on its final grid."""

VIEWS = {"original": original_view, "alternative": alternative_view}


class ScaleKDLoss(nn.Module):
    """The distillation loss of one step: a dictionary of weighted terms.

        z_v  = tail(CAP3_v(S3))                   tokens like T4's, (N, H4 W4, C4)
        w_v  = CAP4_v(S4, query = z_v)            the same shape; z_v is not detached
        loss = sum over views v of w3_v D(v(z_v), v(T4)) + w4_v D(v(w_v), v(T4)), and a kd

    S3 and S4 are the student's penultimate and final feature, T4 is the teacher's final feature, D
    is `distance`, kd is `logit_distillation`; a and the w are `LossWeights`. A training objective
    adds (1 - a) times the task's loss, as `scalekd.ScaleKD` does.

    Args:
        student: Shapes of S3 and S4.
        teacher: Shapes of the teacher's penultimate feature, which is never a target, and of T4.
        heads: Attention heads of CAP3 and of CAP4.
        weights: Weights of the terms; default `LossWeights()`.
        temperature: T of the logits, greater than 0.
        norm: Norm of the projectors' stems, a function of the number of channels; `ChannelNorm`
            for ConvNeXt students.
        scale: s of the projectors' attention.
        separable_stem: Use cheaper stems than the paper's; see `projector.separable_convolution`.
        recompute: Compute most of each projector a second time in the backward pass, to save
            memory; see `CrossAttentionProjector`.
        one_token: "refuse" an alternative view of a grid of one token, which is always zero and has
            an exploding gradient, or "drop" its term with a warning.

    Raises:
        InputError: Heads that do not divide the channels, a temperature that is not positive, TPP
            without shapes of penultimate features, an alternative view of a grid of one token.
    """

    def __init__(
        self,
        *,
        student: FeatureShapes,
        teacher: FeatureShapes,
        heads: tuple[int, int],
        weights: LossWeights | None = None,
        temperature: float = 1.0,
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
        scale: float = SOFTMAX_SCALE,
        separable_stem: bool = False,
        recompute: bool = False,
        one_token: Literal["refuse", "drop"] = "refuse",
    ) -> None:
        super().__init__()
        self.temperature = check_temperature(temperature)
        self.weights = without_one_token_views(
            weights or LossWeights(), student=student, teacher=teacher, one_token=one_token
        )
        projector = partial(
            CrossAttentionProjector,
            norm=norm,
            scale=scale,
            separable_stem=separable_stem,
            recompute=recompute,
        )
        self.penultimate = nn.ModuleDict()
        self.final = nn.ModuleDict()
        for view in VIEWS:
            has_tpp = getattr(self.weights, f"tpp_{view}") > 0
            if has_tpp:
                s3, t3 = student.penultimate, teacher.penultimate
                if s3 is None or t3 is None:
                    raise InputError(f"the weight tpp_{view} needs penultimate features' shapes")
                self.penultimate[view] = projector(
                    in_channels=s3[0],
                    out_channels=t3[0],
                    key_grid=s3[1:],
                    query_grid=t3[1:],
                    heads=heads[0],
                )
            if getattr(self.weights, f"final_{view}") > 0:
                s4, t4 = student.final, teacher.final
                self.final[view] = projector(
                    in_channels=s4[0],
                    out_channels=t4[0],
                    key_grid=s4[1:],
                    query_grid=None if has_tpp else t4[1:],
                    heads=heads[1],
                )

    @property
    def projectors(self) -> list[CrossAttentionProjector]:
        """All projectors."""
        modules: list[Any] = [*self.penultimate.values(), *self.final.values()]
        return modules

    @property
    def task_weight(self) -> float:
        """Weight of the task's loss beside these terms, 1 - a."""
        return 1 - self.weights.logits

    def no_weight_decay(self) -> set[str]:
        """Return the names of the projectors' positions and trained queries, which optimizers
        should not decay."""
        names = [name for name, _ in self.named_parameters()]
        return {name for name in names if name.endswith((".position", ".own_query"))}

    def forward(
        self, student: Features, teacher: Features, tail: Tail, targets: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Compute the weighted terms.

        Args:
            student: The student's features; gradients reach them and the projectors.
            teacher: The teacher's features, detached here; the penultimate one is not read.
            tail: The teacher's last stage; gradients pass through it without training it.
            targets: Not read. Other losses of this call are about the labels.

        Returns:
            The terms, scalars, by their names `tpp_original`, `tpp_alternative`, `final_original`,
            `final_alternative` and `logits`. Terms of weight 0 are absent.

        Raises:
            InputError: A shape that the projectors were not made for; logits that are missing.
        """
        terms: dict[str, Tensor] = {}
        target = teacher.final.detach().flatten(2).transpose(1, 2)
        for name, view in VIEWS.items():
            for stage, tokens in self.project(name, student, tail):
                if weight := getattr(self.weights, f"{stage}_{name}"):
                    terms[f"{stage}_{name}"] = weight * distance(view(tokens), view(target))
        if self.weights.logits:
            if student.logits is None or teacher.logits is None:
                network = "student" if student.logits is None else "teacher"
                raise InputError(
                    f"the {network} gives no logits and the weight logits is "
                    f"{self.weights.logits}: set it to 0 to distil only features"
                )
            kd = logit_distillation(student.logits, teacher.logits.detach(), self.temperature)
            terms["logits"] = self.weights.logits * kd
        return terms

    def project(self, view: str, student: Features, tail: Tail) -> Iterator[tuple[str, Tensor]]:
        """Yield ("tpp", z) and ("final", w) of a view, "original" or "alternative", where needed.

        Raises:
            InputError: A shape that the projectors were not made for.
        """
        z: Tensor | None = None
        if view in self.penultimate:
            z = tail(self.penultimate[view](student.penultimate))
            yield "tpp", z
        if view in self.final:
            project: Any = self.final[view]
            if view == "alternative":
                # What varies over space is 0.3 % of a fresh projector's output, lost in bf16.
                project = project.in_full_precision
            yield "final", project(student.final, z)
