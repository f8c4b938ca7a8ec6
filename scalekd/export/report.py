"""What an export gave, as data and as text."""

from dataclasses import dataclass

from scalekd.export.comparison import Accuracy, Comparison
from scalekd.export.description import FileDescription


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """A file or folder that was exported.

    Attributes:
        out: its path.
        format: its format.
        bytes: its size.
        description: its images and classes.
        classes: number of its classes; 0 without a classifier.
        comparison: with the model that it came from.
        accuracy: of a file in 8 bits beside that of its model.
        calibrated_on: what a file in 8 bits was calibrated on.
        calibration_images: number of these images.
        loaded_by: the line of Python that loads a folder; None of a file.
    """

    out: str
    format: str
    bytes: int
    description: FileDescription
    classes: int
    comparison: Comparison
    accuracy: Accuracy | None = None
    calibrated_on: str | None = None
    calibration_images: int = 0
    loaded_by: str | None = None


def format_export(report: ExportReport) -> str:
    """The report in a few lines."""
    compared, accuracy = report.comparison, report.accuracy
    sizes = " and ".join(map(str, compared.batch_sizes))
    lines = [
        f"{report.out}: {report.format}, {report.bytes / 2**20:.2f} MiB",
        f"takes: {_images(report)}",
        f"gives: {_outputs(report)}",
        f"compared with its model on {compared.count} {compared.images}, in batches of {sizes}: "
        f"largest difference {compared.largest_difference:.2g}, "
        f"{compared.relative_difference:.2g} of the logits' spread"
        + (_agreement(compared.class_agreement) if report.classes else ""),
    ]
    if accuracy is not None:
        lines.append(f"calibrated on {report.calibration_images} {report.calibrated_on}")
        top1 = ""
        if accuracy.model_top1 is not None and accuracy.file_top1 is not None:
            top1 = f": the model {accuracy.model_top1:.2%}, in 8 bits {accuracy.file_top1:.2%}"
        lines.append(
            f"top-1 on {accuracy.count} {accuracy.images}{top1}"
            + _agreement(accuracy.class_agreement)
        )
    if report.loaded_by is not None:
        lines.append(f"loads by {report.loaded_by}")
    return "\n".join(lines)


def _images(report: ExportReport) -> str:
    images = report.description.input
    shape = f"images (N, {images.channels}, {images.size[0]}, {images.size[1]})"
    if report.description.normalization_inside:
        return f"{shape} with values from 0 to 1; the normalisation is inside"
    mean, std = (", ".join(f"{v:.4g}" for v in values) for values in (images.mean, images.std))
    return f"{shape} with values from 0 to 1, minus the mean [{mean}], divided by [{std}]"


def _outputs(report: ExportReport) -> str:
    names = report.description.label_names
    if not report.classes:
        return "features (N, channels), because the model has no classifier"
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"logits (N, {report.classes})" + (f" of the classes {shown}" if names else "")


def _agreement(share: float) -> str:
    return f"; the same class for {share:.1%} of them"
