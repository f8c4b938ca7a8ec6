"""Negative controls: ScaleKD with one part made meaningless, which must gain nothing."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from scalekd import ScaleKD
from scalekd.features import Features
from scalekd.training.prepare import Prepared


def random_tail(distiller: ScaleKD) -> None:
    """Student features run through a tail whose weights are the teacher's in random order.

    The teacher's features, which are the targets, stay what they are.
    """
    teacher: Any = distiller.teacher
    shuffled = teacher.with_model(copy.deepcopy(teacher.model), teacher.input.size)
    modules = dict(shuffled.model.named_modules())
    generator = torch.Generator().manual_seed(0)
    for name in shuffled.tail_modules:
        for parameter in modules[name].parameters():
            order = torch.randperm(parameter.numel(), generator=generator)
            parameter.data = parameter.data.flatten()[order].reshape(parameter.shape)
    run_teacher = distiller.run_teacher

    def run_both(images: Tensor) -> Features:
        shuffled(images * distiller.teacher_scale + distiller.teacher_shift)  # records other inputs
        return run_teacher(images)

    distiller.run_teacher = run_both  # type: ignore[method-assign]
    teacher.tail = shuffled.tail


def other_image(distiller: ScaleKD) -> None:
    """The teacher's features are those of the next image of the batch; its logits are the image's
    own, so that the control differs from logit KD by the features alone."""
    run_teacher = distiller.run_teacher

    def shifted(images: Tensor) -> Features:
        outputs = run_teacher(images)
        return Features(outputs.penultimate, outputs.final.roll(1, dims=0), outputs.logits)

    distiller.run_teacher = shifted  # type: ignore[method-assign]


CONTROLS: dict[str, Callable[[ScaleKD], None]] = {
    "random_tail": random_tail,
    "other_image": other_image,
}


@dataclass(frozen=True, kw_only=True)
class Controlled(Prepared):
    """A prepared recipe whose pair is changed by a control, a key of `CONTROLS`."""

    control: str

    def build_scalekd(self, student: nn.Module) -> ScaleKD:
        """The pair, changed."""
        distiller = super().build_scalekd(student)
        CONTROLS[self.control](distiller)
        return distiller


def build_controlled(prepared: Prepared, control: str) -> Controlled:
    """The same recipe with its pair changed by `control`."""
    parts = {part.name: getattr(prepared, part.name) for part in fields(prepared)}
    return Controlled(**parts, control=control)
