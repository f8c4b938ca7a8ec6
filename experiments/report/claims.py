"""The claims that are tested, and what came out."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import second_tuning
from families import (
    LARGER,
    PLANNED_SEEDS,
    REGIMES,
    Comparison,
    component_family,
    control_family,
    cost_records,
    distance_family,
    frozen_family,
    longer_family,
    main_family,
    no_classifier_family,
    pretraining_family,
    retuned_family,
    stage_family,
    student_family,
    teacher_family,
    width_family,
)
from inside import FREQUENCIES
from recorded import read_json
from transfer_section import DETECTION, SEGMENTATION, transfer_family

UNKNOWN = "not known to us"
TABLE_7 = (
    "ResNet-50: 82.03; the best other method 81.33, FunMatch 82.31; Swin-T's best other method "
    "82.50: all three derived from stated margins"
)
TABLE_3 = "eleven pairs, gains from 2.02 to 6.27 points"
TABLE_4 = "ViT-B/16: 85.53 under Swin-L, 83.97 pre-trained on ImageNet-22K"

CHANGED = {
    "random_tail": "the weights of the teacher's tail in random order",
    "other_image": "the teacher's features of another image",
}
"""What the negative controls change."""


@dataclass(frozen=True)
class Claim:
    """What is claimed, and the family of comparisons that tests it.

    Attributes:
        text: the claim.
        source: of the paper, or whose it is.
        paper: the paper's numbers, or that they are not known to us.
        comparisons: adjusted as a family; none where nothing was run.
        for_scalekd: whether a difference below zero speaks against ScaleKD.
        stated: the verdict where it does not follow from the comparisons.
        number: what it is measured by where that is no difference of arms.
    """

    text: str
    source: str
    paper: str
    comparisons: Sequence[Comparison] = ()
    for_scalekd: bool = True
    stated: str = ""
    number: str = ""

    @property
    def verdict(self) -> str:
        """Holds here, does not, cannot be told, or not run; with more words."""
        if self.stated:
            return self.stated
        run = [one for one in self.comparisons if one.finished]
        missing = len(self.comparisons) - len(run)
        not_run = "not run"
        if any(one.begun for one in self.comparisons):
            not_run = "not run to the end"
        if not run:
            return not_run
        if missing and all(one.sign > 0 for one in run):
            every = len(self.comparisons)
            return f"{not_run}: higher in {len(run)} of {every} comparisons, the rest is missing"
        open_ones = f"; {missing} more {'was' if missing == 1 else 'were'} {not_run}"
        return self._verdict_of(run) + (open_ones if missing else "")

    def _verdict_of(self, run: Sequence[Comparison]) -> str:
        higher, lower = (sum(one.sign == sign for one in run) for sign in (1, -1))
        if lower:
            part = f"higher in {higher} of {len(run)} comparisons, lower in {lower}"
            return "does not hold here: " + (
                part + by_signs(run) if len(run) > 1 else run[0].verdict
            )
        if higher == len(run):
            return "holds here" + by_signs(run)
        if higher:
            part = f"higher in {higher} of {len(run)} comparisons, the others cannot be told"
            return "cannot be told here: " + part
        return "cannot be told here"


def by_signs(run: Sequence[Comparison]) -> str:
    """Says where one sign in all seeds decides, because the test cannot."""
    return f" (by one sign in all {PLANNED_SEEDS} seeds)" * any(one.by_one_sign for one in run)


def claims() -> list[Claim]:
    """All claims, those of the paper and this project's."""
    return [
        *(claim for regime in REGIMES for claim in regime_claims(regime)),
        *retuned_claims(),
        Claim(
            "Under the large teacher, in ten epochs of all images, ScaleKD is above the other "
            "methods",
            "Table 7",
            TABLE_7,
            longer_family(),
        ),
        *design_claims(),
        *inside_claims(),
        *frozen_claims(),
        *setting_claims(),
        *transfer_claims(),
    ]


def own_claim(text: str, comparisons: Sequence[Comparison]) -> Claim:
    """What this project asked before any result was known."""
    return Claim(text, "this project's question", "not in the paper", comparisons)


def regime_claims(regime: str) -> list[Claim]:
    """Those of the main comparison."""
    where = REGIMES[regime]
    families, controls = main_family(regime), control_family(regime)
    alone, *rivals = families[""]
    return [
        Claim(
            f"A student under ScaleKD is more accurate than one trained alone ({where})",
            "Table 3",
            "ResNet-50 78.64 alone, 82.03 under Swin-L: 3.39 points; others 2.02 to 6.27",
            [alone],
        ),
        Claim(
            f"At equal steps ScaleKD is above the other methods ({where})",
            "Table 7",
            TABLE_7,
            rivals,
        ),
        gain_and_controls(regime, rivals[0]),
        *(
            own_claim(f"ScaleKD is above itself with {change} ({where})", controls[control])
            for control, change in CHANGED.items()
        ),
        own_claim(
            f"In equal time with a live teacher ScaleKD is above the others ({where})",
            families[", equal time"],
        ),
        own_claim(
            f"In equal time from a cache ScaleKD is above the others ({where})",
            families[", equal time, cache"],
        ),
    ]


def design_claims() -> list[Claim]:
    """What each part of the method adds."""
    parts = component_family()
    return [
        Claim(
            "CAP, DFM, TPP and the logits each add accuracy", "Table 9 a", UNKNOWN, parts["added"]
        ),
        Claim(
            "With the same settings the features add accuracy to the logits",
            "Table 9 a",
            UNKNOWN,
            parts["features"],
        ),
        Claim(
            "Queries that TPP gives are better than trained ones",
            "Table 9 b",
            UNKNOWN,
            parts["queries"],
        ),
        Claim(
            "Both views together are better than one",
            "Table 9 c, Figure 4",
            "a curve that peaks near beta 0.6",
            parts["balance"],
        ),
        Claim(
            "A deeper tail is better (two blocks of a stage against the last one)",
            "Table 9 d",
            UNKNOWN,
            parts["depth"],
        ),
        cost_claim(),
    ]


def inside_claims() -> list[Claim]:
    """What the alternative view is for."""
    return [
        direct_claim(),
        Claim(
            "Dual-view feature mimicking brings the student nearer to the teacher in the "
            "alternative view (distance without it minus with it)",
            "Figure 6",
            UNKNOWN,
            distance_family(),
        ),
    ]


def direct_claim() -> Claim:
    """That of Figures 2 and 5, which is about the teacher alone."""
    found = read_json(FREQUENCIES)
    stated, number = "not run", "-"
    if found is not None:
        share = found["direct_energy"]
        stated = "holds here" if share > 0.5 else "does not hold here"
        number = f"{100 * share:.1f} % of the energy"
    return Claim(
        "The direct component dominates the teacher's final feature (has more than half of its "
        "energy)",
        "Figures 2 and 5",
        UNKNOWN,
        stated=stated,
        number=number,
    )


def cost_claim() -> Claim:
    """That of Table 15, which is measured at full size."""
    stated, numbers = "not run", []
    for record in cost_records():
        stated = "cannot be told: measured, but what the paper says of it is not known to us"
        seconds, memory = (
            record[what]["ScaleKD"] / record[what]["FD"] for what in ("seconds", "peak_bytes")
        )
        numbers.append(f"{seconds:.2f} times the time and {memory:.2f} times the memory")
    text = "What a step of ScaleKD costs beside one of FD, at full size"
    return Claim(text, "Table 15", UNKNOWN, stated=stated, number=", ".join(numbers) or "-")


def frozen_claims() -> list[Claim]:
    """What the features of a frozen student tell."""
    frozen = frozen_family()
    return [
        own_claim(
            "Frozen features of ScaleKD's student tell more than those of logit KD's", frozen[::2]
        ),
        replace(
            own_claim(
                "Frozen features of FD's student tell more than those of logit KD's", frozen[1::2]
            ),
            for_scalekd=False,
        ),
    ]


def setting_claims() -> list[Claim]:
    """Other settings than the main ones: no labels, stages, teachers, students, pre-training."""
    students, pretraining = student_family(), pretraining_family()
    return [
        own_claim(
            "Without labels and classifier ScaleKD is above FD and relations",
            no_classifier_family(),
        ),
        Claim(
            "ScaleKD is above FD at the penultimate stage, the final one, and both",
            "Table 1",
            UNKNOWN,
            stage_family(),
        ),
        Claim(
            "ScaleKD gains more over logit KD under a larger teacher, with plain and with strong "
            "augmentation",
            "Tables 2 and 10",
            UNKNOWN,
            teacher_family()[len(LARGER) :],
        ),
        Claim(
            "Students of every kind gain over training alone",
            "Table 3",
            TABLE_3,
            students[::2],
        ),
        own_claim("Students of every kind gain over logit KD", students[1::2]),
        Claim(
            "Distillation replaces pre-training",
            "Table 4",
            TABLE_4,
            pretraining[:1],
        ),
        Claim(
            "The more the teacher has seen, the better the student",
            "Table 16",
            UNKNOWN,
            pretraining[1:],
        ),
        Claim(
            "ScaleKD's gain over FD is larger in narrower students",
            "arXiv 2511.15572",
            UNKNOWN,
            width_family()[-2:],
        ),
    ]


def transfer_claims() -> list[Claim]:
    """What a dense task gains from a distilled backbone."""
    segmented, detected = transfer_family(SEGMENTATION), transfer_family(DETECTION)
    return [
        Claim(
            "A segmenter that starts from ScaleKD's student is better than one from the supervised "
            "student",
            "Tables 5, 6 and 11",
            SEGMENTATION.paper,
            segmented["supervised"],
        ),
        Claim(
            "A detector that starts from ScaleKD's student is better than one from the supervised "
            "student",
            "Tables 5, 6 and 11",
            DETECTION.paper,
            detected["supervised"],
        ),
        own_claim(
            "A segmenter that starts from ScaleKD's student is better than one from a random start "
            "and from logit KD's",
            [*segmented["random"], *segmented["logit_kd"]],
        ),
        own_claim(
            "A detector that starts from ScaleKD's student is better than one from a random start "
            "and from logit KD's",
            [*detected["random"], *detected["logit_kd"]],
        ),
    ]


def gain_and_controls(regime: str, over_logits: Comparison) -> Claim:
    """Hypothesis 4, which says nothing where ScaleKD has no gain over logit KD."""
    controls = control_family(regime)
    gains = over_logits.sign > 0
    return Claim(
        "The gain of ScaleKD over logit KD is gone with the weights of the tail in random order, "
        f"and with the features of another image ({REGIMES[regime]})",
        "this project's question",
        "not in the paper",
        [one for control in CHANGED for one in controls[control]] if gains else [over_logits],
        stated=(
            ""
            if gains or not over_logits.finished
            else "cannot be told here: ScaleKD has no gain over logit KD"
        ),
    )


def retuned_claims() -> list[Claim]:
    """Those of experiment 12."""
    families = {regime: retuned_family(regime) for regime in REGIMES}
    above, against_itself = "Tuned again, ScaleKD is above", families[second_tuning.REGIME]
    questions = [
        *(
            (
                "Tuned again, by 24 more trials with few labels, ScaleKD is above the other "
                f"methods at equal steps (tested with {where})",
                families[regime]["rivals"],
            )
            for regime, where in REGIMES.items()
        ),
        *(
            (f"{above} logit KD in the time of its own step ({where})", families[regime]["time"])
            for regime, where in REGIMES.items()
        ),
        *(
            (f"{above} itself with {change} (few labels)", against_itself[control])
            for control, change in CHANGED.items()
        ),
    ]
    asked = "this project's question, asked after the results"
    return [Claim(text, asked, "not in the paper", found) for text, found in questions]
