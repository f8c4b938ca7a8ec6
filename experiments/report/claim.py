"""A claim, and its verdict by the comparisons that test it."""

from collections.abc import Sequence
from dataclasses import dataclass

from families import PLANNED_SEEDS, Comparison


@dataclass(frozen=True)
class Claim:
    """What is claimed, and the family of comparisons that tests it.

    Attributes:
        experiment: that tests it.
        text: the claim.
        source: of the paper, or whose it is.
        paper: the paper's numbers, or that they are not known to us.
        comparisons: adjusted as a family; none where nothing was run.
        for_scalekd: whether a difference below zero speaks against ScaleKD.
        stated: the verdict where it does not follow from the comparisons.
        number: what it is measured by where that is no difference of arms.
    """

    experiment: int
    text: str
    source: str
    paper: str
    comparisons: Sequence[Comparison] = ()
    for_scalekd: bool = True
    stated: str = ""
    number: str = ""

    @property
    def verdict(self) -> str:
        """Holds here, does not hold here, cannot be told here, or not run; with more words."""
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
    return f" (by one sign in all {PLANNED_SEEDS} seeds)" * any(one.decided_by_sign for one in run)
