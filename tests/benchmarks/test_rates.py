"""The benchmark of modelled speeds: any table is judged, and the package's own is what it says."""

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rates import fit, halves, modelled, pass_of, trace_pass

from scalekd.estimating.measured_rates import COLUMNS, Rate, read_rates
from scalekd.estimating.roofline import SHARES

RATES = Path(__file__).parents[2] / "benchmarks" / "rates.py"
QUICK = "mobilenetv1_100", "resnet18", "vit_tiny_patch16_224"


def judged(*arguments: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, str(RATES), *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True)


def write_table(path: Path, rates: list[Rate]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows([getattr(rate, name) for name in COLUMNS] for rate in rates)
    return path


def test_a_table_of_the_same_form_is_judged(tmp_path: Path) -> None:
    rates = [rate for rate in read_rates() if rate.model in QUICK and rate.gpu == "RTX 4090"]
    result = judged(write_table(tmp_path / "mine.csv", rates), "--json")
    assert result.returncode == 0, result.stderr
    summary = json.loads(result.stdout)
    rows = summary["rows"]
    assert [row["model"] for row in rows] == [rate.model for rate in rates]
    for row, rate in zip(rows, rates, strict=True):  # the package's table has the same figures
        assert row["modelled"] == pytest.approx(rate.modelled, rel=1e-3)
    assert summary["worst_factor"] == max(row["factor"] for row in rows)
    near = [row["factor"] <= 1.3 for row in rows]
    assert summary["within_30_percent"] == sum(near) / len(near)


@pytest.mark.parametrize(
    ("change", "what"),
    [({"gpu": "RTX 1"}, "gpu is 'RTX 1'"), ({"precision": "int8"}, "precision is 'int8'")],
)
def test_a_table_that_cannot_be_modelled_is_refused(
    tmp_path: Path, change: dict[str, str], what: str
) -> None:
    rates = [replace(read_rates()[0], **change)]  # type: ignore[arg-type]
    result = judged(write_table(tmp_path / "mine.csv", rates))
    assert result.returncode == 2
    assert what in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_each_half_has_every_card_and_kind_of_work() -> None:
    rates = read_rates()
    to_fit, to_judge = halves(rates)
    assert sorted(to_fit + to_judge) == list(range(len(rates)))
    assert [rate.fitted for rate in rates] == [index in to_fit for index in range(len(rates))]
    for half in (to_fit, to_judge):
        assert {rates[i].model for i in half} >= {"regnety_004", "swin_large_patch4_window7_224"}


def test_the_fit_finds_constants_that_made_the_speeds() -> None:
    chosen = [rate for rate in read_rates() if rate.model in QUICK and rate.work == "forward"]
    traced = [trace_pass(pass_of(rate)) for rate in chosen]
    truth = replace(SHARES, half_rate=0.7, full_rate=0.6, eager_traffic=0.6)
    made = [
        replace(rate, images_per_second=modelled(rate, one, truth))
        for rate, one in zip(chosen, traced, strict=True)
    ]
    found = fit(made, traced)
    for name in ("half_rate", "full_rate", "eager_traffic"):
        assert getattr(found, name) == pytest.approx(getattr(truth, name), rel=0.1)


@pytest.mark.slow
def test_the_packages_table_is_what_the_model_says() -> None:
    result = judged(Path("scalekd/estimating/measured_rates.csv"), "--json")
    rows = json.loads(result.stdout)["rows"]
    for row, rate in zip(rows, read_rates(), strict=True):
        assert row["modelled"] == pytest.approx(rate.modelled, rel=1e-3)
