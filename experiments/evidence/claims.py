"""The claims that are tested: which arms each compares, and what came out."""

from collections.abc import Sequence
from dataclasses import dataclass

from comparison import LEVEL, Difference, holm, paired_difference
from cost import METHODS
from records import Values, measure, values

NAMES = {
    "supervised": "supervised",
    "logit_kd": "logit KD",
    "fd": "FD",
    "dist": "DIST",
    "ofa": "OFA-KD",
    "rsd": "RSD",
    "relations": "relations",
    "scalekd": "ScaleKD",
}
REGIMES = {"few": "few labels", "all": "all images, short"}
RIVALS = METHODS[:-1]
SEEDS_TO_TEST = 6
"""With fewer pairs the permutation test cannot give a p value below 0.05 / 1."""


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


@dataclass(frozen=True)
class Claim:
    """What is claimed, and the family of comparisons that tests it.

    Attributes:
        text: the claim.
        source: of the paper, or whose it is.
        paper: the paper's numbers, or that they are not known to us.
        comparisons: adjusted as a family; none where nothing was run.
    """

    text: str
    source: str
    paper: str
    comparisons: Sequence[Comparison] = ()

    @property
    def verdict(self) -> str:
        """Holds here, does not hold here, holds in part, cannot be told, or not run."""
        run = [one for one in self.comparisons if one.difference is not None]
        higher, lower = (sum(one.sign == sign for one in run) for sign in (1, -1))
        if not run:
            return "not run"
        if lower:
            part = f": higher in {higher} of {len(run)} comparisons, lower in {lower}"
            return "does not hold here" + part
        if higher == len(run):
            return "holds here"
        if higher:
            return f"holds here in {higher} of {len(run)} comparisons, the others cannot be told"
        return "cannot be told here"


def family(pairs: Sequence[tuple[Values, Values]]) -> list[Comparison]:
    """Comparisons whose p values are adjusted together."""
    differences = []
    for one, other in pairs:
        seeds = sorted(set(one.by_seed) & set(other.by_seed))
        both = [[arm.by_seed[seed] for seed in seeds] for arm in (one, other)]
        differences.append(paired_difference(*both) if len(seeds) > 1 else None)
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
        (scalekd, values("main_comparison", regime, method + suffix, NAMES[method]))
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
            values(experiment, "few", method, f"{NAMES[method]}, {what}", measure(name))
            for method in ("logit_kd", "fd", "scalekd")
        )
        pairs += [(scalekd, logits), (fd, logits)]
    return family(pairs)


def no_classifier_family() -> list[Comparison]:
    """ScaleKD against FD and relations without labels and logits, by a linear probe."""
    scalekd, *others = (
        values("no_classifier", "all", method, NAMES[method], measure("linear"))
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
                    f"{NAMES[method]}, {student}, {stage}",
                )
                for method in ("scalekd", "fd")
            )
            for student in ("CNN", "MLP")
            for stage in ("penultimate", "final", "both")
        ]
    )


BETAS_SHOWN = 0.0, 0.4, 0.57, 0.8, 1.0
"""Of the curve over the balance of the views; 0.57 is what the paper's weights have."""

UNKNOWN = "not known to us"


def claims() -> list[Claim]:
    """All claims, those of the paper and the sceptic's."""
    by_regime = {regime: main_family(regime) for regime in REGIMES}
    found = []
    for regime, families in by_regime.items():
        where = REGIMES[regime]
        alone, *rivals = families[""]
        found += [
            Claim(
                f"A student under ScaleKD is more accurate than one trained alone ({where})",
                "Table 3",
                "ResNet-50 78.64 alone, 82.03 under Swin-L: 3.39 points; others 2.02 to 6.27",
                [alone],
            ),
            Claim(
                f"At equal steps ScaleKD is above the other methods ({where})",
                "Table 7",
                "ResNet-50: 82.03; the best other method 81.33, derived from a stated margin",
                rivals,
            ),
            Claim(
                f"In equal time with a live teacher ScaleKD is above the others ({where})",
                "the sceptic's question",
                "not in the paper",
                families[", equal time"],
            ),
            Claim(
                f"In equal time from a cache ScaleKD is above the others ({where})",
                "the sceptic's question",
                "not in the paper",
                families[", equal time, cache"],
            ),
        ]
    parts = component_family()
    frozen = frozen_family()
    found += [
        Claim(
            "CAP, DFM, TPP and the logits each add accuracy", "Table 9 a", UNKNOWN, parts["added"]
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
        Claim("A deeper tail is better", "Table 9 d", UNKNOWN),
        Claim(
            "Frozen features of ScaleKD's student tell more than those of logit KD's",
            "after Tables 5 and 6",
            "COCO box AP of ResNet-50: 40.2 to 42.3; ADE20K mIoU: 42.37 to 44.50, against students "
            "trained alone",
            frozen[::2],
        ),
        Claim(
            "Frozen features of FD's student tell more than those of logit KD's",
            "the sceptic's question",
            "not in the paper",
            frozen[1::2],
        ),
        Claim(
            "Without labels and classifier ScaleKD is above FD and relations",
            "this project's question",
            "not in the paper",
            no_classifier_family(),
        ),
        Claim(
            "ScaleKD is above FD at the penultimate stage, the final one, and both",
            "Table 1",
            UNKNOWN,
            stage_family(),
        ),
        Claim("A larger teacher makes a better student", "Table 2", UNKNOWN),
        Claim(
            "Students of every kind gain", "Table 3", "eleven pairs, gains from 2.02 to 6.27 points"
        ),
        Claim(
            "Distillation replaces pre-training",
            "Table 4",
            "ViT-B/16: 85.53 under Swin-L, 83.97 pre-trained on ImageNet-22K",
        ),
        Claim("The teacher's pre-training data decides", "Table 16", UNKNOWN),
        Claim("What the components cost in memory and time", "Table 15", UNKNOWN),
    ]
    return found
