"""The table of measured speeds: its form, the error that it tells, and what is nearest in it."""

from dataclasses import replace
from pathlib import Path

import pytest
from helpers.refusals import refused

from scalekd.estimating.gpus import GPUS
from scalekd.estimating.measured_rates import (
    COLUMNS,
    COMPILED,
    DISTILLATION,
    EAGER,
    FORWARD,
    Rate,
    expected_error,
    nearest_rates,
    read_rates,
    within,
)
from scalekd.recipe import Data, Recipe

HEADER = ",".join(COLUMNS)
LINE = "resnet18,RTX 4090,amp (fp16),eager,forward,64,224,1000"
RATE = Rate("resnet18", "RTX 4090", "amp (fp16)", EAGER, FORWARD, 64, 224, 1000.0)


def table(folder: Path, *lines: str) -> Path:
    path = folder / "rates.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_table_is_read_with_and_without_modelled_speeds(tmp_path: Path) -> None:
    assert read_rates(table(tmp_path, HEADER, LINE)) == [RATE]
    (rate,) = read_rates(table(tmp_path, f"{HEADER},modelled,fitted", f"{LINE},800,True"))
    assert rate == replace(RATE, modelled=800.0, fitted=True)
    assert rate.factor == pytest.approx(1.25)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (LINE.replace("eager", "fast"), "'fast'"),
        (LINE.replace("forward", "backward"), "'backward'"),
        (LINE.replace(",64,", ",many,"), "many"),
        (LINE.replace(",64,", ",0,"), "more than 0"),
        (LINE.replace("1000", "nan"), "more than 0"),
        ("resnet18,RTX 4090", "columns"),
    ],
)
def test_a_line_that_is_no_measured_speed_is_refused(tmp_path: Path, line: str, what: str) -> None:
    with refused("line 3", what, "images_per_second"):
        read_rates(table(tmp_path, HEADER, LINE, line))


def test_a_file_without_speeds_is_refused(tmp_path: Path) -> None:
    with refused("no rate"):
        read_rates(table(tmp_path, HEADER))
    with refused("cannot be read", "nowhere.csv"):
        read_rates(tmp_path / "nowhere.csv")


def test_the_package_has_a_table_that_meets_its_bounds() -> None:
    rates = read_rates()
    judged = [rate for rate in rates if not rate.fitted]
    assert len(judged) > len(rates) / 2
    assert within(judged) >= 0.8
    assert max(rate.factor for rate in rates) <= 2
    assert {rate.work for rate in rates} >= {FORWARD, DISTILLATION}


def test_the_expected_error_is_of_the_card_where_it_was_measured() -> None:
    modelled = [1000.0] * 18 + [1400.0, 500.0]
    rates = [replace(RATE, modelled=value) for value in modelled]
    rates += [replace(RATE, modelled=100.0, fitted=True)]
    error = expected_error(rates, "GeForce RTX 4090")
    assert (error.count, error.within, error.factor) == (20, 0.9, 1.0)
    assert "20 speeds that were measured on this GeForce RTX 4090" in str(error)
    other = expected_error(rates, "A10")
    assert (other.count, other.gpu, other.factor) == (20, None, 2.0)
    assert "none on this one" in str(other)


def test_the_nearest_speeds_are_of_like_networks_on_the_card_if_there_are_any() -> None:
    recipe = Recipe(
        teacher="swin_large_patch4_window7_224.ms_in22k_ft_in1k",
        student="resnet50",
        data=Data("imagenet"),
        compile=True,
    )
    teacher, student, step = nearest_rates(read_rates(), recipe, GPUS["rtx4090"].label)
    assert (teacher.model, teacher.gpu) == ("swin_large_patch4_window7_224", "RTX 4090")
    assert teacher.mode == COMPILED
    assert student.model == "resnet50"
    assert step.work == DISTILLATION
    assert step.model == "swin_large_patch4_window7_224 -> resnet50"
