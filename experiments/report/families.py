"""Which arms are compared with which: families of comparisons, adjusted together."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import inside
import second_tuning
from comparison import LEVEL, Difference, holm, paired_difference
from cost import METHODS
from records import Values, measure, values

from scalekd.recipe import Method
from scalekd.runs.result import METHOD_NAMES

REGIMES = {"few": "few labels", "all": "all images, short"}
RIVALS = METHODS[:-1]
LENGTHS = {
    "": "equal steps",
    ", equal time": "equal time, live teacher",
    ", equal time, cache": "equal time, cache",
}
"""How long a method is trained, by what an arm's name ends with."""

difference = cache(paired_difference)
"""Claims and sections ask for the same ones, and each resamples 10,000 times."""

SEEDS_TO_TEST = 6
"""With fewer pairs the permutation test cannot give a p value below 0.05."""

PLANNED_SEEDS = 5
MAIN_SEEDS = 10
DETECTION_SEEDS = 3
"""How many the protocol plans: in general, for the main comparison and for detection. With fewer
pairs nothing is told apart. By chance five differences have one sign in one of 16 comparisons,
three in one of four."""


@dataclass(frozen=True)
class Comparison:
    """Two arms over their common seeds.

    Attributes:
        one: that the claim says is higher.
        other: that it is compared with.
        difference: one minus other; None with fewer than two common seeds.
        adjusted: its p value, adjusted for the family; None likewise.
        planned: how many seeds the protocol has; with fewer than these, or than five, nothing is
            told apart.
    """

    one: Values
    other: Values
    difference: Difference | None = None
    adjusted: float | None = None
    planned: int = PLANNED_SEEDS

    @property
    def seeds(self) -> int:
        """How many both arms have."""
        return len(self.common_seeds)

    @property
    def common_seeds(self) -> set[int]:
        """Which both arms have."""
        return set(self.one.by_seed) & set(self.other.by_seed)

    @property
    def decided_by_sign(self) -> bool:
        """Whether it is told by the signs of the differences, because the test cannot tell it."""
        return self.finished and PLANNED_SEEDS <= self.seeds < SEEDS_TO_TEST

    @property
    def finished(self) -> bool:
        """Whether both arms have all planned seeds."""
        return self.difference is not None and self.seeds >= self.planned

    @property
    def begun(self) -> bool:
        """Whether both arms have seeds, but not all that are planned."""
        return self.seeds > 0 and not self.finished

    @property
    def sign(self) -> int:
        """1 where `one` is higher, -1 where it is lower, 0 where that cannot be told."""
        found = self.difference
        if found is None or self.adjusted is None or self._too_few:
            return 0
        told = found.one_sign if found.seeds < SEEDS_TO_TEST else self.adjusted < LEVEL
        return self._direction if told else 0

    @property
    def _too_few(self) -> bool:
        return self.seeds < max(self.planned, PLANNED_SEEDS)

    @property
    def _direction(self) -> int:
        assert self.difference is not None
        return 1 if self.difference.mean > 0 else -1

    @property
    def leaning(self) -> int:
        """`sign`, also where three seeds or more, too few to tell, have one sign."""
        found = self.difference
        leans = found is not None and found.one_sign and self.seeds > 2 and self._too_few
        return self._direction if leans else self.sign

    @property
    def verdict(self) -> str:
        """In words."""
        if not self.seeds:
            return "not run"
        if self.difference is None:
            return self._unfinished
        word = "higher" if self._direction > 0 else "lower"
        in_all = f"{word} in all {self.seeds} seeds"
        if not self.sign:
            untold = "cannot be told apart" if self.finished else self._unfinished
            return untold + (f" ({in_all})" if self.leaning else "")
        return in_all if self.seeds < SEEDS_TO_TEST else word

    @property
    def _unfinished(self) -> str:
        return f"not finished, {self.seeds} of {self.planned} seeds"


def family(
    pairs: Sequence[tuple[Values, Values]], planned: int = PLANNED_SEEDS
) -> list[Comparison]:
    """Comparisons whose p values are adjusted together; see `Comparison.planned`."""
    differences = []
    for one, other in pairs:
        seeds = sorted(set(one.by_seed) & set(other.by_seed))
        both = [tuple(arm.by_seed[seed] for seed in seeds) for arm in (one, other)]
        differences.append(difference(*both) if len(seeds) > 1 else None)
    adjusted = iter(holm([found.p for found in differences if found is not None]))
    return [
        Comparison(one, other, found, None if found is None else next(adjusted), planned)
        for (one, other), found in zip(pairs, differences, strict=True)
    ]


def grouped_family(
    groups: dict[str, list[tuple[Values, Values]]], planned: int = PLANNED_SEEDS
) -> dict[str, list[Comparison]]:
    """`family` of the pairs of all groups, by group."""
    found = iter(family([pair for pairs in groups.values() for pair in pairs], planned))
    return {name: list(itertools.islice(found, len(pairs))) for name, pairs in groups.items()}


def main_family(regime: str) -> dict[str, list[Comparison]]:
    """ScaleKD against every method at equal steps, equal time and equal time from a cache: one
    family a regime."""
    scalekd = values("main_comparison", regime, "scalekd", "ScaleKD")
    groups = {
        suffix: [
            (scalekd, values("main_comparison", regime, method + suffix, METHOD_NAMES[method]))
            for method in RIVALS
        ]
        for suffix in LENGTHS
    }
    return grouped_family(groups, MAIN_SEEDS)


def others_family(regime: str) -> list[Comparison]:
    """What no hypothesis names, between the other methods in the same time: supervised training
    against distillation, and logit KD against FD and DIST. One family a regime."""
    pairs = [("supervised", method) for method in RIVALS if method != "supervised"]
    pairs += [("logit_kd", "fd"), ("logit_kd", "dist")]

    def arm(method: Method, suffix: str, time: str = "") -> Values:
        return values("main_comparison", regime, method + suffix, METHOD_NAMES[method] + time)

    return family(
        [
            (arm(one, suffix, f", {time}"), arm(other, suffix))
            for suffix, time in LENGTHS.items()
            if suffix
            for one, other in pairs
        ],
        MAIN_SEEDS,
    )


CONTROLS = {"random_tail": "tail in random order", "other_image": "another image"}
"""Arms of the negative controls, and what they are called."""


def control_family(regime: str) -> dict[str, list[Comparison]]:
    """ScaleKD against its negative controls, by their names, which must not equal it, and logit KD
    against all controls, which must not exceed it: as it was tuned, and by ScaleKD's settings."""
    scalekd = values("main_comparison", regime, "scalekd", "ScaleKD")
    logits = [values("main_comparison", regime, "logit_kd", "logit KD")]
    if regime == "few":
        logits.append(values("components", "few", "logits", COMPONENT_NAMES["logits"]))
    arms = {
        arm: values("main_comparison", regime, arm, f"ScaleKD ({name})")
        for arm, name in CONTROLS.items()
    }
    return against_controls(scalekd, arms, logits)


def against_controls(
    scalekd: Values, arms: dict[str, Values], logits: Sequence[Values]
) -> dict[str, list[Comparison]]:
    """ScaleKD against each control, by its name, and logit KD against all controls: one family."""
    return grouped_family(
        {name: [(scalekd, arm)] for name, arm in arms.items()}
        | {"logits": [(one, arm) for arm in arms.values() for one in logits]}
    )


def gain(one: Values, other: Values, name: str) -> Values:
    """One arm minus another, by their common seeds."""
    seeds = sorted(set(one.by_seed) & set(other.by_seed))
    return Values(name, {seed: one.by_seed[seed] - other.by_seed[seed] for seed in seeds})


COMPONENT_NAMES = {
    "logits": "logit KD with ScaleKD's settings",
    "CAP": "logits and CAP",
    "CAP, DFM": "logits, CAP and DFM",
    "CAP, TPP": "logits, CAP and TPP",
    "all, without logits": "ScaleKD without logits",
    "all, own queries": "ScaleKD with trained queries",
    "all, last block of the tail": "ScaleKD with the last block of the tail",
    "beta 0.0": "ScaleKD with the alternative view alone",
    "beta 1.0": "ScaleKD with the original view alone",
}
"""What the variants of experiment 2 are called."""


def component_family() -> dict[str, list[Comparison]]:
    """Each component against the variant without it; all features against none; queries; balances
    of the views; the tail's depth; and, picked after a look at these, the best balance against no
    features."""

    def arm(name: str) -> Values:
        return values("components", "few", name, COMPONENT_NAMES[name])

    complete = values("main_comparison", "few", "scalekd", "ScaleKD")
    added = [
        (arm("CAP"), arm("logits")),
        (arm("CAP, DFM"), arm("CAP")),
        (arm("CAP, TPP"), arm("CAP")),
        (complete, arm("CAP, DFM")),
        (complete, arm("CAP, TPP")),
        (complete, arm("all, without logits")),
    ]
    features = [(complete, arm("logits"))]
    queries = [(complete, arm("all, own queries"))]
    balance = [(complete, arm("beta 0.0")), (complete, arm("beta 1.0"))]
    return grouped_family(
        {
            "added": added,
            "features": features,
            "queries": queries,
            "balance": balance,
            "depth": [(complete, arm("all, last block of the tail"))],
            "picked": [(arm("beta 0.0"), arm("logits"))],
        }
    )


def distance_family() -> list[Comparison]:
    """Distances to the teacher in the alternative view, without and with dual-view feature
    mimicking: of the projector of the original view, where there is no other."""

    def distance(arm: str, view: str) -> Values:
        return values(inside.NAME, "few", arm, f"distance {arm}", lambda r: r["measures"][view])

    return family([(distance("without DFM", "original"), distance("with DFM", "alternative"))])


def retuned_family(regime: str) -> dict[str, list[Comparison]]:
    """ScaleKD tuned again, against the other methods at equal steps, its first tuning, and logit KD
    in its time; then, in a family of their own, against its negative controls by their names, and
    these against logit KD."""
    scalekd = values("second_tuning", regime, second_tuning.ARM, "ScaleKD (tuned again)")

    def tuned_once(method: Method) -> tuple[Values, Values]:
        return scalekd, values("main_comparison", regime, method, METHOD_NAMES[method])

    def in_its_time(suffix: str, name: str) -> tuple[Values, Values]:
        return scalekd, values("second_tuning", regime, second_tuning.LOGITS + suffix, name)

    found = grouped_family(
        {
            "rivals": [tuned_once(method) for method in RIVALS],
            "first": [tuned_once("scalekd")],
            "time": [
                in_its_time("", "logit KD, in its time, live teacher"),
                in_its_time(", cache", "logit KD, in its time, cache"),
            ],
        },
        MAIN_SEEDS,
    )
    if regime != second_tuning.REGIME:
        return found
    arms = {
        arm: values("second_tuning", regime, arm, f"ScaleKD (tuned again, {name})")
        for arm, name in CONTROLS.items()
    }
    logits = values("main_comparison", regime, "logit_kd", METHOD_NAMES["logit_kd"])
    return found | against_controls(scalekd, arms, [logits])


def longer_family() -> list[Comparison]:
    """ScaleKD against the other methods under the large teacher, for ten epochs of all images."""
    scalekd, *others = (
        values("longer", "all", method, METHOD_NAMES[method]) for method in ("scalekd", *RIVALS)
    )
    return family([(scalekd, other) for other in others])


def student_family() -> dict[str, list[Comparison]]:
    """ScaleKD against each other method, by its name, under each student; few labels."""
    groups: dict[str, list[tuple[Values, Values]]] = {"supervised": [], "logit_kd": []}
    for kind in ("CNN", "MLP", "ViT"):
        experiment, prefix = (
            ("main_comparison", "") if kind == "CNN" else ("every_student", f"{kind} ")
        )
        scalekd, *others = (
            values(experiment, "few", prefix + method, f"{kind}, {METHOD_NAMES[method]}")
            for method in ("scalekd", *groups)
        )
        for pairs, other in zip(groups.values(), others, strict=True):
            pairs.append((scalekd, other))
    return grouped_family(groups)


def width_family() -> dict[str, list[Comparison]]:
    """ScaleKD against the others by the student's width, and its gain over FD in narrower against
    wider students; few labels."""
    pairs, gains = [], []
    for width in ("half", "full", "double"):
        experiment, prefix = ("main_comparison", "") if width == "full" else ("width", f"{width} ")
        scalekd, *others = (
            values(experiment, "few", prefix + method, f"{width} width, {METHOD_NAMES[method]}")
            for method in ("scalekd", "supervised", "logit_kd", "fd")
        )
        pairs += [(scalekd, other) for other in others]
        gains.append(gain(scalekd, others[-1], f"{width} width, ScaleKD minus FD"))
    return grouped_family({"methods": pairs, "gains": list(itertools.pairwise(gains))})


LARGER = [(size, strategy) for strategy in ("plain", "strong") for size in ("medium", "large")]


def teacher_family() -> dict[str, list[Comparison]]:
    """ScaleKD under larger teachers against the small one with the same augmentation: first its
    accuracy, then its gain over logit KD."""

    def arm(size: str, strategy: str, method: str) -> Values:
        name = f"{size} teacher, {strategy} augmentation, {METHOD_NAMES[method]}"
        if (size, strategy) == ("small", "plain"):
            return values("main_comparison", "few", method, name)
        return values("teacher_size", "few", f"{size} {strategy} {method}", name)

    def gain_of(size: str, strategy: str) -> Values:
        name = f"{size} teacher, {strategy} augmentation, ScaleKD minus logit KD"
        return gain(arm(size, strategy, "scalekd"), arm(size, strategy, "logit_kd"), name)

    accuracies = [(arm(*one, "scalekd"), arm("small", one[1], "scalekd")) for one in LARGER]
    gains = [(gain_of(*one), gain_of("small", one[1])) for one in LARGER]
    return grouped_family({"accuracies": accuracies, "gains": gains})


def pretraining_family() -> dict[str, list[Comparison]]:
    """ScaleKD's teacher that saw all images, against pre-training, and teachers that saw fewer."""
    scalekd = values("main_comparison", "few", "scalekd", "teacher of all images")
    groups = {"pre-training": ["pre-trained"], "images": ["teacher of half", "teacher of a tenth"]}
    return grouped_family(
        {
            name: [(scalekd, values("pretraining", "few", arm)) for arm in arms]
            for name, arms in groups.items()
        }
    )


FROZEN = {
    "hidden_linear": ("seven_classes", "classes that were not trained on"),
    "digits_linear": ("main_comparison", "handwritten digits"),
    "foreground": ("main_comparison", "foreground IoU"),
    "place": ("main_comparison", "position of a patch"),
}
"""Measures of frozen features: the experiment that has them, and what they are."""


def frozen_family() -> dict[str, list[Comparison]]:
    """ScaleKD and FD, by their names, against logit KD in what their frozen features tell."""
    groups: dict[str, list[tuple[Values, Values]]] = {"scalekd": [], "fd": []}
    for name, (experiment, what) in FROZEN.items():
        logits, *others = (
            values(experiment, "few", method, f"{METHOD_NAMES[method]} ({what})", measure(name))
            for method in ("logit_kd", *groups)
        )
        for pairs, other in zip(groups.values(), others, strict=True):
            pairs.append((other, logits))
    return grouped_family(groups)


def frozen_others() -> list[Comparison]:
    """ScaleKD against the methods that no hypothesis names, in the same measures."""
    return family([pair for name in FROZEN for pair in frozen_rivals(name, "scalekd")])


def frozen_fd() -> list[Comparison]:
    """FD against the same methods in what it is best at, which no hypothesis names either."""
    return family(frozen_rivals("hidden_linear", "fd"))


def frozen_rivals(name: str, method: Method) -> list[tuple[Values, Values]]:
    """A method with each other one, but logit KD, by a measure of frozen features."""
    experiment, what = FROZEN[name]
    arms = {
        arm: values(experiment, "few", arm, METHOD_NAMES[arm], measure(name))
        for arm in (method, *RIVALS)
    }
    one = replace(arms[method], name=f"{METHOD_NAMES[method]} ({what})")
    return [(one, other) for arm, other in arms.items() if arm not in (method, "logit_kd")]


NO_CLASSIFIER = {
    "linear": "linear probe",
    "neighbours": "nearest neighbours",
    "digits_linear": "digits",
    "hidden_linear": "pullover, coat, shirt",
    "foreground": "foreground IoU",
    "place": "position of a patch",
}
"""Measures of experiment 4, of which the hypothesis names the first, and what they are called."""


def no_classifier_family() -> list[Comparison]:
    """ScaleKD against FD and relations without labels and logits, by a linear probe."""
    return family(without_classifier("linear", "ScaleKD"))


def no_classifier_others() -> list[Comparison]:
    """The same by the measures that no hypothesis names."""
    return family(
        [
            pair
            for name, what in list(NO_CLASSIFIER.items())[1:]
            for pair in without_classifier(name, f"{what}: ScaleKD")
        ]
    )


def without_classifier(name: str, scalekd: str) -> list[tuple[Values, Values]]:
    """ScaleKD, by the name that is given, with FD and with relations, by a measure."""

    def arm(method: Method, called: str) -> Values:
        return values("no_classifier", "all", method, called, measure(name))

    others = [arm(method, METHOD_NAMES[method]) for method in ("fd", "relations")]
    return [(arm("scalekd", scalekd), other) for other in others]


def stage_family() -> dict[str, Comparison]:
    """ScaleKD against FD, by student and stage."""

    def arm(method: Method, student: str, stage: str) -> Values:
        name = f"{METHOD_NAMES[method]} ({student}, {stage})"
        return values("stages", "few", f"{student} {method} {stage}", name)

    pairs = {
        f"{student}, {stage}": (arm("scalekd", student, stage), arm("fd", student, stage))
        for student in ("CNN", "MLP")
        for stage in ("penultimate", "final", "both")
    }
    return dict(zip(pairs, family(list(pairs.values())), strict=True))
