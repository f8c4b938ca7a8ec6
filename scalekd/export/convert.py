"""Convert the students that the paper's authors released to folders that plain timm loads."""

import logging
from pathlib import Path
from typing import Any, Literal

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, ImageNetInfo

from scalekd.atomic_io import check_new
from scalekd.errors import InputError
from scalekd.export.released import STUDENTS, ReleasedStudent, StateDict
from scalekd.networks.build import build_model
from scalekd.networks.pretrained import Mismatch, file_sha256, refuse_non_finite
from scalekd.networks.student import export_student, loading_code
from scalekd.networks.weight_files import choose_weights, read_checkpoint

logger = logging.getLogger(__name__)

PREFIX = "student."
"""Before the student's names in a checkpoint of the authors' trainer, beside the teacher's."""

CROP = 0.875
"""Validation images of the authors' runs: the shorter side to 256 pixels, 224 from the centre."""

StudentName = Literal[
    "resnet50",
    "resnet50d",
    "mobilenetv1",
    "convnext_tiny",
    "mixer_s16",
    "mixer_b16",
    "mixer_b14",
    "vit_small16",
    "vit_base16",
    "vit_base14",
    "swin_tiny",
]


def convert(file: Path, student: StudentName, out: Path) -> str:
    """Convert a file of the authors' to a folder that plain timm loads.

    Args:
        file: File of a student that the paper's authors released, or a checkpoint of their trainer.
        student: Which of the released architectures the file has. The released ImageNet ResNet-50
            of the advanced strategy is resnet50d.
        out: Folder to write. It must not exist.

    Returns:
        The line of Python that loads the folder.

    Raises:
        InputError: The file cannot be read, holds no student, or another one, or `out` exists or
            cannot be written.
    """
    check_new(out)
    released = STUDENTS[student]
    state = _read_student(file)
    converted = released.convert(state)
    if mismatch := _find_mismatch(released, state):
        others = (name for name in STUDENTS if name != student)
        near = [name for name in others if not _find_mismatch(STUDENTS[name], state)]
        hint = f": they fit {near[0]}" if near else ""
        raise InputError(
            f"the tensors of {str(file)!r} are not those of {student} ({mismatch}, by timm's "
            f"names){hint or ': give the --student that the file was made for'}"
        )
    refuse_non_finite(converted, f"the weights of {str(file)!r}")
    network = _build(released, converted)
    network.load_state_dict(converted)
    names = tuple(ImageNetInfo().label_names()) if network.num_classes == 1000 else ()
    try:
        export_student(network, out, dict(released.arguments), names)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{str(out)!r} could not be written: {reason}") from error
    sha256 = file_sha256(file)[:12]
    logger.info("%s: %d tensors of %s (sha256 %s…)", file, len(state), student, sha256)
    return loading_code(released.timm, out)


def _read_student(file: Path) -> StateDict:
    """The student's tensors under the released names."""
    chosen = choose_weights(read_checkpoint(file), str(file), None)
    inside = {n.removeprefix(PREFIX): t for n, t in chosen.state.items() if n.startswith(PREFIX)}
    state = inside or chosen.state
    state = {n: t for n, t in state.items() if n.startswith(("backbone.", "head."))}
    if not state:
        some = ", ".join(list(chosen.state)[:3])
        raise InputError(
            f"{str(file)!r} holds no student of the authors' code, whose tensors are named "
            f"backbone.* and head.*, perhaps after {PREFIX!r}: it holds {some}, ..."
        )
    return state


def _build(released: ReleasedStudent, converted: StateDict) -> Any:
    """The timm model, with as many classes as the file's classifier has."""
    heads = ("head.weight", "head.fc.weight", "fc.weight", "classifier.weight")
    classes = next((len(converted[name]) for name in heads if name in converted), 0)
    overlay: dict[str, Any] = {
        "tag": "scalekd",
        "license": None,
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "crop_pct": CROP,
        "crop_mode": "center",
        "interpolation": "bilinear",
        "test_crop_pct": None,
        "test_input_size": None,
        "label_names": None,
    }
    arguments = {**released.arguments, "pretrained_cfg_overlay": overlay}
    network, _ = build_model(released.timm, "random", num_classes=classes, **arguments)
    return network.eval()


def _find_mismatch(released: ReleasedStudent, state: StateDict) -> Mismatch:
    converted = released.convert(state)
    with torch.device("meta"):
        return Mismatch.between(_build(released, converted), converted)
