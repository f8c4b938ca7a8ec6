"""Experiment 11: segmenters that start from distilled students; comparisons and section."""

from families import Comparison, family
from layout import COMPARED, NOT_RUN, Section, Table, accuracy, compared
from pictures import draw_differences
from records import Values, measure, read_records, values
from transfer import MORE, NAME, REFERENCE, STARTS
from transfer_tuning import MODES, RATES, REGIME, TRAINING, VALIDATION
from transfer_tuning import NAME as TUNING

from scalekd.runs.result import METHOD_NAMES

START_NAMES = {start: METHOD_NAMES.get(start, start) for start in STARTS}
COMMANDS = ", then ".join(
    f"`python experiments/evidence/runner.py {name}`" for name in (TUNING, NAME)
)


def mean_iou(start: str, mode: str) -> Values:
    """Mean IoU of a start in a mode by seed, in %."""
    name = f"{START_NAMES[start]}, {mode}"
    return values(NAME, REGIME, f"{start}, {mode}", name, measure("miou"))


def transfer_family() -> dict[str, list[Comparison]]:
    """ScaleKD's start against each other one, fine-tuned and frozen: one family, by that start."""
    others = [start for start in STARTS if start != "scalekd"]
    found = family(
        [(mean_iou("scalekd", mode), mean_iou(other, mode)) for other in others for mode in MODES]
    )
    count = len(MODES)
    return {other: found[n * count : (n + 1) * count] for n, other in enumerate(others)}


def transfer_section() -> Section:
    """The section; without tables where nothing was run."""
    title = "Transfer to segmentation"
    text = [
        "Experiment 11, for Tables 5, 6 and 11: a segmenter of eleven classes, whose backbone "
        f"starts from a student, is trained on {TRAINING} scenes of Fashion-MNIST items on "
        f"cluttered canvases and measured on {VALIDATION} others, with other originals. All starts "
        "of a seed have the same scenes, head and order of crops. Fine-tuned is UPerNet with all "
        "weights trained, frozen a linear function of the student's features as they are. A random "
        "start has the architecture alone."
    ]
    if not read_records(NAME):
        return Section(title, [*text, f"Not run here: {COMMANDS}."])
    text.append(
        "Mean IoU in %, mean over seeds and standard deviation. The paper compares with supervised "
        f"students alone. {reference()}"
    )
    compared_ones = [one for family in transfer_family().values() for one in family]
    rows = [
        [one.one.name, accuracy(one.one), one.other.name, accuracy(one.other), *compared(one)]
        for one in compared_ones
    ]
    header = ["start", "mean IoU", "compared with", "mean IoU", *COMPARED]
    run = [
        (f"{one.one.name} minus {one.other.name}", one)
        for one in compared_ones
        if one.difference is not None
    ]
    picture = draw_differences("ScaleKD's start minus the others, mean IoU", run)
    return Section(title, text, [starts_table(), Table(header, rows), tuning_table()], picture)


def reference() -> str:
    """The frame of reference in a sentence."""
    found = values(NAME, REGIME, REFERENCE, read=measure("miou"))
    reached = f"{found.mean:.2f} %" if found.by_seed else NOT_RUN
    return (
        f"What the network can reach: fine-tuned from a random start with {MORE} times the scenes "
        f"and {MORE} times the steps, one seed: {reached}."
    )


def starts_table() -> Table:
    """Each start: the accuracy of its students on the images that they were trained for, and what
    became of it."""
    rows = [
        [
            START_NAMES[start],
            "-" if start == "random" else accuracy(values(NAME, "few", start)),
            *(accuracy(mean_iou(start, mode)) for mode in MODES),
        ]
        for start in STARTS
    ]
    return Table(["start", "top-1 of the students", *(f"{m}, mean IoU" for m in MODES)], rows)


def tuning_table() -> Table:
    """The learning rates that were tried for the supervised start, on scenes of their own."""
    rows = []
    for mode, rates in RATES.items():
        for rate in rates:
            tried = values(TUNING, REGIME, f"{mode} {rate:g}", read=measure("miou"))
            rows.append([mode, f"{rate:g}", f"{tried.mean:.2f}" if tried.by_seed else NOT_RUN])
    return Table(["tuning of the supervised start", "learning rate", "mean IoU"], rows)
