"""The student alone, as a folder that plain timm loads."""

import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from timm.models import save_for_hf
from torch import nn

from scalekd.errors import InputError


def export_student(student: nn.Module, folder: Path, arguments: dict[str, Any]) -> None:
    """Write weights (safetensors) and configuration to `folder`, whole or not at all.

    `timm.create_model("local-dir:FOLDER", pretrained=True)` gives the same model back, to the bit.

    Args:
        student: a model that timm built.
        folder: must not exist.
        arguments: that it was built with, beside its name.

    Raises:
        InputError: the folder exists.
        OSError: it cannot be written.
    """
    if folder.exists():
        raise InputError(f"{str(folder)!r} exists and is not overwritten: give another folder")
    partial = folder.with_name(folder.name + ".part")
    try:
        save_for_hf(student, str(partial), model_args=arguments, safe_serialization=True)
        partial.rename(folder)
    except SafetensorError as error:  # what the disk said, in its own class
        raise OSError(str(error)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
