"""Rebuilding a student without its run, and exporting it as a folder that plain timm loads."""

import shutil
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from timm.models import (
    get_pretrained_cfg,
    is_model,
    model_entrypoint,
    save_for_hf,
    split_model_name_tag,
)
from torch import nn

from scalekd.atomic_io import new_folder, refuse_existing
from scalekd.errors import InputError
from scalekd.networks.build import build_model, build_without_weights
from scalekd.networks.input_config import (
    DEFAULT_CROP,
    MAX_SIDE,
    InputConfig,
    Size,
    input_config,
    set_statistics,
)
from scalekd.reading import is_number, is_whole

LINEAGE_KEY = "scalekd"
"""Under which a folder's config.json has what the student was trained with."""


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

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> "StudentSpec":
        """The spec that `dataclasses.asdict` made `plain` from, read from a checkpoint.

        Raises:
            TypeError, ValueError, KeyError: it is not such a one.
        """
        spec = cls(**plain)
        if not isinstance(spec.name, str) or not isinstance(spec.arguments, dict):
            raise TypeError("its name or its arguments are of another type")
        if spec.classes is not None and not is_whole(spec.classes):
            raise ValueError(f"it has {spec.classes!r} classes")
        if not all(map(is_number, (spec.crop, *(spec.mean or ()), *(spec.std or ())))):
            raise ValueError("its normalisation or its crop is of another type")
        if not all(isinstance(text, str) for text in (spec.interpolation, *spec.class_names)):
            raise ValueError("its interpolation or its classes are of another type")
        if spec.size is not None:
            spec = replace(spec, size=_read_size(spec.size))
        if plain["input"]:
            config = InputConfig(**plain["input"])
            means = [*config.mean, *config.std, config.crop]
            if not is_whole(config.channels, least=1) or not all(map(is_number, means)):
                raise ValueError("its images are of another type")
            spec = replace(spec, input=replace(config, size=_read_size(config.size)))
        return spec

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
            channels = arguments.get("in_chans") or _own_channels(self.name)
            overlay["input_size"] = (channels, *size)
        arguments["pretrained_cfg_overlay"] = overlay
        student, _ = build_model(self.name, "random", self.size, **arguments)
        return student

    def export(
        self,
        student: nn.Module,
        folder: Path,
        lineage: dict[str, Any] | None = None,
        card: str | None = None,
    ) -> None:
        """Write the trained `student` to `folder`; see `export_student`."""
        arguments = dict(self.arguments)
        if self.input is not None:
            arguments["in_chans"] = self.input.channels
        if self.size is not None and self._takes_size():
            arguments["img_size"] = self.size
        export_student(student, folder, arguments, self.class_names, lineage, card)

    def _takes_size(self) -> bool:
        """Return whether timm builds this model for a size, by trying as `build_model` does."""
        try:
            build_without_weights(self.name, **{**self.arguments, "img_size": self.size})
        except InputError:
            return False
        return True


def loading_code(architecture: str, folder: object) -> str:
    """A line of Python that loads an exported student; it imports what timm lacks.

    Args:
        architecture: timm's name of the student, perhaps registered by another package, as
            mixer_b14_224 is by this one.
        folder: that the student was exported to.
    """
    call = f'timm.create_model("local-dir:{folder}", pretrained=True)'
    name = split_model_name_tag(architecture)[0]
    module = model_entrypoint(name).__module__ if is_model(name) else "timm"
    package = module.partition(".")[0]
    return call if package == "timm" else f"import {package}; {call}"


def _read_size(size: Any) -> tuple[int, int]:
    height, width = size
    if not (is_whole(height, least=1, most=MAX_SIDE) and is_whole(width, least=1, most=MAX_SIDE)):
        raise ValueError(f"its image size is {size!r}")
    return height, width


@lru_cache
def _own_channels(name: str) -> int:
    """Channels of the images that a model takes unless it is told otherwise."""
    config = None if ":" in name else get_pretrained_cfg(name)
    if config is not None:
        return int(config.input_size[0])
    return input_config(build_without_weights(name)).channels


def export_student(
    student: nn.Module,
    folder: Path,
    arguments: dict[str, Any],
    class_names: tuple[str, ...] = (),
    lineage: dict[str, Any] | None = None,
    card: str | None = None,
) -> None:
    """Write the student's weights (safetensors) and configuration to `folder`.

    The folder is complete or does not exist. `timm.create_model("local-dir:FOLDER",
    pretrained=True)` builds the same model with bit-identical weights.

    Args:
        student: a model that timm built.
        folder: must not exist.
        arguments: that the student was built with, besides its name.
        class_names: of its classes, which timm reads as label_names.
        lineage: what it was trained with, as JSON; timm does not look at it.
        card: text of its README.md.

    Raises:
        InputError: the folder exists.
        OSError: the folder cannot be written.
    """
    refuse_existing(folder, "give another folder")
    images = input_config(student)
    # A model built for other channels than its timm name has the statistics of that name.
    set_statistics(student, mean=images.mean, std=images.std)
    try:
        with new_folder(folder) as partial:
            save_for_hf(
                student,
                str(partial),
                model_config={
                    **({"label_names": class_names} if class_names else {}),
                    **({LINEAGE_KEY: lineage} if lineage else {}),
                },
                model_args=arguments,
                safe_serialization=True,
            )
            if card is not None:
                (partial / "README.md").write_text(card, encoding="utf-8")
            # safetensors lets nobody but the user read it, whatever the umask is.
            shutil.copymode(partial / "config.json", partial / "model.safetensors")
    except SafetensorError as error:  # an error of the disk, in safetensors' own class
        raise OSError(str(error)) from error
