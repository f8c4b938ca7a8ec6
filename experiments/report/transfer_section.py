"""Experiment 11: networks that start from distilled students; comparisons and sections."""

from dataclasses import dataclass

from families import Comparison, gain, grouped_family
from layout import NOT_RUN, Section, Table, accuracy, comparison_table
from pictures import draw_differences
from records import Values, measure, read_records, select, values
from transfer import MORE, NAME, REFERENCE, STARTS
from transfer_tuning import DETECT, SEGMENT, TRAINING, VALIDATION, Plan
from transfer_tuning import NAME as TUNING

from scalekd.runs.result import METHOD_NAMES

START_NAMES = {start: METHOD_NAMES.get(start, start) for start in STARTS}
COMMANDS = ", then ".join(
    f"`python experiments/evidence/runner.py {name}`" for name in (TUNING, NAME)
)


@dataclass(frozen=True)
class Words:
    """How a task is told.

    Attributes:
        plan: how students are transferred to it.
        title: of its section.
        score: what is compared.
        text: what is trained.
        paper: the paper's numbers.
    """

    plan: Plan
    title: str
    score: str
    text: str
    paper: str


SEGMENTATION = Words(
    SEGMENT,
    "Experiment 11: transfer to segmentation",
    "mean IoU",
    "a segmenter of eleven classes, whose backbone starts from a student, is trained on "
    f"{TRAINING} scenes of Fashion-MNIST items on cluttered canvases and measured on {VALIDATION} "
    "others, with other originals. All starts of a seed have the same scenes, head and order of "
    "crops. Fine-tuned is UPerNet with all weights trained, frozen a linear function of the "
    "student's features as they are.",
    "ADE20K mIoU: ResNet-50 42.37 to 44.50, Swin-T 44.41 to 46.33, ViT-B/16 46.75 to 50.84",
)
DETECTION = Words(
    DETECT,
    "Experiment 11: transfer to detection",
    "box AP",
    "a detector of ten classes on the same scenes, of which the items are to be found. Fine-tuned "
    "is Faster R-CNN with all weights trained, frozen a linear function of the student's features "
    "as they are, for the classes and boxes of anchors.",
    "COCO box AP: ResNet-50 40.2 to 42.3, Swin-T 42.7 to 44.4",
)


def score_of(words: Words, start: str, mode: str) -> Values:
    """The score of a start in a mode by seed, in %."""
    plan, name = words.plan, f"{START_NAMES[start]} ({words.plan.regime}, {mode})"
    read = measure(plan.task.measures[0])
    return values(NAME, plan.regime, f"{start}, {mode}", name, read)


def transfer_family(words: Words) -> dict[str, list[Comparison]]:
    """ScaleKD's start against each other one, fine-tuned and frozen: one family, by that start."""
    groups = {
        other: [
            (score_of(words, "scalekd", mode), score_of(words, other, mode))
            for mode in words.plan.modes
        ]
        for other in STARTS
        if other != "scalekd"
    }
    return grouped_family(groups, len(words.plan.seeds))


def transfer_section(words: Words) -> Section:
    """The section of a task; without tables where nothing was run."""
    score, plan = words.score, words.plan
    text = [
        f"For Tables 5, 6 and 11: {words.text} A random start is the same network with random "
        "weights. The segmenter or detector reads the outputs of the student's stages; distilled "
        "was the last of them after a norm and ReLU."
    ]
    if not any(record["regime"] == plan.regime for record in read_records(NAME)):
        return Section(words.title, [*text, f"Not run here: {COMMANDS}."])
    capital = score[0].upper() + score[1:]
    text.append(
        f"{capital} in %, mean over seeds and standard deviation. The paper compares with "
        f"supervised students alone: {words.paper}. {reference(plan)}"
    )
    compared_ones = [one for family in transfer_family(words).values() for one in family]
    named = [(f"{one.one.name} minus {one.other.name}", one) for one in compared_ones]
    picture = draw_differences(f"ScaleKD's start minus the others, {score}", named)
    tables = [
        starts_table(words),
        comparison_table(compared_ones, "start", score),
        tuning_table(words),
    ]
    return Section(words.title, text, tables, picture)


def reference(plan: Plan) -> str:
    """The frame of reference in a sentence."""
    found = values(NAME, plan.regime, REFERENCE, read=measure(plan.task.measures[0]))
    records = select(NAME, plan.regime, REFERENCE)
    reached = f"{found.mean:.2f} % after {records[0]['steps']} steps" if records else NOT_RUN
    return (
        f"What the network can reach: fine-tuned from a random start for as many epochs of {MORE} "
        f"times the scenes, one seed: {reached}."
    )


def starts_table(words: Words) -> Table:
    """Each start: the accuracy of its students on the images that they were trained for, and what
    became of it."""
    plan, modes = words.plan, words.plan.modes
    rows = [
        [
            START_NAMES[start],
            "-" if start == "random" else accuracy(values(NAME, "few", start).only(plan.seeds)),
            *(accuracy(score_of(words, start, mode)) for mode in modes),
        ]
        for start in STARTS
    ]
    header = ["start", "top-1 of the students", *(f"{mode}, {words.score}" for mode in modes)]
    return Table(header, rows)


def rounding() -> str:
    """A sentence on how far rounding moves a run, by the students that were trained twice."""
    gaps = []
    for start in ("supervised", "logit_kd", "scalekd"):
        then, again = (values(experiment, "few", start) for experiment in ("main_comparison", NAME))
        gaps.append(list(gain(then, again, start).by_seed.values()))
    if not all(gaps):
        return ""
    largest = max(abs(gap) for one in gaps for gap in one)
    of_means = max(abs(sum(one)) / len(one) for one in gaps)
    return (
        "Between commits a kernel or the resizing of crops may have changed, and with it the "
        "rounding. Experiment 11 trained the students of three methods again at a later commit: "
        f"the same run differs by up to {largest:.2f} points, and the mean of {len(gaps[0])} seeds "
        f"by up to {of_means:.2f}."
    )


def tuning_table(words: Words) -> Table:
    """The learning rates that were tried for the supervised start, on scenes of their own."""
    plan, rows = words.plan, []
    for mode, rates in plan.rates.items():
        for rate in rates:
            read = measure(plan.task.measures[0])
            tried = values(TUNING, plan.regime, f"{mode} {rate:g}", read=read)
            rows.append([mode, f"{rate:g}", f"{tried.mean:.2f}" if tried.by_seed else NOT_RUN])
    return Table(["tuning of the supervised start", "learning rate", words.score], rows)
