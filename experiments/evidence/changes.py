"""Changes of ScaleKD that no setting makes: one part is made meaningless, or replaced."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from scalekd import ScaleKD
from scalekd.features import Features
from scalekd.method import ScaleKDLoss
from scalekd.training.prepare import Prepared


def random_tail(distiller: ScaleKD) -> None:
    """Student features run through a tail whose weights are the teacher's in random order.

    The teacher's features, which are the targets, stay what they are.
    """
    other = use_tail_of_copy(distiller)
    modules = dict(other.model.named_modules())
    generator = torch.Generator().manual_seed(0)
    for name in other.tail_modules:
        for parameter in modules[name].parameters():
            order = torch.randperm(parameter.numel(), generator=generator)
            parameter.data = parameter.data.flatten()[order].reshape(parameter.shape)


def last_block(distiller: ScaleKD) -> None:
    """Student features run through the patch merging and the last block of a Swin's last stage
    alone; the teacher's features stay what they are."""
    stage = use_tail_of_copy(distiller).model.layers[-1]
    stage.blocks = stage.blocks[-1:]


def use_tail_of_copy(distiller: ScaleKD) -> Any:
    """Let student features run through the tail of a copy of the teacher; returns the copy, whose
    tail the caller changes."""
    teacher: Any = distiller.teacher
    other = teacher.with_model(copy.deepcopy(teacher.model), teacher.input.size)
    run_teacher = distiller.run_teacher

    def run_both(images: Tensor) -> Features:
        other(images * distiller.teacher_scale + distiller.teacher_shift)  # records other inputs
        return run_teacher(images)

    distiller.run_teacher = run_both  # type: ignore[method-assign]
    teacher.tail = other.tail
    return other


def other_image(distiller: ScaleKD) -> None:
    """The teacher's features are those of the next image of the batch; its logits are the image's
    own, so that the control differs from logit KD by the features alone."""
    run_teacher = distiller.run_teacher

    def shifted(images: Tensor) -> Features:
        outputs = run_teacher(images)
        return Features(outputs.penultimate, outputs.final.roll(1, dims=0), outputs.logits)

    distiller.run_teacher = shifted  # type: ignore[method-assign]


def own_queries(distiller: ScaleKD) -> None:
    """The final projectors train queries of their own, instead of those that TPP gives them."""
    criterion = distiller.criterion
    own = ScaleKDLoss(
        student=distiller.student_extractor.shapes,
        teacher=distiller.teacher.shapes,
        heads=distiller.heads,
        weights=replace(criterion.weights, tpp_original=0.0, tpp_alternative=0.0),
    )
    for view, projector in own.final.items():
        criterion.final[view] = WithoutQueries(projector)


class WithoutQueries(nn.Module):
    """A projector with queries of its own that is given others, and does not read them."""

    def __init__(self, projector: Any) -> None:
        super().__init__()
        self.projector = projector

    def forward(self, features: Tensor, _: Tensor) -> Tensor:
        """Project; shapes are those of the projector."""
        projected: Tensor = self.projector(features)
        return projected

    def in_full_precision(self, features: Tensor, _: Tensor) -> Tensor:
        """Project in float32."""
        projected: Tensor = self.projector.in_full_precision(features)
        return projected


CONTROLS: dict[str, Callable[[ScaleKD], None]] = {
    "random_tail": random_tail,
    "other_image": other_image,
}
"""Negative controls, which must gain nothing."""

CHANGES = {**CONTROLS, "own_queries": own_queries, "last_block": last_block}


@dataclass(frozen=True, kw_only=True)
class Changed(Prepared):
    """A prepared recipe whose pair is changed as a key of `CHANGES` says."""

    change: str

    def build_scalekd(self, student: nn.Module) -> ScaleKD:
        """The pair, changed."""
        distiller = super().build_scalekd(student)
        CHANGES[self.change](distiller)
        return distiller


def build_changed(prepared: Prepared, change: str) -> Changed:
    """The same recipe with its pair changed."""
    return Changed(**vars(prepared), change=change)
