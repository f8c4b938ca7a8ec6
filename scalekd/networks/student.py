"""What rebuilds a student without its run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from scalekd.errors import InputError
from scalekd.networks.build import build_model, build_without_weights
from scalekd.networks.input_config import InputConfig
from scalekd.networks.timm_folder import export_student


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
        student, _ = build_model(self.name, "random", self.size, **arguments)
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
        """Whether timm builds this model for a size: found as `build_model` does, by asking for it."""
        try:
            build_without_weights(self.name, **{**self.arguments, "img_size": self.size})
        except InputError:
            return False
        return True
