"""Parts of the report as plain data, and how values are put in words."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from families import SEEDS_TO_TEST, Comparison
from pictures import Picture
from records import Values

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

    def with_first(self, name: str, cells: Sequence[str]) -> "Table":
        """The same table with another first column."""
        rows = [[cell, *row] for cell, row in zip(cells, self.rows, strict=True)]
        return Table([name, *self.header], rows)


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


def size_of(comparisons: Sequence[Comparison]) -> str:
    """The differences of a claim in a few words."""
    run = [one for one in comparisons if one.finished]
    if not run:
        return "-"
    if len(run) == 1:
        return points(run[0])
    means = [one.difference.mean for one in run if one.difference is not None]
    return f"{min(means):+.2f} to {max(means):+.2f}"


def points(comparison: Comparison) -> str:
    """A difference with its interval and the seeds that it is of; of few seeds also the smallest
    and the largest difference."""
    found = comparison.difference
    if found is None:
        return "-"
    each = f" ({found.smallest:+.2f} to {found.largest:+.2f})" * (found.seeds < SEEDS_TO_TEST)
    return f"{found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}], {found.seeds} seeds{each}"


def accuracy(arm: Values) -> str:
    """Mean and standard deviation over the seeds."""
    if not arm.by_seed:
        return NOT_RUN
    known = list(arm.by_seed.values())
    spread = f"{statistics.stdev(known):.2f}" if len(known) > 1 else "-"
    return f"{arm.mean:.2f} ({spread})"


def sides(comparison: Comparison) -> list[str]:
    """Cells of what is compared: each arm's name and its accuracy over the common seeds, or over
    its own where there are none."""
    arms, seeds = (comparison.one, comparison.other), sorted(comparison.common_seeds)
    values = [accuracy(arm.only(seeds) if seeds else arm) for arm in arms]
    return [arms[0].name, values[0], arms[1].name, values[1]]


def compared(comparison: Comparison) -> list[str]:
    """Cells of a comparison: difference, adjusted p, verdict."""
    p = "-" if comparison.adjusted is None else f"{comparison.adjusted:.3f}"
    return [points(comparison), p, comparison.verdict]


def comparison_table(
    comparisons: Iterable[Comparison], first: str = "method or variant", value: str = "top-1"
) -> Table:
    """A row for each comparison; `first` heads the column of what is compared, `value` those of
    their values."""
    rows = [[*sides(one), *compared(one)] for one in comparisons]
    return Table([first, value, "compared with", value, *COMPARED], rows)


COMPARED = ["difference [95 % interval], paired seeds", "p, adjusted", "verdict"]
