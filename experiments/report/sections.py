"""The report's sections as plain data: tables, pictures and words, all out of the records."""

import statistics
from collections.abc import Iterable

import inside
from claims import claims
from components import BETAS, SEEDS, weights_of_arms
from cost import METHODS, read_cost, seconds_of_step
from families import (
    FROZEN,
    LENGTHS,
    NO_CLASSIFIER,
    REGIMES,
    RIVALS,
    component_family,
    control_family,
    distance_family,
    frozen_family,
    frozen_fd,
    frozen_others,
    main_family,
    no_classifier_family,
    no_classifier_others,
    others_family,
    stage_family,
)
from further import describe, further_sections, run_by
from layout import COMPARED, NOT_RUN, Section, Table, accuracy, compared, comparison_table
from pictures import draw_curve, draw_differences
from recorded import read_json
from records import Values, measure, read_teacher, select, teacher_top1, values
from summary import against, verdicts
from transfer_section import rounding
from trials import read_chosen
from tuning import SHARE

from scalekd.runs.result import METHOD_NAMES

TUNED_BETA = 0.57
"""The share of the original view that ScaleKD was tuned with, the paper's."""


def sections() -> list[Section]:
    """All of them, what speaks against ScaleKD and the verdicts first."""
    found = claims()
    return [
        against(found),
        verdicts(found),
        *(main_section(regime) for regime in REGIMES),
        controls_section(),
        components_section(),
        frozen_section(),
        no_classifier_section(),
        stages_section(),
        inside_section(),
        *further_sections(),
    ]


def main_section(regime: str) -> Section:
    """Experiment 1 in a regime."""
    families = main_family(regime)
    scalekd = families[""][0].one
    rows = [["ScaleKD", "equal steps", accuracy(scalekd), *how_long(regime, "scalekd"), "", "", ""]]
    for suffix, title in LENGTHS.items():
        for method, one in zip(RIVALS, families[suffix], strict=True):
            rows.append(
                [
                    METHOD_NAMES[method],
                    title,
                    accuracy(one.other),
                    *how_long(regime, method, suffix),
                    *compared(one),
                ]
            )
    text = [
        "For Table 7: top-1 on the 10,000 test images in %, mean over seeds and standard "
        f"deviation. The teacher has {teacher_top1()}. Differences are ScaleKD at equal steps "
        "minus the method of the row.",
        "Equal time counts the training loop's steps, and neither the loading of images nor the "
        "reading of a cache, which favours the cheaper methods (see experiments/PROTOCOL.md, "
        "Time). The seconds of the steps are their number times the time of one in 'Cost of a "
        "step'. The seconds of a run are medians of what the runs took with loading and "
        "validation, two at a time on two cores. Not comparable are those of ScaleKD with few "
        "labels, which are by earlier code (by today's, in experiment 14: "
        f"{median_seconds(inside.NAME, 'few', 'with DFM')}); beside other work ran, with all "
        "images in equal time, those of OFA-KD and RSD with a live teacher and those of all "
        "methods but logit KD and FD from a cache.",
        "Runs at equal steps read a cache, but for FD. FD compares the penultimate feature too, "
        "which no cache holds, so its teacher is always live: in 'equal time, cache' it has as "
        "many steps as if a cache held it, and sees new views of the images where the others see "
        "those of the cache again. " + run_by("main_comparison"),
    ]
    header = [
        *("method", "trained for", "top-1", "seeds", "steps"),
        *("seconds of the steps", "seconds of a run", *COMPARED),
    ]
    named = [
        (f"{one.other.name}, {title}", one)
        for suffix, title in LENGTHS.items()
        for one in families[suffix]
    ]
    picture = draw_differences(f"ScaleKD minus the others, {REGIMES[regime]}", named)
    tables = [
        Table(header, rows),
        comparison_table(others_family(regime), NO_HYPOTHESIS),
    ]
    return Section(f"Experiment 1: main comparison, {REGIMES[regime]}", text, tables, picture)


NO_HYPOTHESIS = "named by no hypothesis"

WAYS = {"": ("", ", cache"), ", equal time": ("",), ", equal time, cache": (", cache",)}
"""Of having a teacher, by length of the training: what the name of a timed step ends with."""


def how_long(regime: str, method: str, suffix: str = "") -> list[str]:
    """Seeds, steps, the seconds of these by the timed steps of a method's arm (at equal steps with
    a live teacher and from a cache), and those of a run."""
    records = select("main_comparison", regime, method + suffix)
    if not records:
        return ["0", "-", "-", "-"]
    steps, cost = records[0]["steps"], read_cost()[regime]
    seconds = dict.fromkeys(steps * seconds_of_step(cost, method, way) for way in WAYS[suffix])
    names = (" live", " cache") if len(seconds) > 1 else ("",)
    listed = ", ".join(f"{value:.0f}{way}" for value, way in zip(seconds, names, strict=True))
    taken = median_seconds("main_comparison", regime, method + suffix)
    return [str(len(records)), str(steps), listed, taken]


def median_seconds(experiment: str, regime: str, arm: str) -> str:
    """Of the runs of an arm, with loading and validation."""
    taken = [record["seconds"] for record in select(experiment, regime, arm)]
    return f"{statistics.median(taken):.0f}" if taken else NOT_RUN


def controls_section() -> Section:
    """The negative controls."""
    found = [
        (REGIMES[regime], one)
        for regime in REGIMES
        for group in control_family(regime).values()
        for one in group
    ]
    text = [
        "ScaleKD with a tail whose weights are in one random order, the same for all seeds, and "
        "with the features of another image of the batch. The first keeps the teacher's features "
        "as targets; in the second they are of another class for nine of ten images. If ScaleKD "
        "cannot be told from one, nothing shows that its gain comes from that part of what the "
        "teacher knows. Logit KD is compared with each control, too: as it was tuned and, with few "
        "labels, with the control's own learning rate and temperature, which are ScaleKD's. "
        + run_by("main_comparison")
    ]
    table = comparison_table([one for _, one in found])
    tables = [table.with_first("regime", [regime for regime, _ in found])]
    return Section("Experiment 1: negative controls", text, tables)


def components_section() -> Section:
    """Experiment 2."""
    everything = [one for family in component_family().values() for one in family]
    text = [
        "For Table 9 and Figure 4, with few labels; the paper's numbers are not known to us. CAP "
        "is the cross-attention projector; DFM the comparison of features with and without their "
        "mean over space (dual-view feature mimicking); TPP the pass of the student's features "
        "through the teacher's tail, its frozen last stage (teacher parameter perception). All "
        "variants have labels, and all but one the teacher's logits. With trained queries the "
        "final projectors train their queries in place of those that TPP gives. The tail's two "
        "blocks are compared with the last one alone. The first seven rows compare ScaleKD's parts "
        "with fewer of them. More parts also have a larger sum of weights, as in the paper; the "
        "balances keep the sum. Beta is the share of the original view in the loss of the "
        f"features: 0 is the alternative view alone, and {TUNED_BETA} is the paper's. The last row "
        "was picked after a look at the others.",
        "Beta was not tuned; of the weights of ScaleKD's features two were tried and the smaller "
        f"ones kept, {SHARE:g} of the paper's. The variants were trained at different commits, "
        f"which are listed at the end of this section. {rounding()} {run_by('components')}",
    ]
    folded = {
        "Commits": "\n".join(
            commits(experiment, "few", arms, name)
            for experiment, arms, name in (
                ("main_comparison", ("scalekd",), "ScaleKD"),
                ("components", weights_of_arms(), "the other variants"),
            )
        )
    }
    named = [(f"{one.one.name} minus {one.other.name}", one) for one in everything]
    pictures = draw_differences("What each part adds", named)
    curve = [
        (beta, arm) for beta in sorted((*BETAS, TUNED_BETA)) if (arm := beta_values(beta)).by_seed
    ]
    pictures += draw_curve("Accuracy over the share of the original view, beta", curve)
    betas = [[f"{beta:g}", accuracy(arm), str(len(arm.by_seed))] for beta, arm in curve]
    tables = [comparison_table(everything), Table(["beta", "top-1", "seeds"], betas)]
    return Section("Experiment 2: components", text, tables, pictures, folded)


def commits(experiment: str, regime: str, arms: Iterable[str], name: str) -> str:
    """A line on the commits that runs of an experiment's first five seeds are of."""
    seeds: dict[str, set[int]] = {}
    for record in sorted(
        (record for arm in arms for record in select(experiment, regime, arm)),
        key=lambda record: str(record["date"]),
    ):
        if record["seed"] in SEEDS:
            seeds.setdefault(record["commit"], set()).add(record["seed"])
    listed = [f"{commit} (seeds {', '.join(map(str, sorted(s)))})" for commit, s in seeds.items()]
    return f"{name}: {', '.join(listed) or 'none'}"


def beta_values(beta: float) -> Values:
    """Accuracies at a balance of the views, over the seeds of `components`."""
    if beta != TUNED_BETA:
        return values("components", "few", f"beta {beta}")
    return values("main_comparison", "few", "scalekd").only(SEEDS)


def frozen_section() -> Section:
    """Experiment 3."""
    teacher = read_teacher()
    header = ["method", *(what for _, what in FROZEN.values())]
    rows = [
        [
            METHOD_NAMES[method],
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
        "Linear functions of the frozen students' features, in %, few labels. The first column is "
        "of students that were trained on seven classes (their teacher knows all ten): the "
        "accuracy on pullover, coat and shirt of a linear classifier that is fitted to the "
        "labelled images of these three. Digits: the same, fitted to 4,000 of them. Foreground: "
        "which pixels are not background, predicted at each of the 16 positions of the final "
        "feature; intersection over union. Position: which of the 16 a feature is from. "
        f"{run_by('seven_classes')} The teacher is measured by "
        "`python experiments/evidence/probes.py`."
    ]
    families = frozen_family()
    hypotheses = [
        one for pair in zip(families["scalekd"], families["fd"], strict=True) for one in pair
    ]
    others = [*frozen_others(), *frozen_fd()]
    tables = [
        Table(header, rows),
        comparison_table(hypotheses, value="value"),
        comparison_table(others, NO_HYPOTHESIS, "value"),
    ]
    return Section("Experiment 3: probes of frozen features", text, tables)


def no_classifier_section() -> Section:
    """Experiment 4."""
    rows = [
        [
            METHOD_NAMES[method],
            *(
                accuracy(values("no_classifier", "all", method, read=measure(name)))
                for name in NO_CLASSIFIER
            ),
        ]
        for method in ("fd", "relations", "scalekd")
    ]
    text = [
        "Students that learned from the teacher's features of all images, without labels and "
        "logits; then a linear classifier and the 20 nearest neighbours of 1,000 labelled images, "
        "and linear probes as in experiment 3, in %; pullover, coat and shirt were among the "
        "images. ScaleKD's student has no classifier in training and therefore another start than "
        "the others' of its seed. FD and ScaleKD have the learning rates that were tuned for them "
        f"with labels; relations were not tuned and have ScaleKD's. {run_by('no_classifier')}"
    ]
    header = ["method", *NO_CLASSIFIER.values()]
    tables = [
        Table(header, rows),
        comparison_table(no_classifier_family(), "linear probe", "value"),
        comparison_table(no_classifier_others(), NO_HYPOTHESIS, "value"),
    ]
    return Section("Experiment 4: without a classifier", text, tables)


def stages_section() -> Section:
    """Experiment 5."""
    families = stage_family()
    supervised = {
        "CNN": values("main_comparison", "few", "supervised"),
        "MLP": values("stages", "few", "MLP supervised"),
    }
    rates = {method: read_chosen()["few"][method]["optim"]["lr"] for method in ("fd", "scalekd")}
    text = [
        "For Table 1, with few labels and without logits; the paper's numbers are not known to us. "
        "The supervised baseline is "
        + ", ".join(f"{accuracy(arm)} for the {kind}" for kind, arm in supervised.items())
        + ". ScaleKD has the published balance of the views. Learning rates were tuned for the CNN "
        f"with logits, {rates['fd']:g} for FD and {rates['scalekd']:g} for ScaleKD; the MLP has a "
        f"quarter of them, so that a difference there can be one of rates. {run_by('stages')}"
    ]
    picture = draw_differences("ScaleKD minus FD by stage", list(families.items()))
    tables = [comparison_table(families.values())]
    return Section("Experiment 5: stages", text, tables, picture)


def inside_section() -> Section:
    """Experiment 14."""
    found = read_json(inside.FREQUENCIES)
    direct = "Not run here: `python experiments/evidence/inside.py`."
    if found is not None:
        direct = (
            "The direct component of the teacher's final feature, the coefficient at frequency "
            f"zero, has {100 * found['direct_energy']:.1f} % of the energy (the sum of squared "
            f"coefficients, {found['images']:,} test images). {describe(found)}"
        )
    text = [
        f"For Figures 2, 5 and 6, whose numbers are not known to us. {direct}",
        "The distance in the alternative view is from 0 for the same tokens to 4, and 2 for "
        "unrelated ones: medians over the test images, mean over seeds and standard deviation, few "
        "labels. Without dual-view feature mimicking (logits, CAP and TPP in experiment 2) it is "
        "that of the original view's projector, with it that of the alternative view's, which is "
        f"trained to make it small. docs/analysis.md draws it. {run_by('inside')}",
    ]
    tables = [comparison_table(distance_family(), value="distance")]
    return Section("Experiment 14: views of the teacher's feature", text, tables)
