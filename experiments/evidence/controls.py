"""Negative controls: ScaleKD with one part made meaningless, which must gain nothing.

    python experiments/evidence/controls.py random_tail --config FILE --out FOLDER

takes the options of `scalekd distill`.
"""

import copy
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from scalekd import ScaleKD
from scalekd.cli.main import main
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


def train_control(name: str, arguments: list[str]) -> None:
    """Run `scalekd distill` with these options, its pair changed as the control says."""
    build = Prepared.build_scalekd

    def build_control(prepared: Prepared, student: nn.Module) -> ScaleKD:
        distiller = build(prepared, student)
        CONTROLS[name](distiller)
        return distiller

    Prepared.build_scalekd = build_control  # type: ignore[method-assign]
    main(["distill", *arguments, "--parallel", "1"])


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in CONTROLS:
        raise SystemExit(f"name a control: {' or '.join(CONTROLS)}")
    train_control(sys.argv[1], sys.argv[2:])
