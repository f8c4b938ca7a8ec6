"""What `scalekd check` prints of a pair."""

from dataclasses import replace
from typing import Any

import pytest

from scalekd import LossWeights
from scalekd.compatibility.check import PairReport, check_pair
from scalekd.compatibility.text import format_report
from scalekd.networks.feature_selection import ResolvedSelection
from scalekd.notes import Note

WIDTH = 200


@pytest.fixture(scope="module")
def pair() -> PairReport:
    return check_pair("test_vit", "test_convnext", image_size=128)


@pytest.fixture(scope="module")
def headless() -> PairReport:
    return check_pair("test_vit", "test_resnet", teacher_args={"num_classes": 0})


def rows(report: PairReport) -> dict[str, str]:
    """The text of each label; lines without a label continue the one before."""
    texts: dict[str, str] = {}
    label = ""
    for line in format_report(report).splitlines():
        label = line[:11].strip() or label
        texts[label] = f"{texts.get(label, '')}\n{line[11:]}".lstrip("\n")
    return texts


def test_lines_of_a_report_are_short_and_end_without_blanks(
    pair: PairReport, headless: PairReport
) -> None:
    for report in (pair, headless):
        lines = format_report(report).splitlines()
        assert max(map(len, lines)) <= WIDTH
        assert [line for line in lines if line != line.rstrip() or not line] == []


def test_labels_of_a_report_follow_the_order_of_a_training_step(
    pair: PairReport, headless: PairReport
) -> None:
    labels = ["teacher", "tail", "student", "projectors", "GFLOP", "loss"]
    assert list(rows(replace(pair, notes=[]))) == [*labels, "train it"]
    assert list(rows(headless)) == [*labels, "off", "note", "train it"]


def test_a_report_lists_the_features_of_teacher_and_student(pair: PairReport) -> None:
    printed = rows(pair)
    for side, text in ((pair.teacher, printed["teacher"]), (pair.student, printed["student"])):
        assert f"{side.name}: {side.parameters / 1e6:.2f} M parameters, 1000 classes" in text
        height, width = side.input.size
        assert f"images 3x{height}x{width}, mean 0.5, 0.5, 0.5, std 0.5, 0.5, 0.5" in text
        assert side.selection is not None
        assert side.shapes.penultimate is not None
        for name, index, shape in (
            ("penultimate feature", side.selection.penultimate, side.shapes.penultimate),
            ("final", side.selection.final, side.shapes.final),
        ):
            assert f"{name} {index}: {'x'.join(map(str, shape))}" in text
    assert "after its final norm (norm)" in printed["teacher"]
    assert "without a final norm" in printed["student"]


def test_a_report_names_a_norm_after_pooling_and_features_without_a_selection(
    pair: PairReport,
) -> None:
    selection = ResolvedSelection(4, 5, False, "pooled", "fc_norm")
    pooled = rows(replace(pair, teacher=replace(pair.teacher, selection=selection)))
    assert "through the norm after pooling (fc_norm)" in pooled["teacher"]
    own = rows(replace(pair, student=replace(pair.student, selection=None)))
    shapes = pair.student.shapes
    assert shapes.penultimate is not None
    penultimate, final = ("x".join(map(str, s)) for s in (shapes.penultimate, shapes.final))
    assert f"penultimate feature {penultimate}, final {final}, " in own["student"]


def test_a_report_lists_the_tail_and_how_it_was_verified(pair: PairReport) -> None:
    printed = rows(pair)["tail"]
    assert "blocks.5, norm; prefix tokens: 1" in printed
    assert f"verified: differs by {pair.difference:.0e} on a copy of " in printed
    assert "NOT" not in printed
    assert "NOT verified: differs by 3e-01" in format_report(
        replace(pair, verified=False, difference=0.3)
    )


def test_a_report_shortens_a_long_tail_to_its_ends(pair: PairReport) -> None:
    tail = [*(f"stages.3.blocks.{i}" for i in range(40)), "norm"]
    printed = rows(replace(pair, tail=tail))["tail"]
    first = "stages.3.blocks.0, stages.3.blocks.1, stages.3.blocks.2, ... norm (41 modules)"
    assert printed.startswith(first)
    five = rows(replace(pair, tail=tail[:5]))["tail"]
    assert five.startswith(", ".join(tail[:5]) + ";")


def test_a_report_lists_projectors_from_grid_to_grid(pair: PairReport) -> None:
    printed = rows(replace(pair, heads=(2, 4), projector_parameters=1_234_000))["projectors"]
    assert pair.student.shapes.penultimate is not None
    maps = [
        "x".join(map(str, s)) for s in (pair.student.shapes.penultimate, pair.student.shapes.final)
    ]
    assert f"{maps[0]} -> 64x10x10 -> tail; {maps[1]} -> 64x10x10" in printed
    assert "1.23 M parameters, discarded after training; heads 2 and 4" in printed


def test_a_report_lists_gflop_by_part(pair: PairReport) -> None:
    sides: dict[str, Any] = {
        "teacher": replace(pair.teacher, gflop=17.46),
        "student": replace(pair.student, gflop=24.3),
    }
    printed = rows(replace(pair, **sides, rest_gflop=61.88, step_gflop=103.64))["GFLOP"]
    assert printed == (
        "a step 103.6 for one image: teacher 17.5, student 24.3, projectors, tail and losses 61.9"
    )


def test_a_report_lists_terms_with_their_weights_and_terms_that_are_off(
    pair: PairReport, headless: PairReport
) -> None:
    on = "tpp_original 0.08, tpp_alternative 0.06, final_original 0.08, final_alternative 0.06"
    assert rows(pair)["loss"] == f"{on}, logits 0.5"
    assert "off" not in rows(pair)
    without = rows(headless)
    assert without["loss"] == on
    assert without["off"] == "logits"
    two = replace(pair, weights=LossWeights(tpp_original=0.0, final_alternative=0.0))
    assert rows(two)["off"] == "tpp_original, final_alternative"


def test_a_report_notes_a_teacher_without_a_classifier(headless: PairReport) -> None:
    printed = rows(headless)
    assert "no classifier" in printed["teacher"]
    assert "1000 classes" in printed["student"]
    note = "logit distillation is skipped: the teacher has no classes, the student 1000"
    assert note in printed["note"].splitlines()


def test_a_report_lists_every_note_by_level_and_the_command(headless: PairReport) -> None:
    notes = [Note("info", "one thing"), Note("info", "another"), Note("warning", "a third")]
    printed = rows(replace(headless, notes=notes))
    assert printed["note"] == "one thing\nanother"
    assert printed["warning"] == "a third"
    assert printed["train it"] == headless.command
    assert format_report(headless).endswith(headless.command)
