"""The README's table of the main comparison and its sentences on equal time, out of the records."""

import re
from collections.abc import Sequence

import second_tuning
from cost import METHODS
from families import LENGTHS, MAIN_SEEDS, REGIMES, Comparison, main_family, retuned_family
from layout import Table, accuracy
from records import Values

from scalekd.runs.result import METHOD_NAMES

BEGIN = "<!-- Made by `make report` from experiments/results/; do not edit. -->"
END = "<!-- The end of what `make report` makes. -->"
MARKS = {1: " ▼", 0: "", -1: " ▲"}
"""Of a method by the sign of ScaleKD minus it."""


def main_table() -> Table:
    """Each method's accuracies, marked where they can be told from ScaleKD's at equal steps."""
    families = {regime: main_family(regime) for regime in REGIMES}
    columns = [(regime, suffix) for regime in REGIMES for suffix in LENGTHS]
    header = ["", *(f"{REGIMES[regime]}: {LENGTHS[suffix]}" for regime, suffix in columns)]
    rows = [
        [
            METHOD_NAMES[method],
            *(cell(families[regime][suffix][number]) for regime, suffix in columns),
        ]
        for number, method in enumerate(METHODS[:-1])
    ]
    ours = {regime: f"**{accuracy(families[regime][''][0].one)}**" for regime in REGIMES}
    again = {}
    for regime in REGIMES:
        (first,) = retuned_family(regime)["first"]
        again[regime] = with_seeds(first.one) + MARKS[-first.sign]
    for name, cells in (("**ScaleKD**", ours), (f"{second_tuning.ARM} (experiment 12)", again)):
        rows.append([name, *("" if suffix else cells[regime] for regime, suffix in columns)])
    return Table(header, rows)


def cell(one: Comparison) -> str:
    """A method's accuracy with its mark."""
    return with_seeds(one.other) + MARKS[one.sign]


def with_seeds(arm: Values) -> str:
    """An accuracy, and its seeds where they are fewer than planned."""
    seeds = len(arm.by_seed)
    return accuracy(arm) + (f", {seeds} seeds" if 0 < seeds < MAIN_SEEDS else "")


def equal_time() -> str:
    """How ScaleKD stands in equal time, in each regime with a live teacher and from a cache."""
    ways = {", equal time": "with a live teacher", ", equal time, cache": "from a cache"}
    parts = [
        f"{where.capitalize()}, {how}: {standing(main_family(regime)[suffix])}."
        for regime, where in REGIMES.items()
        for suffix, how in ways.items()
    ]
    return " ".join(["**Where ScaleKD stands in equal time**, in points of top-1.", *parts])


def standing(comparisons: Sequence[Comparison]) -> str:
    """What ScaleKD is above and below of what it is compared with, the largest first."""
    told: dict[int, list[str]] = {-1: [], 1: [], 0: []}
    known = [(one.difference.mean, one) for one in comparisons if one.difference and one.finished]
    for mean, one in sorted(known, key=lambda pair: -abs(pair[0])):
        told[one.sign].append(f"{one.other.name} ({mean:+.2f})")
    groups = {
        "below": told[-1],
        "above": told[1],
        "cannot be told from": told[0],
        "not finished:": [one.other.name for one in comparisons if one.begun],
        "not run:": [one.other.name for one in comparisons if not one.seeds],
    }
    return "; ".join(f"{word} {listed(names)}" for word, names in groups.items() if names)


def listed(names: Sequence[str]) -> str:
    """Names with commas and "and"."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def with_made(readme: str, made: Sequence[str]) -> str:
    """The README with its generated lines replaced.

    Raises:
        ValueError: it has no place for them.
    """
    pattern = re.compile(f"({re.escape(BEGIN)}\n).*?({re.escape(END)})", re.DOTALL)
    lines = "\n".join(["", *made, "", ""])
    replaced, count = pattern.subn(lambda match: match[1] + lines + match[2], readme)
    if count != 1:
        raise ValueError(f"the README needs one pair of the lines {BEGIN} and {END}")
    return replaced
