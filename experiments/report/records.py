"""The finished runs, as the report reads them."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from recorded import RESULTS, read_json


@dataclass(frozen=True)
class Values:
    """A number of an arm for each seed that is finished.

    Attributes:
        name: of the arm, as the report has it.
        by_seed: the values.
    """

    name: str
    by_seed: dict[int, float]

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return sum(self.by_seed.values()) / len(self.by_seed)

    def only(self, seeds: Sequence[int]) -> "Values":
        """Those of some seeds."""
        return replace(self, by_seed={s: v for s, v in self.by_seed.items() if s in seeds})


@cache
def read_records(experiment: str) -> list[dict[str, Any]]:
    """All records of an experiment."""
    files = sorted((RESULTS / experiment).glob("*.json"))
    return [json.loads(file.read_text()) for file in files]


def top1(record: dict[str, Any]) -> float:
    """Accuracy in %."""
    return 100 * float(record["top1"])


def measure(name: str) -> Callable[[dict[str, Any]], float]:
    """Reads a measure of a record, a field of `probes.Measures`, in %."""
    return lambda record: 100 * float(record["measures"][name])


def values(
    experiment: str,
    regime: str,
    arm: str,
    name: str = "",
    read: Callable[[dict[str, Any]], float] = top1,
) -> Values:
    """A number of an arm by seed; measures only where they were taken."""
    chosen = select(experiment, regime, arm)
    if read is not top1:
        chosen = [record for record in chosen if record["measures"] is not None]
    return Values(name or arm, {record["seed"]: read(record) for record in chosen})


def read_teacher() -> dict[str, Any] | None:
    """What is known of the small teacher; None where it was not measured."""
    return read_json(RESULTS / "teacher" / "small.json")


def teacher_top1() -> str:
    """Accuracy of the small teacher."""
    found = read_teacher()
    return "-" if found is None else f"{100 * found['top1']:.2f} %"


def select(experiment: str, regime: str, arm: str) -> list[dict[str, Any]]:
    """The records of an arm."""
    return [
        record
        for record in read_records(experiment)
        if (record["regime"], record["arm"]) == (regime, arm)
    ]
