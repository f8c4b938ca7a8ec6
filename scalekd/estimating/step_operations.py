"""The operations of a pair's training step and of its parts, traced without computing anything."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from scalekd.estimating.memory_simulation import MemorySimulation, teacher_in_half_precision
from scalekd.estimating.operations import Operation, trace
from scalekd.recipe import Precision
from scalekd.training.performance import autocast


@dataclass(frozen=True)
class StepOperations:
    """The operations of a step, without its optimizer.

    Attributes:
        teacher: Of the teacher's forward pass alone.
        student: Of the student's forward and backward passes alone.
        step: Of everything: teacher, student, projectors, tail and losses.
        tail: Of the forward passes of the teacher's tail in a step, one for each view; none where
            no penultimate feature is compared. A checkpointed tail computes them once more.
        projectors: Of the forward passes of what checkpointed projectors compute once more.
    """

    teacher: list[Operation]
    student: list[Operation]
    step: list[Operation]
    tail: list[Operation]
    projectors: list[Operation]


def trace_step(
    simulation: MemorySimulation, micro_batch: int, precision: Precision
) -> StepOperations:
    """Trace a step of `micro_batch` images, without labels.

    Args:
        simulation: It has the pair on fake tensors.
        micro_batch: Images in the pass.
        precision: What autocast computes in.
    """
    pair, config = simulation.pair, simulation.pair.student_extractor.input
    pair.checkpoint_tail = False
    for projector in pair.criterion.projectors:
        projector.recompute = False
    half = precision != "32-true"

    def traced(run: Callable[[], torch.Tensor | None]) -> list[Operation]:
        def forward_backward() -> None:
            with autocast(precision, torch.device("cpu")):
                loss = run()
            if loss is not None:
                torch.autograd.backward(loss)

        operations = trace(forward_backward)
        pair.zero_grad()
        return operations

    def run_teacher() -> None:
        pair.run_teacher(images)

    def run_tail() -> None:
        channels, height, width = pair.teacher.shapes.penultimate or (0, 0, 0)
        for _ in pair.criterion.penultimate:
            pair.teacher.tail(torch.empty(micro_batch, height * width, channels))

    def run_projectors() -> None:
        in_float32 = dict(pair.criterion.final.items()).get("alternative")
        for projector in pair.criterion.projectors:
            query = None
            if projector.own_query is None:
                channels, height, width = pair.teacher.shapes.final
                query = torch.empty(micro_batch, height * width, channels)
            normed = torch.empty(micro_batch, *projector.position.shape[1:])
            with torch.autocast("cpu", enabled=half and projector is not in_float32):
                projector.from_normed(normed, query)

    def run_student() -> torch.Tensor:
        features = pair.student_extractor(images)
        outputs = features.penultimate, features.final, features.logits
        return torch.stack([output.sum() for output in outputs if output is not None]).sum()

    with simulation.fake_tensors, teacher_in_half_precision(pair.teacher, half):
        images = torch.empty(micro_batch, config.channels, *config.size)
        return StepOperations(
            teacher=traced(run_teacher),
            student=traced(run_student),
            step=traced(lambda: pair(images).loss),
            tail=traced(run_tail),
            projectors=traced(run_projectors),
        )
