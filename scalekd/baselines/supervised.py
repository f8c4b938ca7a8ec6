"""The student without a teacher: the baseline of every comparison."""

from torch import Tensor, nn

from scalekd.distiller import StepOutput, check_batch
from scalekd.errors import InputError
from scalekd.notes import Note


class Supervised(nn.Module):
    """`Supervised(student)(images, targets)` -> `StepOutput` with the task's loss and nothing else.

    Args:
        student: what trains.
        task: loss of logits (N, classes) and targets; default the cross-entropy.
    """

    def __init__(self, student: nn.Module, task: nn.Module | None = None) -> None:
        super().__init__()
        self.student = student
        self.notes: list[Note] = []
        self.task = task or nn.CrossEntropyLoss()

    def forward(self, images: Tensor, targets: Tensor | None = None) -> StepOutput:
        """One step's loss.

        Args:
            images: (N, channels, H, W).
            targets: classes (N,), or shares of them (N, classes).

        Raises:
            InputError: as of `ScaleKD`, and without targets.
        """
        if targets is None:
            raise InputError("there are no targets, and without a teacher nothing else to learn")
        check_batch(self.student, images, targets, getattr(self.student, "num_classes", None))
        logits = self.student(images)
        loss = self.task(logits, targets)
        return StepOutput(loss, {"task": loss}, logits)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that the student's own recipe does not decay."""
        own = getattr(self.student, "no_weight_decay", set)
        return {f"student.{name}" for name in own()}
