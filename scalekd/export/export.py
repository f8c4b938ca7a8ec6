"""Export a student to the format that a server, a phone or a colleague can use."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from scalekd.atomic_io import check_new, new_path
from scalekd.data.loader import worker_settings
from scalekd.data.open import open_source, open_validation
from scalekd.data.source import Source
from scalekd.errors import InputError
from scalekd.evaluation.classes import match_classes
from scalekd.evaluation.opened_model import OpenedModel, open_model
from scalekd.export.comparison import (
    COMPARED_IMAGES,
    Accuracy,
    Classifier,
    compare,
    measure,
    refuse_disagreement,
    refuse_loss,
)
from scalekd.export.description import FileDescription
from scalekd.export.int8 import write_int8
from scalekd.export.onnx_file import check_packages, load_onnx, write_onnx
from scalekd.export.pixels import (
    Normalizing,
    PixelSet,
    noise_pixels,
    training_pixels,
    validation_pixels,
)
from scalekd.export.pt2_file import load_pt2, write_pt2
from scalekd.export.report import ExportReport
from scalekd.export.timm_folder import load_folder, write_folder
from scalekd.networks.input_config import pretrained_config
from scalekd.networks.student import loading_code
from scalekd.recipe import Data

logger = logging.getLogger(__name__)

Format = Literal["timm", "onnx", "pt2", "onnx-int8"]

SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "pt2": ".pt2", "onnx-int8": ".onnx"}
"""How the names of files end, by which other commands and programs know what they are."""

CALIBRATION_IMAGES, MAX_LOSS = 200, 0.05
"""Defaults of what 8 bits alone have."""


def export(
    model: str,
    out: Path,
    format: Format = "timm",
    data: Data | None = None,
    normalize_inside: bool = False,
    calibration_images: int = CALIBRATION_IMAGES,
    max_loss: float = MAX_LOSS,
) -> ExportReport:
    """Export a student, and compare what was written with the model that it came from.

    Args:
        model: Model to export: a run folder (its student), a checkpoint of a run (FILE.ckpt), an
            exported folder, or a timm name.
        out: Folder (timm) or file (onnx and onnx-int8: .onnx, pt2: .pt2) to write. It must not
            exist.
        format: Format to write. timm is a folder that plain timm loads; onnx is an ONNX file; pt2
            is a program of torch.export, which torch runs without timm; onnx-int8 is an ONNX file
            with weights and activations of 8 bits.
        data: Images to compare the written file on, and for onnx-int8 also to calibrate and measure
            it on, as for distill. By default the file is compared on noise.
        normalize_inside: Put the normalisation into the file, which then takes images with values
            from 0 to 1. By default the file takes normalised images, as the model does.
        calibration_images: Number of training images that decide the ranges of the activations of
            onnx-int8. They are drawn with a fixed seed.
        max_loss: Largest share, from 0 to 1, of the validation images by which onnx-int8 may be
            right less often than its model; a file that loses more is removed. Without labels, the
            largest share of the training images to which both give different classes.

    Returns:
        What was written, and how it compares.

    Raises:
        InputError: The model cannot be opened, traced or converted, `out` exists or cannot be
            written, or what was written does not agree with the model; it is then removed.
    """
    _check_options(out, format, data, normalize_inside, calibration_images, max_loss)
    opened = _open(model, format, data)
    images, network = opened.input, _network(opened)
    source = None if data is None else _open_images(data, to_train=format == "onnx-int8")
    for note in (*opened.notes, *(source.notes if source else ())):
        note.log(logger)
    if source is None or data is None:
        compared = noise_pixels(images, COMPARED_IMAGES)
    else:
        build = training_pixels if source.validation_set is None else validation_pixels
        compared = build(source, data, images)
    description = FileDescription(
        input=images, label_names=opened.class_names, normalization_inside=normalize_inside
    )
    classify = Normalizing(network, images)
    calibration: PixelSet | None = None
    accuracy: Accuracy | None = None
    with _new(out) as partial:
        if format == "onnx-int8":
            assert source is not None, "checked with the options"
            assert data is not None
            logits = _logit_of_label(opened, source, data)
            calibration = training_pixels(source, data, images).draw(calibration_images)
            write_int8(network, partial, description, calibration)
            file = load_onnx(partial, description)
            loading = worker_settings(source, data)
            accuracy = measure(classify, file, compared, logit_of_label=logits, loading=loading)
            refuse_loss(accuracy, max_loss)
            comparison = compare(classify, file, compared)
        else:
            file = _write(model, network, partial, description, format)
            comparison = compare(classify, file, compared)
            refuse_disagreement(comparison)
        size = _size(partial)
    return ExportReport(
        out=str(out),
        format=format,
        bytes=size,
        description=description,
        classes=opened.classes,
        comparison=comparison,
        accuracy=accuracy,
        calibrated_on=calibration.description if calibration else None,
        calibration_images=len(calibration) if calibration else 0,
        loaded_by=loading_code(pretrained_config(network)["architecture"], out)
        if format == "timm"
        else None,
    )


def _write(
    model: str, network: Any, partial: Path, description: FileDescription, format: Format
) -> Classifier:
    """Write `network` in a format without calibration; what was written, ready to be run."""
    match format:
        case "timm":
            write_folder(model, network, partial)
            return Normalizing(load_folder(partial), description.input)
        case "onnx":
            write_onnx(network, partial, description)
            return load_onnx(partial, description)
        case _:
            write_pt2(network, partial, description)
            return load_pt2(partial, description)


def _check_options(
    out: Path,
    format: Format,
    data: Data | None,
    normalize_inside: bool,
    calibration_images: int,
    max_loss: float,
) -> None:
    """InputError where an option is wrong, before anything is loaded."""
    check_new(out)
    suffix = SUFFIXES.get(format)
    if suffix and out.suffix != suffix:
        raise InputError(f"out is {str(out)!r}: the name of a file of {format} ends in {suffix}")
    if not suffix and out.suffix in (".onnx", ".pt2"):
        raise InputError(
            f"out is {str(out)!r} and format is timm, which is a folder: give --format "
            f"{out.suffix[1:]}, or another name"
        )
    if format == "timm" and normalize_inside:
        raise InputError(
            "normalize_inside is true and format is timm: plain timm normalises by the folder's "
            "config.json; drop it, or give --format onnx or pt2"
        )
    if format == "onnx-int8" and data is None:
        raise InputError(
            "onnx-int8 is calibrated on images, and there are none: give --data.root, the images "
            "that the student was trained on"
        )
    for name, value, default in (
        ("calibration_images", calibration_images, CALIBRATION_IMAGES),
        ("max_loss", max_loss, MAX_LOSS),
    ):
        if format != "onnx-int8" and value != default:
            raise InputError(
                f"{name} is {value} and format is {format}, which has no use for it: drop it, or "
                "give --format onnx-int8"
            )
    if calibration_images < 1:
        raise InputError(f"calibration_images is {calibration_images}: it must be 1 or more")
    if not 0 <= max_loss <= 1:
        raise InputError(f"max_loss is {max_loss}: it must be from 0 to 1")
    if format in ("onnx", "onnx-int8"):
        check_packages("onnx", "onnxscript", "onnxruntime")


def _open(model: str, format: Format, data: Data | None) -> OpenedModel:
    """The model, for the images that `data` describes where it describes some."""
    kind = Path(model).suffix.lower()
    if kind != ".ckpt" and Path(model).is_file():
        exported = kind in (".onnx", ".pt2")
        raise InputError(
            f"{model!r} is {'an exported file' if exported else 'a file'}, and no checkpoint of "
            "`scalekd distill` (.ckpt): give a run folder, one of its checkpoints or an exported "
            "folder; `scalekd convert` makes a folder of the weights that the paper's authors "
            "released"
        )
    if data is None:
        return open_model(model)
    changes = {
        "size": data.size,
        "mean": data.mean,
        "std": data.std,
        "crop": data.crop,
        "interpolation": data.interpolation,
    }
    if format == "timm" and (changed := [name for name, value in changes.items() if value]):
        name = "image_size" if changed[0] == "size" else changed[0]
        raise InputError(
            f"data.{name} is {changes[changed[0]]} and format is timm, whose config.json tells "
            f"what the model was trained with: drop --data.{name}"
        )
    options: Any = changes
    return open_model(model, **options)


def _network(opened: OpenedModel) -> Any:
    """The opened model's network, on the CPU, where the files are run as well."""
    network: Any = opened.network
    return network.cpu()


def _open_images(data: Data, *, to_train: bool) -> Source:
    """The images to compare on; those that are trained on only where they are needed."""
    if to_train:
        return open_source(data)
    try:
        return open_validation(data)
    except InputError as error:  # of images without labels, which will do
        try:
            return open_source(data)
        except InputError:
            raise error from None


def _logit_of_label(opened: OpenedModel, source: Source, data: Data) -> tuple[int, ...]:
    if source.validation_set is None:
        return ()
    match = match_classes(opened, source.class_names, data.root)
    for note in match.notes:
        note.log(logger)
    return match.logits


@contextmanager
def _new(out: Path) -> Iterator[Path]:
    """A temporary path that becomes `out`; InputError where it cannot be written."""
    try:
        with new_path(out) as partial:
            yield partial
    except FileExistsError as error:
        raise InputError(f"{str(out)!r} has just been made by another program") from error
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{str(out)!r} could not be written: {reason}") from error


def _size(path: Path) -> int:
    files = path.iterdir() if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)
