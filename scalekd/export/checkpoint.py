"""Export the student from a run's checkpoint."""

import os
from pathlib import Path

from scalekd.errors import InputError
from scalekd.runs.checkpoint import load_student


def export_checkpoint(checkpoint: Path, out: Path) -> None:
    """Export the student from a checkpoint of a run, which need not have ended.

    The student is then built with plain timm:
    `timm.create_model("local-dir:FOLDER", pretrained=True)`.

    Args:
        checkpoint: A .ckpt file of a run folder.
        out: The folder to write. It must not exist.

    Raises:
        InputError: The checkpoint cannot be read, or `out` exists or cannot be written.
    """
    if os.path.lexists(out):
        raise InputError(f"{str(out)!r} exists and is not overwritten: give another folder")
    student, spec = load_student(checkpoint)
    try:
        spec.export(student, out)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"the student could not be written to {str(out)!r}: {reason}") from error
