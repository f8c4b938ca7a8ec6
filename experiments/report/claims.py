"""The claims that are tested, and which comparisons test them."""

from collections.abc import Sequence

import second_tuning
from claim import Claim
from families import (
    REGIMES,
    Comparison,
    component_family,
    control_family,
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
from records import read_records
from transfer_section import DETECTION, SEGMENTATION, transfer_family

from scalekd.runs.result import METHOD_NAMES

UNKNOWN = "not known to us"
TABLE_7 = (
    "ResNet-50: 82.03; the best other method 81.33, FunMatch 82.31; Swin-T's best other method "
    "82.50: the last three are derived from margins that the paper states"
)
TABLE_3 = "eleven pairs, gains from 2.02 to 6.27 points"
TABLE_4 = "ViT-B/16: 85.53 under Swin-L, 83.97 pre-trained on ImageNet-22K"

OWN = "this project's question"
AFTERWARDS = "this project's question, asked after results"
NOT_THE_PAPER = "not in the paper"

CHANGED = {
    "random_tail": "the weights of the teacher's tail in random order",
    "other_image": "the teacher's features of another image",
}
"""What the negative controls change."""


def claims() -> list[Claim]:
    """All claims, those of the paper and this project's, by experiment."""
    found = [
        *(claim for regime in REGIMES for claim in regime_claims(regime)),
        *retuned_claims(),
        Claim(
            13,
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
    return sorted(found, key=lambda claim: claim.experiment)


def regime_claims(regime: str) -> list[Claim]:
    """Those of the main comparison."""
    where = REGIMES[regime]
    families, controls = main_family(regime), control_family(regime)
    supervised, *rivals = families[""]
    return [
        Claim(
            1,
            f"A student under ScaleKD is more accurate than the supervised baseline ({where})",
            "Table 3",
            "ResNet-50 78.64 supervised, 82.03 under Swin-L: 3.39 points; others 2.02 to 6.27",
            [supervised],
        ),
        Claim(
            1,
            f"At equal steps ScaleKD is above the other methods ({where})",
            "Table 7",
            TABLE_7,
            rivals,
        ),
        gain_claim(where, rivals[0], controls["logits"]),
        *(
            Claim(
                1,
                f"ScaleKD is above itself with {change} ({where})",
                AFTERWARDS,
                NOT_THE_PAPER,
                controls[control],
            )
            for control, change in CHANGED.items()
        ),
        *(
            Claim(
                1,
                f"In equal time {how} ScaleKD is above the others ({where})",
                OWN,
                NOT_THE_PAPER,
                families[suffix],
            )
            for suffix, how in (
                (", equal time", "with a live teacher"),
                (", equal time, cache", "from a cache"),
            )
        ),
    ]


def gain_claim(where: str, gain: Comparison, controls: Sequence[Comparison]) -> Claim:
    """Hypothesis 4, which says nothing where ScaleKD has no gain over logit KD.

    Args:
        where: the regime.
        gain: ScaleKD against logit KD.
        controls: logit KD against the controls, which it is not below if the hypothesis holds.
    """
    no_gain = gain.finished and gain.sign <= 0
    return Claim(
        1,
        "The gain of ScaleKD over logit KD is gone with the weights of the tail in random order, "
        f"and with the features of another image ({where})",
        OWN,
        NOT_THE_PAPER,
        [gain] if no_gain else controls,
        stated="cannot be told here: ScaleKD has no gain over logit KD" if no_gain else "",
    )


def retuned_claims() -> list[Claim]:
    """Those of experiment 12."""
    families = {regime: retuned_family(regime) for regime in REGIMES}
    tested = [
        (
            "Tuned again, by 24 additional trials with few labels, ScaleKD is above the other "
            f"methods at equal steps (tested with {where})",
            families[regime]["rivals"],
        )
        for regime, where in REGIMES.items()
    ]
    tested += [
        (
            f"Tuned again, ScaleKD is above logit KD in the time of its own step ({where})",
            families[regime]["time"],
        )
        for regime, where in REGIMES.items()
    ]
    tested += [
        (
            f"Tuned again, ScaleKD is above itself with {change} (few labels)",
            families[second_tuning.REGIME][control],
        )
        for control, change in CHANGED.items()
    ]
    return [Claim(12, text, AFTERWARDS, NOT_THE_PAPER, found) for text, found in tested]


def design_claims() -> list[Claim]:
    """What each part of the method adds, and costs."""
    parts = component_family()
    return [
        Claim(
            2,
            "CAP, DFM, TPP and the logits each add accuracy",
            "Table 9 a",
            UNKNOWN,
            parts["added"],
        ),
        Claim(
            2,
            "With the same settings the features add accuracy to the logits",
            "Table 9 a",
            UNKNOWN,
            parts["features"],
        ),
        Claim(
            2,
            "Queries that TPP gives are better than trained ones",
            "Table 9 b",
            UNKNOWN,
            parts["queries"],
        ),
        Claim(
            2,
            "Both views together are better than one",
            "Table 9 c, Figure 4",
            "a curve that peaks near beta 0.6",
            parts["balance"],
        ),
        Claim(
            2,
            "A deeper tail is better (two blocks of a stage against the last one)",
            "Table 9 d",
            UNKNOWN,
            parts["depth"],
        ),
        cost_claim(),
    ]


def cost_claim() -> Claim:
    """That of Table 15, which is measured at full size."""
    numbers = []
    for record in read_records("component_cost"):
        seconds, memory = (
            record[what]["ScaleKD"] / record[what]["FD"] for what in ("seconds", "peak_bytes")
        )
        numbers.append(f"{seconds:.2f} times the time and {memory:.2f} times the memory")
    return Claim(
        10,
        "Cost of a step of ScaleKD beside one of FD, at full size",
        "Table 15",
        UNKNOWN,
        stated=(
            "cannot be told here: measured, but what the paper says of it is not known to us"
            if numbers
            else "not run"
        ),
        number=", ".join(numbers) or "-",
    )


def inside_claims() -> list[Claim]:
    """What the alternative view is for."""
    return [
        direct_claim(),
        Claim(
            14,
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
        14,
        "The direct component dominates the teacher's final feature (has more than half of its "
        "energy)",
        "Figures 2 and 5",
        UNKNOWN,
        stated=stated,
        number=number,
    )


def frozen_claims() -> list[Claim]:
    """What the features of a frozen student tell."""
    frozen = frozen_family()
    return [
        Claim(
            3,
            f"Frozen features of {METHOD_NAMES[method]}'s student tell more than those of logit "
            "KD's",
            OWN,
            NOT_THE_PAPER,
            frozen[method],
            for_scalekd=method == "scalekd",
        )
        for method in ("scalekd", "fd")
    ]


def setting_claims() -> list[Claim]:
    """Other settings than the main ones: no labels, stages, teachers, students, pre-training."""
    students, pretraining = student_family(), pretraining_family()
    return [
        Claim(
            4,
            "Without labels and classifier ScaleKD is above FD and relations",
            OWN,
            NOT_THE_PAPER,
            no_classifier_family(),
        ),
        Claim(
            5,
            "ScaleKD is above FD at the penultimate stage, the final one, and both",
            "Table 1",
            UNKNOWN,
            list(stage_family().values()),
        ),
        Claim(
            6,
            "ScaleKD gains more over logit KD under a larger teacher, with plain and with strong "
            "augmentation",
            "Tables 2 and 10",
            UNKNOWN,
            teacher_family()["gains"],
        ),
        Claim(
            7,
            "Students of every kind gain over the supervised baseline",
            "Table 3",
            TABLE_3,
            students["supervised"],
        ),
        Claim(
            7,
            "Students of every kind gain over logit KD",
            OWN,
            NOT_THE_PAPER,
            students["logit_kd"],
        ),
        Claim(
            8,
            "Distillation replaces pre-training",
            "Table 4",
            TABLE_4,
            pretraining["pre-training"],
        ),
        Claim(
            8,
            "The more the teacher has seen, the better the student",
            "Table 16",
            UNKNOWN,
            pretraining["images"],
        ),
        Claim(
            9,
            "ScaleKD's gain over FD is larger in narrower students",
            "arXiv 2511.15572",
            UNKNOWN,
            width_family()["gains"],
        ),
    ]


def transfer_claims() -> list[Claim]:
    """What a dense task gains from a distilled backbone."""
    found = []
    for name, words in (("segmenter", SEGMENTATION), ("detector", DETECTION)):
        better = f"A {name} that starts from ScaleKD's student is better than one from"
        family = transfer_family(words)
        found += [
            Claim(
                11,
                f"{better} the supervised student",
                "Tables 5, 6 and 11",
                words.paper,
                family["supervised"],
            ),
            Claim(
                11,
                f"{better} a random start and from logit KD's student",
                AFTERWARDS,
                NOT_THE_PAPER,
                [*family["random"], *family["logit_kd"]],
            ),
        ]
    return found
