"""The report's sections as plain data: tables, pictures and words, all out of the records."""

import statistics
from collections.abc import Iterable, Sequence

from claims import Claim, claims
from components import BETAS, SEEDS, weights_of_arms
from cost import METHODS, read_cost, seconds_of_step
from families import (
    FROZEN,
    LENGTHS,
    MAIN_SEEDS,
    NO_CLASSIFIER,
    PLANNED_SEEDS,
    REGIMES,
    SEEDS_TO_TEST,
    Comparison,
    component_family,
    control_family,
    cost_records,
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
from further import describe, further_sections
from inside import FREQUENCIES
from layout import COMPARED, Section, Table, accuracy, compared, points, sides, size_of
from pictures import draw_curve, draw_differences
from recorded import RESULTS, read_json
from records import Values, measure, select, teacher_top1, values
from transfer_section import rounding
from trials import read_chosen

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


def against(found: Sequence[Claim]) -> Section:
    """Each comparison in which ScaleKD is below what it is compared with, and each that has all
    its seeds and tells nothing though a claim needs it, once."""
    asked = [(one, claim.text) for claim in found if claim.for_scalekd for one in claim.comparisons]
    lower, untold = [], []
    for one, claim in [*once(asked), *((one, NO_CLAIM) for one in beside_the_claims())]:
        row = [f"{one.one.name} minus {one.other.name}", points(one), one.verdict, claim]
        if one.leaning < 0:
            lower.append(row)
        elif one.finished and not one.sign and claim != NO_CLAIM:
            untold.append(row)
    text = (
        "First the comparisons in which ScaleKD is lower, then those in which all planned seeds "
        "show no difference, although a claim says that there is one. Differences are in "
        "percentage points, with 95 % intervals over the seeds and, of five seeds or fewer, the "
        "smallest and the largest. The sections of the experiments say what the names stand for."
    )
    header = ["comparison", "difference", "verdict"]
    tables = [
        Table([*header, "claim that it contradicts"], lower),
        Table([*header, "claim that it does not support"], untold),
    ]
    text = [text, costs()]
    return Section("What speaks against ScaleKD", text, [table for table in tables if table.rows])


def costs() -> str:
    """What a step of ScaleKD takes, in steps of logit KD."""
    live, cached = (
        [ratio_to_logits(by_arm, way) for by_arm in read_cost().values()] for way in ("", ", cache")
    )
    full = "".join(
        f", and {ratio:.1f} at full size with a live teacher ({record['pair']})"
        for record in cost_records()
        if (ratio := record["seconds"]["ScaleKD"] / record["seconds"]["logit KD"])
    )
    return (
        f"A step of ScaleKD takes as long as {min(live):.1f} to {max(live):.1f} steps of logit KD "
        f"with a live teacher, {min(cached):.1f} to {max(cached):.1f} from a cache{full}."
    )


def ratio_to_logits(by_arm: dict[str, float], way: str) -> float:
    """Seconds of a step of ScaleKD by those of logit KD."""
    return seconds_of_step(by_arm, "scalekd", way) / seconds_of_step(by_arm, "logit_kd", way)


NO_CLAIM = "none: not part of any claim"


def beside_the_claims() -> list[Comparison]:
    """Comparisons of ScaleKD that no claim names."""
    return [*frozen_others(), *no_classifier_others()]


def once(asked: Sequence[tuple[Comparison, str]]) -> list[tuple[Comparison, str]]:
    """Comparisons with their claims, without those whose runs an earlier one has compared."""
    kept, seen = [], []
    for one, claim in asked:
        runs = one.one.by_seed, one.other.by_seed
        if runs not in seen:
            seen.append(runs)
            kept.append((one, claim))
    return kept


def by_one_sign(found: Sequence[Claim]) -> str:
    """A sentence on how often the rule of one sign is used, and how often by chance alone."""
    asked = [(one, "") for claim in found for one in claim.comparisons]
    asked += [(one, "") for one in beside_the_claims()]
    five = [one for one, _ in once(asked) if one.by_one_sign]
    told = sum(bool(one.sign) for one in five)
    return (
        f"{len(five)} comparisons of the claims and of the tables beside them are told by it, and "
        f"{told} have one sign; if there were no differences at all, {len(five) / 16:.0f} would."
    )


def verdicts(found: Sequence[Claim]) -> Section:
    """Each claim with what came out."""
    rows = [
        [
            *(claim.text, claim.source, claim.paper, claim.verdict),
            claim.number or size_of(claim.comparisons),
        ]
        for claim in found
    ]
    text = [
        "A claim holds here if the difference is told apart from zero, in its direction, in every "
        "comparison that tests it; see experiments/PROTOCOL.md, which is older than the first "
        "final run and lists what was changed later. Differences are in percentage points.",
        "Differences are paired by seed: only seeds that both sides have are used, so a difference "
        "need not be that of two means in a table, which are over all seeds of each. Intervals are "
        "95 % bootstrap intervals (percentiles) of the mean difference. Of so few seeds they are "
        "too narrow: for normal differences they hold the true mean in about 90 % of cases with "
        "ten seeds, 85 % with five and 75 % with three. So an interval without 0 can stand beside "
        "'cannot be told apart', which the test decides.",
        f"With {SEEDS_TO_TEST} seeds or more, 'higher' and 'lower' mean an adjusted p below 0.05 "
        f"(permutation test, Holm). With {PLANNED_SEEDS} seeds that test cannot reach 0.05: 'in "
        "all 5 seeds' means that the difference has the same sign in each, which happens by chance "
        "in one of 16 comparisons where there is no difference. With fewer seeds than planned, "
        f"{MAIN_SEEDS} for the main comparison and {PLANNED_SEEDS} for the rest, nothing is told "
        "apart, nor in detection, which has three; where three or more have one sign, it is said "
        "in brackets. With three that happens by chance in one of four comparisons. "
        + by_one_sign(found),
    ]
    header = ["claim", "source", "the paper's numbers", "verdict", "difference here"]
    return Section("Verdicts", text, [Table(header, rows)])


def main_section(regime: str) -> Section:
    """Experiment 1 in a regime."""
    families = main_family(regime)
    scalekd = families[""][0].one
    rows = [["ScaleKD", "equal steps", accuracy(scalekd), *how_long(regime, "scalekd"), "", "", ""]]
    for suffix, title in LENGTHS.items():
        for method, one in zip(METHODS[:-1], families[suffix], strict=True):
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
        "Experiment 1, for Table 7: top-1 on the 10,000 test images in %, mean over seeds and "
        f"standard deviation. The teacher has {teacher_top1()}. Differences are ScaleKD at equal "
        "steps minus the method of the row.",
        "Equal time counts the training loop's steps, and neither the loading of images nor the "
        "reading of a cache, which favours the cheaper methods (see experiments/PROTOCOL.md, "
        "Time). The seconds of the steps are those of Cost of a step times the steps. The seconds "
        "of a run are medians of what the runs took, two at a time on two cores, with loading and "
        "validation; some ran beside other work, or by earlier code. Runs at equal steps read a "
        "cache, but for FD. FD compares the penultimate feature too, which no cache holds, so its "
        "teacher is always live: in 'equal time, cache' it has as many steps as if a cache held "
        "it, and sees new views of the images where the others see those of the cache again.",
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
    beside = [[*sides(one), *compared(one)] for one in others_family(regime)]
    tables = [
        Table(header, rows),
        Table(["not a hypothesis", "top-1", "compared with", "top-1", *COMPARED], beside),
    ]
    return Section(f"Main comparison, {REGIMES[regime]}", text, tables, picture)


WAYS = {"": ("", ", cache"), ", equal time": ("",), ", equal time, cache": (", cache",)}
"""Of having a teacher, by length of the training: what an arm of the timed steps ends with."""


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
    taken = statistics.median(record["seconds"] for record in records)
    return [str(len(records)), str(steps), listed, f"{taken:.0f}"]


def controls_section() -> Section:
    """The negative controls."""
    rows = [
        [REGIMES[regime], *sides(one), *compared(one)]
        for regime in REGIMES
        for group in control_family(regime).values()
        for one in group
    ]
    text = [
        "ScaleKD with a tail whose weights are in one random order, the same for all seeds, and "
        "with the features of another image of the batch. The first keeps the teacher's features "
        "as targets; in the second they are of another class for nine of ten images. If ScaleKD "
        "cannot be told from one, nothing shows that its gain comes from that part of what the "
        "teacher knows. Each control is also compared with logit KD as it was tuned and, with few "
        "labels, with logit KD that has the control's own learning rate and temperature, which are "
        "ScaleKD's."
    ]
    header = ["regime", "arm", "top-1", "compared with", "top-1", *COMPARED]
    return Section("Negative controls", text, [Table(header, rows)])


def components_section() -> Section:
    """Experiment 2."""
    families = component_family()
    everything = [one for family in families.values() for one in family]
    rows = [[*sides(one), *compared(one)] for one in everything]
    text = [
        "Experiment 2, for Table 9 and Figure 4, with few labels. The paper's numbers are not "
        "known to us. The first seven rows compare ScaleKD's parts with fewer of them. More parts "
        "also have a larger sum of weights, as in the paper; the balances keep the sum. CAP is the "
        "cross-attention projector, DFM the comparison of features with and without their mean "
        "over space (dual-view feature mimicking), TPP the pass of the student's features through "
        "the teacher's tail (teacher parameter perception). With own queries the final projectors "
        "train their queries in place of those that TPP gives. The tail is the last stage, whose "
        "two blocks are compared with the last one alone. Beta is the share of the original "
        "view in the loss of the features: 0 is the alternative view alone, and "
        f"{TUNED_BETA} is the paper's. The last row was picked after a look at the others.",
        "Beta was not tuned; of the weights of ScaleKD's features two were tried and the smaller "
        "ones kept, 0.3 of the paper's. The arms were trained at different commits, which are "
        f"listed at the end of this section. {rounding()}",
    ]
    folded = {
        "Commits": "\n".join(
            commits(experiment, "few", arms, name)
            for experiment, arms, name in (
                ("main_comparison", ("scalekd",), "ScaleKD"),
                ("components", weights_of_arms(), "the other arms"),
            )
        )
    }
    header = ["arm", "top-1", "compared with", "top-1", *COMPARED]
    named = [(f"{one.one.name} minus {one.other.name}", one) for one in everything]
    pictures = draw_differences("What each part adds", named)
    curve = [
        (beta, arm) for beta in sorted((*BETAS, TUNED_BETA)) if (arm := beta_values(beta)).by_seed
    ]
    pictures += draw_curve("Accuracy over the share of the original view, beta", curve)
    betas = [[f"{beta:g}", accuracy(arm), str(len(arm.by_seed))] for beta, arm in curve]
    tables = [Table(header, rows), Table(["beta", "top-1", "seeds"], betas)]
    return Section("Components", text, tables, pictures, folded)


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
    teacher = read_json(RESULTS / "teacher" / "small.json")
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
        "Experiment 3: linear functions of the frozen students' features, in %, few labels. The "
        "first column is of students that saw seven classes (their teacher knows all ten) on "
        "pullover, coat and shirt: accuracy of a linear classifier that is fitted to the labelled "
        "images of these three. Digits: the same, fitted to 4,000 of them. Bright pixels: which of "
        "an image's pixels are not background, predicted at each of the 16 positions of the final "
        "feature; intersection over union. Place: which of the 16 positions a feature is from."
    ]
    differences = [
        [one.one.name, accuracy(one.one), accuracy(one.other), *compared(one)]
        for one in frozen_family()
    ]
    others = [[*sides(one), *compared(one)] for one in (*frozen_others(), *frozen_fd())]
    tables = [
        Table(header, rows),
        Table(["arm", "value", "logit KD", *COMPARED], differences),
        Table(["not a hypothesis", "value", "compared with", "value", *COMPARED], others),
    ]
    return Section("What accuracy does not show", text, tables)


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
    differences, others = (
        [[f"{one.one.name} minus {one.other.name}", *compared(one)] for one in found]
        for found in (no_classifier_family(), no_classifier_others())
    )
    text = [
        "Experiment 4: students that learned from the teacher's features alone, without labels and "
        "logits; then a linear classifier and the 20 nearest neighbours of 1,000 labelled images, "
        "and linear probes as in experiment 3, in %. ScaleKD's student has no classifier in "
        "training and therefore another start than the others' of its seed. FD and ScaleKD have "
        "the learning rates that were tuned for them with labels; relations were not tuned and "
        "have ScaleKD's."
    ]
    header = ["method", *NO_CLASSIFIER.values()]
    tables = [
        Table(header, rows),
        Table(["linear probe", *COMPARED], differences),
        Table(["not a hypothesis", *COMPARED], others),
    ]
    return Section("Without a classifier", text, tables)


def stage_of(one: Comparison) -> str:
    """Student and stage of a comparison of experiment 5."""
    return one.one.name.partition("(")[2].rstrip(")")


def stages_section() -> Section:
    """Experiment 5."""
    rows = [
        [stage_of(one), accuracy(one.one), accuracy(one.other), *compared(one)]
        for one in stage_family()
    ]
    alone = {
        "CNN": values("main_comparison", "few", "supervised"),
        "MLP": values("stages", "few", "MLP supervised"),
    }
    rates = {method: read_chosen()["few"][method]["optim"]["lr"] for method in ("fd", "scalekd")}
    text = [
        "Experiment 5, for Table 1, with few labels and without logits. The paper's numbers are "
        "not known to us. Alone "
        + ", ".join(f"the {student} has {accuracy(arm)}" for student, arm in alone.items())
        + ". ScaleKD has the published balance of the views. Learning rates were tuned for the CNN "
        f"with logits, {rates['fd']:g} for FD and {rates['scalekd']:g} for ScaleKD; the MLP has a "
        "quarter of them, so that a difference there can be one of rates."
    ]
    header = ["student, stage", "ScaleKD", "FD", *COMPARED]
    named = [(stage_of(one), one) for one in stage_family()]
    picture = draw_differences("ScaleKD minus FD by stage", named)
    return Section("Stages", text, [Table(header, rows)], picture)


def inside_section() -> Section:
    """Experiment 14."""
    found = read_json(FREQUENCIES)
    direct = "Not run here: `python experiments/evidence/inside.py`."
    if found is not None:
        direct = (
            f"The direct component of the teacher's final feature, the coefficient at frequency "
            f"zero, has {100 * found['direct_energy']:.1f} % of the energy (the sum of squared "
            f"coefficients, {found['images']:,} test images). {describe(found)}"
        )
    text = [
        "Experiment 14, for Figures 2, 5 and 6, whose numbers are not known to us. " + direct,
        "The distance in the alternative view is from 0 for the same tokens to 4, and 2 for "
        "unrelated ones: medians over the test images, mean over seeds and standard deviation, few "
        "labels. Without dual-view feature mimicking (CAP and TPP in experiment 2) it is that of "
        "the original view's projector, with it that of the alternative view's, which is trained "
        "to make it small. docs/analysis.md draws it.",
    ]
    rows = [[*sides(one), *compared(one)] for one in distance_family()]
    header = ["arm", "distance", "compared with", "distance", *COMPARED]
    return Section("Looked at from inside", text, [Table(header, rows)])
