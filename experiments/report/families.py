"""Which arms are compared with which: families of comparisons, adjusted together."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from comparison import LEVEL, Difference, holm, paired_difference
from cost import METHODS
from records import Values, measure, values

from scalekd.runs.result import METHOD_NAMES

REGIMES = {"few": "few labels", "all": "all images, short"}
RIVALS = METHODS[:-1]
difference = cache(paired_difference)
"""Claims and sections ask for the same ones, and each resamples 10,000 times."""

SEEDS_TO_TEST = 6
"""With fewer pairs the permutation test cannot give a p value below 0.05."""


@dataclass(frozen=True)
class Comparison:
    """Two arms over their common seeds.

    Attributes:
        one: that the claim says is higher.
        other: that it is compared with.
        difference: one minus other; None with fewer than two common seeds.
        adjusted: its p value, adjusted for the family; None likewise.
    """

    one: Values
    other: Values
    difference: Difference | None = None
    adjusted: float | None = None

    @property
    def sign(self) -> int:
        """1 where `one` is higher, -1 where it is lower, 0 where that cannot be told."""
        if self.difference is None or self.adjusted is None:
            return 0
        if self.difference.seeds < SEEDS_TO_TEST:
            told = self.difference.one_sign and self.difference.seeds > 2
        else:
            told = self.adjusted < LEVEL
        return 0 if not told else 1 if self.difference.mean > 0 else -1

    @property
    def verdict(self) -> str:
        """In words."""
        if self.difference is None:
            return "not run"
        if not self.sign:
            return "cannot be told apart"
        word = "higher" if self.sign > 0 else "lower"
        few = self.difference.seeds < SEEDS_TO_TEST
        return f"{word} in all {self.difference.seeds} seeds" if few else word


def family(pairs: Sequence[tuple[Values, Values]]) -> list[Comparison]:
    """Comparisons whose p values are adjusted together."""
    differences = []
    for one, other in pairs:
        seeds = sorted(set(one.by_seed) & set(other.by_seed))
        both = [tuple(arm.by_seed[seed] for seed in seeds) for arm in (one, other)]
        differences.append(difference(*both) if len(seeds) > 1 else None)
    adjusted = iter(holm([found.p for found in differences if found is not None]))
    return [
        Comparison(one, other, found, None if found is None else next(adjusted))
        for (one, other), found in zip(pairs, differences, strict=True)
    ]


def main_family(regime: str) -> dict[str, list[Comparison]]:
    """ScaleKD against every method at equal steps, equal time and equal time from a cache: one
    family a regime."""
    scalekd = values("main_comparison", regime, "scalekd", "ScaleKD")
    suffixes = ("", ", equal time", ", equal time, cache")
    pairs = [
        (scalekd, values("main_comparison", regime, method + suffix, METHOD_NAMES[method]))
        for suffix in suffixes
        for method in RIVALS
    ]
    found, count = family(pairs), len(RIVALS)
    return {suffix: found[n * count : (n + 1) * count] for n, suffix in enumerate(suffixes)}


def control_family(regime: str) -> list[Comparison]:
    """The negative controls against logit KD, which they must not exceed."""
    logits = values("main_comparison", regime, "logit_kd", "logit KD")
    names = {"random_tail": "ScaleKD, random tail", "other_image": "ScaleKD, another image"}
    return family(
        [(values("main_comparison", regime, arm, name), logits) for arm, name in names.items()]
    )


def component_family() -> dict[str, list[Comparison]]:
    """Each component against the arm without it; queries; balances of the views."""

    def arm(name: str) -> Values:
        return values("components", "few", name)

    complete = values("main_comparison", "few", "scalekd", "all")
    added = [
        (arm("CAP"), arm("logits")),
        (arm("CAP, DFM"), arm("CAP")),
        (arm("CAP, TPP"), arm("CAP")),
        (complete, arm("CAP, DFM")),
        (complete, arm("CAP, TPP")),
        (complete, arm("all, without logits")),
    ]
    queries = [(complete, arm("all, own queries"))]
    balance = [(complete, arm("beta 0.0")), (complete, arm("beta 1.0"))]
    found = family(added + queries + balance)
    return {"added": found[:6], "queries": found[6:7], "balance": found[7:]}


def student_family() -> list[Comparison]:
    """ScaleKD against the others under each student; few labels."""
    pairs = []
    for kind in ("CNN", "MLP", "ViT"):
        experiment, prefix = (
            ("main_comparison", "") if kind == "CNN" else ("every_student", f"{kind} ")
        )
        scalekd, *others = (
            values(experiment, "few", prefix + method, f"{kind}, {METHOD_NAMES[method]}")
            for method in ("scalekd", "supervised", "logit_kd")
        )
        pairs += [(scalekd, other) for other in others]
    return family(pairs)


def width_family() -> list[Comparison]:
    """ScaleKD against the others by the student's width; few labels."""
    pairs = []
    for width in ("half", "full", "double"):
        experiment, prefix = ("main_comparison", "") if width == "full" else ("width", f"{width} ")
        scalekd, *others = (
            values(experiment, "few", prefix + method, f"{width} width, {METHOD_NAMES[method]}")
            for method in ("scalekd", "supervised", "logit_kd", "fd")
        )
        pairs += [(scalekd, other) for other in others]
    return family(pairs)


def teacher_family() -> list[Comparison]:
    """ScaleKD under larger teachers and strong augmentation, against the small one and plain."""
    plain = values("main_comparison", "few", "scalekd", "small teacher, plain augmentation")
    arms = [
        ("small", "strong"),
        *((size, strategy) for size in ("medium", "large") for strategy in ("plain", "strong")),
    ]
    return family(
        [
            (
                values(
                    "teacher_size",
                    "few",
                    f"{size} {strategy} scalekd",
                    f"{size} teacher, {strategy} augmentation",
                ),
                plain,
            )
            for size, strategy in arms
        ]
    )


def pretraining_family() -> list[Comparison]:
    """ScaleKD's teacher that saw all images, against teachers that saw fewer, and pre-training."""
    scalekd = values("main_comparison", "few", "scalekd", "teacher of all images")
    return family(
        [
            (scalekd, values("pretraining", "few", arm))
            for arm in ("pre-trained", "teacher of half", "teacher of a tenth")
        ]
    )


FROZEN = {
    "hidden_linear": ("seven_classes", "three classes that were never seen"),
    "digits_linear": ("main_comparison", "handwritten digits"),
    "foreground": ("main_comparison", "foreground for each pixel (overlap)"),
    "place": ("main_comparison", "place of a token"),
}
"""Measures of frozen features: the experiment that has them, and what they are."""


def frozen_family() -> list[Comparison]:
    """ScaleKD and FD against logit KD in what accuracy does not show."""
    pairs = []
    for name, (experiment, what) in FROZEN.items():
        logits, fd, scalekd = (
            values(experiment, "few", method, f"{METHOD_NAMES[method]}, {what}", measure(name))
            for method in ("logit_kd", "fd", "scalekd")
        )
        pairs += [(scalekd, logits), (fd, logits)]
    return family(pairs)


def no_classifier_family() -> list[Comparison]:
    """ScaleKD against FD and relations without labels and logits, by a linear probe."""
    scalekd, *others = (
        values("no_classifier", "all", method, METHOD_NAMES[method], measure("linear"))
        for method in ("scalekd", "fd", "relations")
    )
    return family([(scalekd, other) for other in others])


def stage_family() -> list[Comparison]:
    """ScaleKD against FD at each stage, for both students."""
    return family(
        [
            tuple(  # type: ignore[misc]
                values(
                    "stages",
                    "few",
                    f"{student} {method} {stage}",
                    f"{METHOD_NAMES[method]}, {student}, {stage}",
                )
                for method in ("scalekd", "fd")
            )
            for student in ("CNN", "MLP")
            for stage in ("penultimate", "final", "both")
        ]
    )
