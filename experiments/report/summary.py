"""The first two sections of the report: what speaks against ScaleKD, and the verdicts."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

from claim import Claim
from cost import read_cost, seconds_of_step
from families import (
    DETECTION_SEEDS,
    MAIN_SEEDS,
    PLANNED_SEEDS,
    REGIMES,
    SEEDS_TO_TEST,
    Comparison,
    component_family,
    control_family,
    frozen_fd,
    frozen_others,
    no_classifier_others,
    retuned_family,
)
from layout import Section, Table, points, size_of
from records import read_records

Entry = TypeVar("Entry")

NO_CLAIM = "none: not part of any claim"


def against(found: Sequence[Claim]) -> Section:
    """Each comparison in which ScaleKD is below what it is compared with, and each that has all
    its seeds and does not show what a claim needs, once."""
    asked = [
        (claim.experiment, one, claim.text)
        for claim in found
        if claim.for_scalekd
        for one in claim.comparisons
    ]
    lower, open_ones = [], []
    for experiment, one, claim in once([*asked, *beside_the_claims()], lambda entry: entry[1]):
        pair = f"{one.one.name} minus {one.other.name}"
        row = [str(experiment), pair, points(one), one.verdict, claim]
        if one.leaning < 0:
            lower.append(row)
        elif one.finished and not one.sign and claim != NO_CLAIM:
            open_ones.append(row)
    text = [
        "First the comparisons in which ScaleKD is lower. Then those in which all planned seeds do "
        "not show the difference that a claim needs; in some of these ScaleKD has the higher mean. "
        "Differences are in percentage points, with 95 % intervals over the seeds and, of five "
        "seeds or fewer, the smallest and the largest. The experiments' sections say what the "
        "names stand for.",
        costs(),
    ]
    header = ["experiment", "comparison", "difference", "verdict"]
    tables = [
        Table([*header, "claim that it contradicts"], lower),
        Table([*header, "claim that it does not support"], open_ones),
    ]
    return Section("What speaks against ScaleKD", text, [table for table in tables if table.rows])


def costs() -> str:
    """What a step of ScaleKD takes, in steps of logit KD."""
    live, cached = (
        [
            seconds_of_step(by_arm, "scalekd", way) / seconds_of_step(by_arm, "logit_kd", way)
            for by_arm in read_cost().values()
        ]
        for way in ("", ", cache")
    )
    full = "".join(
        f", and {ratio:.1f} at full size with a live teacher ({record['pair']})"
        for record in read_records("component_cost")
        if (ratio := record["seconds"]["ScaleKD"] / record["seconds"]["logit KD"])
    )
    return (
        f"A step of ScaleKD takes as long as {min(live):.1f} to {max(live):.1f} steps of logit KD "
        f"with a live teacher, {min(cached):.1f} to {max(cached):.1f} from a cache{full}."
    )


def beside_the_claims() -> list[tuple[int, Comparison, str]]:
    """Comparisons of ScaleKD that no claim names, with their experiments."""
    return [
        *((3, one, NO_CLAIM) for one in frozen_others()),
        *((4, one, NO_CLAIM) for one in no_classifier_others()),
    ]


def once(entries: Iterable[Entry], comparison: Callable[[Entry], Comparison]) -> list[Entry]:
    """Entries, without those whose `comparison` is of the same runs as an earlier one."""
    first: dict[Hashable, Entry] = {}
    for entry in entries:
        one = comparison(entry)
        runs = (tuple(values.by_seed.items()) for values in (one.one, one.other))
        first.setdefault(tuple(runs), entry)
    return list(first.values())


def counted_signs(found: Sequence[Claim]) -> str:
    """A sentence on how often the rule of one sign is used, and how often by chance alone."""
    families = [
        *(one for claim in found for one in claim.comparisons),
        *(one for _, one, _ in beside_the_claims()),
        *frozen_fd(),
        *component_family()["picked"],
        *(one for regime in REGIMES for one in control_family(regime)["logits"]),
        *(one for regime in REGIMES for one in retuned_family(regime).get("logits", [])),
    ]
    five = [one for one in once(families, lambda one: one) if one.decided_by_sign]
    told = sum(bool(one.sign) for one in five)
    return (
        f"This rule decides {len(five)} comparisons of this report, and {told} of them have one "
        f"sign; if nowhere were a difference, about {len(five) / 16:.0f} would."
    )


def verdicts(found: Sequence[Claim]) -> Section:
    """Each claim with what came out."""
    rows = [
        [
            *(str(claim.experiment), claim.text, claim.source, claim.paper, claim.verdict),
            claim.number or size_of(claim.comparisons),
        ]
        for claim in found
    ]
    text = [
        "A claim *holds here* if the difference can be told apart from zero, in its direction, in "
        "every comparison that tests it. It *does not hold here* if one of them is in the other "
        "direction. It *cannot be told here* if none is, but not all are in its direction. *Not "
        "run* means that comparisons are missing and that those which were run do not decide it. "
        "experiments/PROTOCOL.md was begun before the first final run; what was added or changed "
        "after results is dated there. Where the paper's numbers are not known to us, its table or "
        "figure was not at hand, and the claim is worded after descriptions of it.",
        "Differences are in percentage points and paired by seed: only seeds that both sides have "
        "are used. Tables that compare have the means over these seeds, so that the same method "
        "has one mean over ten seeds and another over the first five. Intervals are 95 % bootstrap "
        "intervals (percentiles) of the mean difference. Of so few seeds they are too narrow: for "
        "normal differences they hold the true mean in about 90 % of cases with ten seeds, 85 % "
        "with five and 75 % with three. So an interval without 0 can stand beside 'cannot be told "
        "apart', which the test decides.",
        f"With {SEEDS_TO_TEST} seeds or more, 'higher' and 'lower' mean an adjusted p below 0.05 "
        f"(permutation test, Holm). With {PLANNED_SEEDS} seeds that test cannot reach 0.05: 'in "
        f"all {PLANNED_SEEDS} seeds' means that the difference has the same sign in each, which "
        "happens by chance in one of 16 comparisons where there is no difference. With fewer seeds "
        f"than planned ({MAIN_SEEDS} for experiments 1 and 12, {PLANNED_SEEDS} for their controls "
        "and for the other experiments) no difference is told. Nor is one in detection, which has "
        f"{DETECTION_SEEDS}; where three or more have one sign, it is said in brackets. With three "
        f"that happens by chance in one of four comparisons. {counted_signs(found)}",
    ]
    header = ["experiment", "claim", "source", "the paper's numbers", "verdict", "difference here"]
    return Section("Verdicts", text, [Table(header, rows)])
