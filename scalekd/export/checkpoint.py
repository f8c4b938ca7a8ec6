"""The student out of a run's checkpoint."""

from pathlib import Path

from scalekd.errors import InputError
from scalekd.runs.checkpoint import load_student


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
