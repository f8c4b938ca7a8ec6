"""Writing a student as a folder that plain timm loads."""

import shutil
from pathlib import Path
from typing import Any

from torch import nn

from scalekd.errors import InputError, one_line
from scalekd.networks import build_model
from scalekd.networks.student import export_student
from scalekd.runs.checkpoint import load_student, read_state
from scalekd.runs.folder import RunFolder
from scalekd.runs.lineage import Lineage
from scalekd.runs.model_card import build_card

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
        lineage = _read_lineage(source)
        card = build_card(spec.name, lineage)
        spec.export(student, folder, lineage.to_dict() if lineage else None, card)
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


def _read_lineage(checkpoint: Path) -> Lineage | None:
    """What the student of a checkpoint was trained with up to its step; None where it is not
    there, in checkpoints of former versions."""
    state = read_state(checkpoint)
    if "lineage" not in state:
        return None
    try:
        lineage = Lineage.from_dict(state["lineage"])
        validation = state.get("validation") or {}
        measured = validation.get("top1") if validation.get("step") == state["step"] else None
        return lineage.after(state["step"], measured)
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{str(checkpoint)!r} does not describe what its student was trained with "
            f"({one_line(error)}): it is damaged, or of another version of scalekd"
        ) from error


def load_folder(folder: Path) -> Any:
    """The model in a folder, in eval mode on the CPU."""
    network, _ = build_model(f"local-dir:{folder}", "pretrained")
    return network.eval()
