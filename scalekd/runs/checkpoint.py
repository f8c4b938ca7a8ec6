"""Checkpoints: the state of a run in a file, from which it resumes, and the student in it.

A checkpoint contains the student, the projectors, the optimizer and what else a run needs to
resume, as tensors and plain data; never the teacher. Beside the newest checkpoint RUN.ckpt a run
has the previous one, RUN.before.ckpt, and the one with the highest accuracy, RUN.best.ckpt.
"""

import logging
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn

from scalekd.atomic_io import replacing
from scalekd.errors import InputError, one_line
from scalekd.networks.pretrained import Mismatch, is_state_dict, load_weights
from scalekd.networks.student import StudentSpec
from scalekd.networks.weight_files import read_checkpoint
from scalekd.reading import open_regular

logger = logging.getLogger(__name__)

REQUIRED: dict[str, type | tuple[type, ...]] = {
    "step": int,
    "learner": dict,
    "average": (dict, NoneType),
}
"""What every checkpoint has: how many steps are done, the weights of student and projectors, and
the average of the student's, None where there is none."""

STUDENT, TRANSFERRED = "scalekd_student", "scalekd_transfer"
"""Under which a checkpoint has what rebuilds its network, as plain data: the `StudentSpec` of a
student, or the spec of what a transfer trains. It has one of them."""


def write_checkpoint(state: dict[str, Any], file: Path, previous: Path | None = None) -> None:
    """Write `state` to `file`; the file's former content is replaced, or moved to `previous`.

    If the process is killed at any moment, `file` or `previous` is a complete checkpoint.

    Args:
        state: tensors and plain data.
        file: the newest checkpoint.
        previous: where the former one is kept; None to replace it.

    Raises:
        OSError: the disk is full, for example; both files are unchanged.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replacing(file) as stream:
            torch.save(state, stream)
            stream.flush()
            os.fsync(stream.fileno())
            if previous is not None and file.exists():
                file.replace(previous)
    except (OSError, RuntimeError) as error:
        # After the disk's own error torch's writer raises a second one, which hides the reason.
        reason = error.__context__ if isinstance(error.__context__, OSError) else error
        raise OSError(str(reason).splitlines()[0]) from error


def previous_checkpoint(file: Path) -> Path:
    """The file of the checkpoint before the newest one in `file`."""
    return file.with_suffix(".before.ckpt")


def best_checkpoint(file: Path) -> Path:
    """The file of the checkpoint with the highest accuracy of the run whose newest is `file`."""
    return file.with_suffix(".best.ckpt")


def load_newest(file: Path, learner: nn.Module | None = None) -> dict[str, Any] | None:
    """The state in `file`, or in the previous one where `file` is missing, damaged or another file.

    Args:
        file: the newest checkpoint.
        learner: whose weights must be in it; None for any.

    Returns:
        The state; None where there is no checkpoint.

    Raises:
        InputError: there are checkpoints, and none can be read.
    """
    existing = [path for path in (file, previous_checkpoint(file)) if os.path.lexists(path)]
    for path in existing:
        try:
            state = read_state(path)
            if learner is not None and (other := Mismatch.between(learner, state["learner"])):
                raise InputError(f"{str(path)!r} is a checkpoint of another run ({other})")
            return state
        except InputError as error:
            logger.warning("%s; trying the checkpoint before it", error)
    if existing:
        raise InputError(
            f"{file} and the checkpoint before it are damaged or of another run: remove them to "
            "train from the start"
        )
    return None


def is_intact(file: Path) -> bool:
    """Whether each part of a checkpoint has the checksum that it was written with."""
    try:
        with open_regular(file) as stream, zipfile.ZipFile(stream) as parts:
            return parts.testzip() is None
    except Exception:  # of a damaged file, nearly anything
        return False


def read_state(file: Path) -> dict[str, Any]:
    """Read a checkpoint.

    Raises:
        InputError: the file is damaged, or something else than a checkpoint.
    """
    open_regular(file, repr(str(file))).close()
    if not is_intact(file):
        raise InputError(f"{str(file)!r} is damaged, or not a checkpoint of `scalekd distill`")
    state = read_checkpoint(file)
    if not isinstance(state, dict) or not all(
        isinstance(state.get(name, ...), kind) for name, kind in REQUIRED.items()
    ):
        raise InputError(f"{str(file)!r} is not a checkpoint of `scalekd distill`")
    described = any(isinstance(state.get(name), dict) for name in (STUDENT, TRANSFERRED))
    weights = state["learner"], state["average"] or {}
    if not described or state["step"] < 0 or not all(map(is_state_dict, weights)):
        raise InputError(f"{str(file)!r} is not a checkpoint of `scalekd distill`")
    return state


def load_student(file: Path) -> tuple[nn.Module, StudentSpec]:
    """The trained student in a checkpoint, in eval mode, and what builds it.

    Raises:
        InputError: there is no such file, or it is damaged or something else than a checkpoint.
    """
    if not os.path.lexists(file):
        raise InputError(f"no checkpoint {str(file)!r}; a run's are in RUN/checkpoints/*.ckpt")
    checkpoint = read_state(file)
    if STUDENT not in checkpoint:
        raise InputError(
            f"{str(file)!r} is of a transfer, whose network is no student: its run writes a folder "
            "of it at the end (docs/transfer.md)"
        )
    try:
        spec = StudentSpec.from_dict(checkpoint[STUDENT])
    except (TypeError, ValueError, KeyError) as error:
        raise InputError(
            f"{str(file)!r} does not describe its student ({one_line(error)}): it is damaged, or "
            "of another version of scalekd"
        ) from error
    student = spec.build()
    load_weights(student, _student_weights(checkpoint), str(file))
    return student.eval(), spec


def _student_weights(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The student's weights in a state, averaged over the steps where the run averages them."""
    average = checkpoint["average"]
    tensors = checkpoint["learner"] if average is None else average
    prefix = "student." if average is None else "module."
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


@contextmanager
def restoring(file: Path) -> Iterator[None]:
    """Inside, a state of `file` is restored: what is not as it was written is refused by name."""
    try:
        yield
    except InputError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{file} cannot be resumed from ({type(error).__name__}: {one_line(error)}): it is "
            "damaged, or of another version of scalekd; remove it to resume from the one before"
        ) from error
