"""Rebuilding a student without its run, and exporting it as a folder that plain timm loads."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from timm.models import save_for_hf
from torch import nn

from scalekd.errors import InputError
from scalekd.networks.build import build_model, build_without_weights
from scalekd.networks.input_config import DEFAULT_CROP, InputConfig, Size


@dataclass(frozen=True)
class StudentSpec:
    """What is needed to rebuild a student without its run.

    name: timm's name of its architecture.
    arguments: that were passed to `timm.create_model`.
    classes: number of classes of its classifier; 0 if it has none, None for timm's default.
    input: its images where the data set defines them; None where this and the model's timm
        configuration do.
    size: (height, width) of its images where the user chose it, else None.
    mean, std: of each channel of its images where the user chose them, else None.
    crop, interpolation: how its validation images are made; see `InputConfig`.
    class_names: of its classes, in the order of its logits; empty where they have no names.
    """

    name: str
    arguments: dict[str, Any]
    classes: int | None
    input: InputConfig | None
    size: Size | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    crop: float = DEFAULT_CROP
    interpolation: str = "bilinear"
    class_names: tuple[str, ...] = ()

    def build(self) -> nn.Module:
        """Build the student with random weights, for images of its size."""
        # timm's facts about its own weights for this name would be wrong for the student's.
        overlay: dict[str, Any] = {"tag": "scalekd", "license": None, "test_input_size": None}
        # What is measured is what is exported: plain timm makes validation images by these.
        overlay |= {"test_crop_pct": None, "crop_pct": self.crop, "crop_mode": "center"}
        overlay |= {"interpolation": self.interpolation, "label_names": None}
        overlay |= {"mean": self.mean} if self.mean else {}
        overlay |= {"std": self.std} if self.std else {}
        arguments = dict(self.arguments)
        if self.classes is not None:
            arguments.setdefault("num_classes", self.classes)
        size = self.size
        if self.input is not None:
            overlay |= {"mean": self.input.mean, "std": self.input.std}
            overlay |= {"crop_pct": self.input.crop, "interpolation": self.input.interpolation}
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
        export_student(student, folder, arguments, self.class_names)

    def _takes_size(self) -> bool:
        """Return whether timm builds this model for a size, by trying as `build_model` does."""
        try:
            build_without_weights(self.name, **{**self.arguments, "img_size": self.size})
        except InputError:
            return False
        return True


def export_student(
    student: nn.Module,
    folder: Path,
    arguments: dict[str, Any],
    class_names: tuple[str, ...] = (),
) -> None:
    """Write the student's weights (safetensors) and configuration to `folder`.

    The folder is complete or does not exist. `timm.create_model("local-dir:FOLDER",
    pretrained=True)` builds the same model with bit-identical weights.

    Args:
        student: a model that timm built.
        folder: must not exist.
        arguments: that the student was built with, besides its name.
        class_names: of its classes, which timm reads as label_names.

    Raises:
        InputError: the folder exists.
        OSError: the folder cannot be written.
    """
    if folder.exists():
        raise InputError(f"{str(folder)!r} exists and is not overwritten: give another folder")
    partial = folder.with_name(folder.name + ".part")
    try:
        save_for_hf(
            student,
            str(partial),
            model_config={"label_names": class_names} if class_names else None,
            model_args=arguments,
            safe_serialization=True,
        )
        partial.rename(folder)
    except SafetensorError as error:  # an error of the disk, in safetensors' own class
        raise OSError(str(error)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
