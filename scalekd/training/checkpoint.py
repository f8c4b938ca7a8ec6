"""The state of a run in a file: student, projectors, optimizer. Never the teacher."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from torch import Tensor, nn

from scalekd.errors import InputError
from scalekd.export import export_student
from scalekd.networks import InputConfig, build
from scalekd.networks.build import build_unfilled
from scalekd.networks.weights import load_weights, read_checkpoint

STUDENT = "method.student."


@dataclass(frozen=True)
class StudentSpec:
    """What rebuilds the student without its run.

    name, arguments: timm's.
    classes: of its classifier; 0 for none.
    input: what its images are, where their source decides; None where timm's configuration does.
    size: (height, width) of its images, where somebody chose it.
    """

    name: str
    arguments: dict[str, Any]
    classes: int
    input: InputConfig | None
    size: tuple[int, int] | None = None

    def build(self) -> nn.Module:
        """The student, untrained, for images of its size."""
        # What timm knows of its own weights for this name would be untrue of these.
        overlay: dict[str, Any] = {"tag": "scalekd", "license": None, "test_input_size": None}
        arguments = {"num_classes": self.classes, **self.arguments}
        size = self.size
        if self.input is not None:
            overlay |= {"mean": self.input.mean, "std": self.input.std}
            arguments["in_chans"], size = self.input.channels, self.input.size
        if size is not None:
            overlay["input_size"] = (arguments.get("in_chans", 3), *size)
        arguments["pretrained_cfg_overlay"] = overlay
        student, _ = build(self.name, "random", self.size, **arguments)
        return student

    def export(self, student: nn.Module, folder: Path) -> None:
        """Write the trained `student` to `folder`; see `export_student`."""
        arguments = dict(self.arguments)
        if self.input is not None:
            arguments["in_chans"] = self.input.channels
        if self.size is not None and self._takes_size():
            arguments["img_size"] = self.size
        export_student(student, folder, arguments)

    def _takes_size(self) -> bool:
        """Whether timm builds this model for a size: found as `build` does, by asking for it."""
        try:
            build_unfilled(self.name, **{**self.arguments, "img_size": self.size})
        except InputError:
            return False
        return True


def save(trainer: L.Trainer, file: Path) -> None:
    """Write the run's state to `file`; an older state there stays whole until the new one is.

    Raises:
        InputError: the disk is full or the like; the state before is still in `file`.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".part")
    try:
        trainer.save_checkpoint(partial)
        partial.replace(file)
    except OSError as error:
        partial.unlink(missing_ok=True)
        kept = f"the state of an epoch ago is in {file}" if file.exists() else "none was kept"
        raise InputError(f"the checkpoint could not be written ({error}): {kept}") from error


def load_student(file: Path) -> tuple[nn.Module, StudentSpec]:
    """The trained student out of a run's checkpoint, and what built it."""
    if not file.is_file():
        raise InputError(f"no checkpoint {str(file)!r}; a run's are in RUN/checkpoints/*.ckpt")
    checkpoint = read_checkpoint(file)
    if not isinstance(checkpoint, dict) or "scalekd_student" not in checkpoint:
        raise InputError(f"{str(file)!r} is not a checkpoint of `scalekd distill`")
    plain = dict(checkpoint["scalekd_student"])
    if plain["input"]:
        plain["input"] = InputConfig(**plain["input"])
    spec = StudentSpec(**plain)
    student = spec.build()
    tensors: dict[str, Tensor] = checkpoint["state_dict"]
    own = {n.removeprefix(STUDENT): t for n, t in tensors.items() if n.startswith(STUDENT)}
    load_weights(student, own, str(file))
    return student.eval(), spec


def export_checkpoint(checkpoint: Path, out: Path) -> None:
    """Export the student out of a run's checkpoint, also of a run that was stopped.

    Args:
        checkpoint: a .ckpt file of a run folder.
        out: the folder to write, for timm's local-dir:; must not exist.
    """
    student, spec = load_student(checkpoint)
    try:
        spec.export(student, out)
    except OSError as error:
        raise InputError(f"the student could not be written to {str(out)!r}: {error}") from error
