"""Paired differences between two arms: mean, bootstrap interval, permutation test, Holm."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

RESAMPLES = 10_000
LEVEL = 0.05
"""Of the tests, and 1 minus the confidence of the intervals."""


@dataclass(frozen=True)
class Difference:
    """One arm's value minus another's, over paired seeds, in percentage points.

    Attributes:
        mean: over the seeds.
        low, high: ends of the 95 % bootstrap interval of the mean (percentiles).
        p: of the paired permutation test of no difference, two-sided. With n seeds it is at least
            2 / 2^n.
        seeds: how many pairs there are.
        smallest, largest: of the differences.
    """

    mean: float
    low: float
    high: float
    p: float
    seeds: int
    smallest: float
    largest: float

    @property
    def one_sign(self) -> bool:
        """Whether all differences are above 0, or all below."""
        return self.smallest > 0 or self.largest < 0


def paired_difference(one: Sequence[float], other: Sequence[float]) -> Difference:
    """Compare two arms.

    Args:
        one: values of an arm by seed, in %.
        other: those of the other arm, of the same seeds in the same order.

    Raises:
        ValueError: there are fewer than two pairs, or not as many of one as of the other.
    """
    if len(one) != len(other) or len(one) < 2:
        raise ValueError(f"{len(one)} and {len(other)} seeds: two or more pairs are needed")
    gaps = np.asarray(one) - np.asarray(other)
    if np.ptp(gaps) == 0:  # a bootstrap of equal values has no spread
        low = high = float(gaps[0])
    else:
        interval = stats.bootstrap(
            (gaps,),
            np.mean,
            n_resamples=RESAMPLES,
            confidence_level=1 - LEVEL,
            method="percentile",
            rng=np.random.default_rng(0),
        ).confidence_interval
        low, high = float(interval.low), float(interval.high)
    test = stats.permutation_test(
        (gaps,),
        np.mean,
        permutation_type="samples",
        n_resamples=RESAMPLES,
        rng=np.random.default_rng(0),
    )
    ends = float(gaps.min()), float(gaps.max())
    return Difference(float(gaps.mean()), low, high, float(test.pvalue), len(gaps), *ends)


def holm(p_values: Sequence[float]) -> list[float]:
    """P values adjusted for a family of tests by Holm's step-down method, in the given order."""
    order = np.argsort(p_values, kind="stable")
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
