"""Writing a student as a folder that plain timm loads."""

import shutil
from pathlib import Path
from typing import Any

from torch import nn

from scalekd.networks import build_model
from scalekd.networks.student import export_student
from scalekd.runs.checkpoint import load_student
from scalekd.runs.folder import RunFolder

COPIED = "config.json", "model.safetensors", "README.md"
"""Files of an exported folder; no other file of a folder is copied."""


def write_folder(model: str, network: nn.Module, folder: Path) -> None:
    """Write a model to a folder that `timm.create_model("local-dir:FOLDER")` loads.

    Args:
        model: as `open_model` takes it: a run folder, a checkpoint, an exported folder or a name.
        network: that `open_model` gave for it.
        folder: must not exist.

    Raises:
        OSError: the folder cannot be written.
    """
    source = Path(model)
    if source.is_file():
        student, spec = load_student(source)
        spec.export(student, folder)
        return
    if (student_folder := RunFolder(source).student).is_dir():
        source = student_folder
    if all((source / name).is_file() for name in COPIED[:2]):
        folder.mkdir()
        for name in COPIED:
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)
    else:
        export_student(network, folder, {})


def load_folder(folder: Path) -> Any:
    """The model in a folder, in eval mode on the CPU."""
    network, _ = build_model(f"local-dir:{folder}", "pretrained")
    return network.eval()
