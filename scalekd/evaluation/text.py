"""An evaluation as tables for a terminal."""

from rich import box
from rich.table import Column, Table

from scalekd.evaluation.meter import BINS
from scalekd.evaluation.results import Agreement, ClassResult, Evaluation
from scalekd.text import printable


def result_table(evaluation: Evaluation) -> Table:
    """A table with one column for each model."""
    models = evaluation.models
    columns = [Column(printable(m.model), justify="right", overflow="fold") for m in models]
    table = Table(Column("", no_wrap=True), *columns, box=box.SIMPLE, pad_edge=False)
    table.add_row("top-1", *(f"{m.top1:.2%}" for m in models))
    if any(m.top5 is not None for m in models):
        table.add_row("top-5", *(_percent(m.top5) for m in models))
    table.add_row("calibration error", *(f"{m.calibration_error:.2%}" for m in models))
    table.add_row("images/s", *(_speed(m.images_per_second) for m in models))
    return table


def class_table(evaluation: Evaluation) -> Table:
    """A table with one row for each class: the accuracy of each model, and its main confusion."""
    columns = [Column(printable(m.model), overflow="fold") for m in evaluation.models]
    table = Table(
        Column("class", overflow="fold"),
        Column("images", justify="right"),
        *columns,
        box=box.SIMPLE,
        pad_edge=False,
        caption="(N as X): N images of the class are taken for X, more than for any other class",
        caption_justify="left",
    )
    for rows in zip(*(model.per_class for model in evaluation.models), strict=True):
        cells = map(_describe_class, rows)
        table.add_row(printable(rows[0].name), f"{rows[0].images:,}", *cells)
    return table


def _describe_class(result: ClassResult) -> str:
    accuracy = _percent(result.accuracy)
    if result.confused_with is None:
        return accuracy
    return f"{accuracy:>7} ({result.confused_images} as {printable(result.confused_with)})"


def describe(evaluation: Evaluation) -> list[str]:
    """What the numbers of `result_table` mean, and how far the models agree: a line for each."""
    skipped = f", {evaluation.corrupt_images:,} unreadable ones skipped"
    lines = [
        f"{evaluation.images:,} images of {evaluation.classes:,} classes from {evaluation.data}"
        f"{skipped if evaluation.corrupt_images else ''}",
        f"calibration error: expected, over {BINS} bins of confidence; images/s: the model alone, "
        f"warmed up, in batches of {evaluation.batch_size} on {evaluation.device}",
    ]
    return [*lines, *map(_describe_agreement, evaluation.agreements)]


def _describe_agreement(agreement: Agreement) -> str:
    one, other = agreement.models
    text = f"{one} and {other} predict the same class for {agreement.agreement:.2%} of the images"
    if agreement.differing_top1 is None:
        return text
    first, second = agreement.differing_top1
    return (
        f"{text}; on the other {agreement.differing_images:,} top-1 is {first:.2%} and {second:.2%}"
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"


def _speed(images: float) -> str:
    return f"{images:,.0f}" if images >= 10 else f"{images:.2g}"
