"""The state of a run in a file: student, projectors, optimizer. Never the teacher."""

import logging
import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scalekd.errors import InputError
from scalekd.networks import InputConfig
from scalekd.networks.pretrained import load_weights, read_checkpoint
from scalekd.networks.student import StudentSpec

logger = logging.getLogger(__name__)

STUDENT = "method.student."
AVERAGE = "average.module."
"""The same student, averaged over the steps, which is what is meant where it is there."""


def write_checkpoint(state: dict[str, Any], file: Path, aside: Path | None = None) -> None:
    """Keep `state` in `file`; what was there is replaced, or moved `aside`.

    Killed at whatever moment, this leaves one whole state in `file` or `aside`.

    Raises:
        OSError: the disk is full or the like; all is as it was.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".part")
    try:
        with partial.open("wb") as content:
            torch.save(state, content)
            content.flush()
            os.fsync(content.fileno())
    except (OSError, RuntimeError) as error:
        partial.unlink(missing_ok=True)
        # torch's writer, when the disk has said what is wrong, says something of its own.
        said = error.__context__ if isinstance(error.__context__, OSError) else error
        raise OSError(str(said).splitlines()[0]) from error
    if aside is not None and file.exists():
        file.replace(aside)
    partial.replace(file)


def previous_checkpoint(file: Path) -> Path:
    """Where the state before that in `file` is kept."""
    return file.with_suffix(".before.ckpt")


def best_checkpoint(file: Path) -> Path:
    """Where the state with the highest accuracy is kept."""
    return file.with_suffix(".best.ckpt")


def load_newest(file: Path) -> dict[str, Any] | None:
    """The state in `file`, or the one before where that is damaged; None where there is none.

    Raises:
        InputError: there were some and all are damaged.
    """
    there = [candidate for candidate in (file, previous_checkpoint(file)) if candidate.exists()]
    for candidate in there:
        if _whole(candidate):
            state: dict[str, Any] = read_checkpoint(candidate)
            return state
        logger.warning("%s is damaged; looking for the state before it", candidate)
    if there:
        raise InputError(f"{file} and the state before it are damaged: remove them to begin anew")
    return None


def _whole(file: Path) -> bool:
    """Whether each part of the file has the checksum that it was written with."""
    try:
        with zipfile.ZipFile(file) as parts:
            return parts.testzip() is None
    except (zipfile.BadZipFile, OSError):
        return False


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
    prefix = AVERAGE if any(n.startswith(AVERAGE) for n in tensors) else STUDENT
    own = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    load_weights(student, own, str(file))
    return student.eval(), spec
