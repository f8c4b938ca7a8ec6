"""The report's sections as plain data: tables, pictures and words, all out of the records."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml
from claims import Claim, claims
from cost import COST, METHODS, read_cost
from families import (
    FROZEN,
    NAMES,
    REGIMES,
    Comparison,
    component_family,
    control_family,
    frozen_family,
    main_family,
    no_classifier_family,
    pretraining_family,
    stage_family,
    student_family,
    teacher_family,
    width_family,
)
from pictures import Picture, draw_curve, draw_differences
from records import Values, first, measure, read_records, select, values
from trials import CHOSEN, RESULTS, read_json, read_settings

BETAS_SHOWN = 0.0, 0.4, 0.57, 0.8, 1.0
"""Of the curve over the balance of the views; 0.57 is what the paper's weights have."""

NOT_RUN = "not run"


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
        header: names of the columns.
        rows: of as many cells.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """A part of the report.

    Attributes:
        title: its heading.
        text: paragraphs before the tables.
        tables: its tables.
        pictures: its pictures.
        folded: texts that are folded away, by their titles.
    """

    title: str
    text: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    folded: dict[str, str] = field(default_factory=dict)

    @property
    def anchor(self) -> str:
        """Its name in links."""
        return "-".join("".join(c if c.isalnum() else " " for c in self.title.lower()).split())


def sections() -> list[Section]:
    """All of them, the verdicts first."""
    return [
        verdicts(claims()),
        *(main_section(regime) for regime in REGIMES),
        controls_section(),
        components_section(),
        frozen_section(),
        no_classifier_section(),
        stages_section(),
        further_section(
            "Size of the teacher",
            "Experiment 6, for Tables 2 and 10, with few labels: ScaleKD under larger teachers, "
            "and with strong augmentation.",
            teacher_family(),
        ),
        further_section(
            "Every student",
            "Experiment 7, for the shape of Table 3, with few labels. " + long_runs(),
            student_family(),
        ),
        further_section(
            "Pre-training",
            "Experiment 8, for Tables 4 and 16, with few labels: teachers that saw fewer images, "
            "and the student pre-trained on all labels.",
            pretraining_family(),
        ),
        further_section("Width", "Experiment 9, with few labels.", width_family()),
        component_cost_section(),
        cost_section(),
        settings_section(),
    ]


def verdicts(found: Sequence[Claim]) -> Section:
    """Each claim with what came out."""
    rows = [
        [claim.text, claim.source, claim.paper, claim.verdict, size_of(claim.comparisons)]
        for claim in found
    ]
    against = [
        f'against "{claim.text}" speaks {one.one.name} minus {one.other.name}, {points(one)}'
        for claim in found
        for one in claim.comparisons
        if one.sign < 0
    ]
    text = [
        "A claim holds here if the difference is told apart from zero in every comparison that "
        "tests it; see experiments/PROTOCOL.md, which was written before the runs. Differences are "
        "in percentage points."
    ]
    if against:
        text.append(f"What speaks against ScaleKD: {'; '.join(against)}.")
    header = ["claim", "source", "the paper's numbers", "verdict", "difference here"]
    return Section("Verdicts", text, [Table(header, rows)])


def size_of(comparisons: Sequence[Comparison]) -> str:
    """The differences of a claim in a few words."""
    run = [one for one in comparisons if one.difference is not None]
    if not run:
        return "-"
    if len(run) == 1:
        return points(run[0])
    means = [one.difference.mean for one in run if one.difference is not None]
    return f"{min(means):+.2f} to {max(means):+.2f}"


def points(comparison: Comparison) -> str:
    """A difference with its interval."""
    found = comparison.difference
    return "-" if found is None else f"{found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"


def accuracy(arm: Values) -> str:
    """Mean and standard deviation over the seeds."""
    if not arm.by_seed:
        return NOT_RUN
    known = list(arm.by_seed.values())
    spread = f"{statistics.stdev(known):.2f}" if len(known) > 1 else "-"
    return f"{arm.mean:.2f} ({spread})"


def compared(comparison: Comparison) -> list[str]:
    """Cells of a comparison: difference, adjusted p, verdict."""
    p = "-" if comparison.adjusted is None else f"{comparison.adjusted:.3f}"
    return [points(comparison), p, comparison.verdict]


COMPARED = ["difference [95 % interval]", "p, adjusted", "verdict"]


def main_section(regime: str) -> Section:
    """Experiment 1 in a regime."""
    families = main_family(regime)
    scalekd = families[""][0].one
    teacher = read_json(RESULTS / "teacher" / "small.json")
    rows = [["ScaleKD", "equal steps", accuracy(scalekd), *how_long(regime, "scalekd"), "", "", ""]]
    titles = {
        "": "equal steps",
        ", equal time": "equal time, live teacher",
        ", equal time, cache": "equal time, cache",
    }
    for suffix, title in titles.items():
        for method, one in zip(METHODS[:-1], families[suffix], strict=True):
            rows.append(
                [
                    NAMES[method],
                    title,
                    accuracy(one.other),
                    *how_long(regime, method + suffix),
                    *compared(one),
                ]
            )
    above = "-" if teacher is None else f"{100 * teacher['top1']:.2f} %"
    text = [
        "Experiment 1, for Table 7: top-1 on the 10,000 test images in %, mean over seeds and "
        f"standard deviation. The teacher has {above}. Differences are ScaleKD at equal steps "
        "minus the method of the row."
    ]
    header = ["method", "trained for", "top-1", "seeds", "epochs", "seconds a run", *COMPARED]
    run = [one for family in families.values() for one in family if one.difference is not None]
    labels = [
        f"{one.other.name}, {title}"
        for suffix, title in titles.items()
        for one in families[suffix]
        if one.difference is not None
    ]
    picture = draw_differences(
        f"ScaleKD minus the others, {REGIMES[regime]}", list(zip(labels, run, strict=True))
    )
    return Section(f"Main comparison, {REGIMES[regime]}", text, [Table(header, rows)], picture)


def how_long(regime: str, arm: str) -> list[str]:
    """Seeds, epochs and seconds of an arm."""
    records = select("main_comparison", regime, arm)
    if not records:
        return ["0", "-", "-"]
    seconds = statistics.median(record["seconds"] for record in records)
    return [str(len(records)), str(records[0]["settings"]["epochs"]), f"{seconds:.0f}"]


def controls_section() -> Section:
    """The negative controls."""
    rows = [
        [REGIMES[regime], one.one.name, accuracy(one.one), accuracy(one.other), *compared(one)]
        for regime in REGIMES
        for one in control_family(regime)
    ]
    text = [
        "ScaleKD with a tail whose weights are in random order, and with the features of another "
        "image of the batch. If one of them is above logit KD, ScaleKD's gain does not come from "
        "what the teacher knows."
    ]
    header = ["regime", "control", "top-1", "logit KD", *COMPARED]
    return Section("Negative controls", text, [Table(header, rows)])


def components_section() -> Section:
    """Experiment 2."""
    families = component_family()
    everything = [one for family in families.values() for one in family]
    rows = [
        [one.one.name, accuracy(one.one), one.other.name, accuracy(one.other), *compared(one)]
        for one in everything
    ]
    text = [
        "Experiment 2, for Table 9 and Figure 4, with few labels. The paper's numbers are not "
        "known to us. Each row compares ScaleKD's parts with fewer of them."
    ]
    header = ["arm", "top-1", "compared with", "top-1", *COMPARED]
    run = [(f"{one.one.name} minus {one.other.name}", one) for one in everything]
    pictures = draw_differences(
        "What each part adds", [(name, one) for name, one in run if one.difference is not None]
    )
    curve = [(beta, arm) for beta in BETAS_SHOWN if (arm := beta_values(beta)).by_seed]
    pictures += draw_curve("Accuracy over the share of the original view, beta", curve)
    return Section("Components", text, [Table(header, rows)], pictures)


def beta_values(beta: float) -> Values:
    """Accuracies at a balance of the views; 0.57 is ScaleKD as it is."""
    arm = values("components", "few", f"beta {beta}")
    if arm.by_seed or beta != BETAS_SHOWN[2]:
        return arm
    complete = values("main_comparison", "few", "scalekd")
    seeds = values("components", "few", "CAP").by_seed  # as many as the others have
    return Values("all", {seed: value for seed, value in complete.by_seed.items() if seed in seeds})


def frozen_section() -> Section:
    """Experiment 3."""
    teacher = read_json(RESULTS / "teacher" / "small.json")
    header = ["method", *(what for _, what in FROZEN.values())]
    rows = [
        [
            NAMES[method],
            *(
                accuracy(values(experiment, "few", method, read=measure(name)))
                for name, (experiment, _) in FROZEN.items()
            ),
        ]
        for method in METHODS
    ]
    if teacher is not None:
        rows.append(["the teacher", *(f"{100 * teacher['measures'][name]:.2f}" for name in FROZEN)])
    text = [
        "Experiment 3: linear functions of the frozen students' features, in %, few labels. The "
        "first column is of students that saw seven classes; their teacher knows all ten."
    ]
    differences = [
        [one.one.name, accuracy(one.one), accuracy(one.other), *compared(one)]
        for one in frozen_family()
    ]
    tables = [
        Table(header, rows),
        Table(["arm", "value", "logit KD", *COMPARED], differences),
    ]
    return Section("What accuracy does not show", text, tables)


def no_classifier_section() -> Section:
    """Experiment 4."""
    rows = [
        [
            NAMES[method],
            *(
                accuracy(values("no_classifier", "all", method, read=measure(name)))
                for name in ("linear", "neighbours", "digits_linear", "foreground")
            ),
        ]
        for method in ("fd", "relations", "scalekd")
    ]
    differences = [
        [f"{one.one.name} minus {one.other.name}", *compared(one)] for one in no_classifier_family()
    ]
    text = [
        "Experiment 4: students that learned from the teacher's features alone, without labels and "
        "logits; then a linear classifier and the 20 nearest neighbours of 1,000 labelled images, "
        "in %."
    ]
    header = ["method", "linear probe", "nearest neighbours", "digits", "foreground (overlap)"]
    tables = [Table(header, rows), Table(["linear probe", *COMPARED], differences)]
    return Section("Without a classifier", text, tables)


def stages_section() -> Section:
    """Experiment 5."""
    rows = [
        [one.one.name.partition(", ")[2], accuracy(one.one), accuracy(one.other), *compared(one)]
        for one in stage_family()
    ]
    alone = {
        "CNN": values("main_comparison", "few", "supervised"),
        "MLP": values("stages", "few", "MLP supervised"),
    }
    text = [
        "Experiment 5, for Table 1, with few labels and without logits. The paper's numbers are "
        "not known to us. Alone "
        + ", ".join(f"the {student} has {accuracy(arm)}" for student, arm in alone.items())
        + "."
    ]
    header = ["student, stage", "ScaleKD", "FD", *COMPARED]
    run = [(one.one.name.partition(", ")[2], one) for one in stage_family()]
    picture = draw_differences(
        "ScaleKD minus FD by stage",
        [(name, one) for name, one in run if one.difference is not None],
    )
    return Section("Stages", text, [Table(header, rows)], picture)


def further_section(title: str, text: str, comparisons: Sequence[Comparison]) -> Section:
    """An experiment whose table is its comparisons."""
    rows = [
        [one.one.name, accuracy(one.one), one.other.name, accuracy(one.other), *compared(one)]
        for one in comparisons
    ]
    header = ["arm", "top-1", "compared with", "top-1", *COMPARED]
    return Section(title, [text], [Table(header, rows)])


def long_runs() -> str:
    """What the students reach when they are trained alone for long."""
    arms = [values("every_student", "all", f"{kind} long", kind) for kind in ("CNN", "MLP", "ViT")]
    known = [f"the {arm.name} {arm.mean:.2f} %" for arm in arms if arm.by_seed]
    return f"Alone on all images for 20 epochs: {', '.join(known) or NOT_RUN}."


def component_cost_section() -> Section:
    """Experiment 10."""
    tables = []
    for file in sorted((RESULTS / "component_cost").glob("*.json")):
        record = read_json(file)
        assert record is not None
        least = record["seconds"]["logit KD"]
        rows = [
            [
                arm,
                f"{record['gflop_per_image'][arm]:.1f}",
                f"{record['peak_bytes'][arm] / 2**30:.2f}",
                f"{seconds:.2f}",
                f"{seconds / least:.2f}",
            ]
            for arm, seconds in record["seconds"].items()
        ]
        header = [
            record["pair"],
            "GFLOP an image",
            "GiB at the peak",
            "seconds a step",
            "of logit KD",
        ]
        tables.append(Table(header, rows))
    text = [
        "Experiment 10, for Table 15, whose numbers are not known to us: a step at full size, with "
        "random weights, in float32 on this machine."
    ]
    return Section("What the components cost", text if tables else [*text, NOT_RUN + "."], tables)


def cost_section() -> Section:
    """What a step costs."""
    if not COST.exists():
        return Section("Cost of a step", [NOT_RUN])
    seconds, record = read_cost(), read_json(COST)
    assert record is not None
    rows = [
        [
            NAMES[method],
            *(
                f"{1000 * seconds[regime].get(method + suffix, seconds[regime][method]):.1f}"
                for regime in REGIMES
                for suffix in ("", ", cache")
            ),
        ]
        for method in METHODS
    ]
    header = [
        "method",
        *(f"{name}, {how}" for name in REGIMES.values() for how in ("live teacher", "cache")),
    ]
    text = [
        "Milliseconds of a step on one core: forward, backward and optimizer, interleaved, "
        f"medians. {describe(record)}"
    ]
    return Section("Cost of a step", text, [Table(header, rows)])


def settings_section() -> Section:
    """The settings, and where and when it was run."""
    experiments = (
        "tuning",
        "main_comparison",
        "components",
        "seven_classes",
        "no_classifier",
        "stages",
        "teacher_size",
        "every_student",
        "pretraining",
        "width",
    )
    rows = []
    for name in experiments:
        records = read_records(name)
        dates = sorted(record["date"][:10] for record in records)
        newest = first(reversed(records))
        rows.append(
            [
                name,
                str(len(records)),
                f"{sum(record['seconds'] for record in records) / 3600:.1f}" if records else "-",
                " to ".join(dict.fromkeys((dates[0], dates[-1]))) if dates else NOT_RUN,
                machine(newest) if newest else "-",
                f"`python experiments/evidence/runner.py {name}`",
            ]
        )
    folded = {"Settings that all runs share": yaml.safe_dump(read_settings(), sort_keys=False)}
    if CHOSEN.exists():
        folded["Settings that tuning chose"] = CHOSEN.read_text()
    header = ["experiment", "runs", "core hours of training", "dates", "machine", "command"]
    return Section("Runs and settings", [], [Table(header, rows)], [], folded)


def machine(record: dict[str, Any]) -> str:
    """Processor and versions of a record."""
    versions = record["versions"]
    return f"{record['machine']['processor']}, torch {versions['torch']}, timm {versions['timm']}"


def describe(record: dict[str, Any]) -> str:
    """Command, machine and date of a record."""
    return f"`{record['command']}`, {record['machine']['processor']}, {record['date'][:10]}."
