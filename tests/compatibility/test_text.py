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


def rows(said: PairReport) -> dict[str, str]:
    """What follows each label; what follows none belongs to the one before."""
    found: dict[str, str] = {}
    label = ""
    for line in format_report(said).splitlines():
        label = line[:11].strip() or label
        found[label] = f"{found.get(label, '')}\n{line[11:]}".lstrip("\n")
    return found


def test_no_line_is_long_and_none_ends_in_blanks(pair: PairReport, headless: PairReport) -> None:
    for said in (pair, headless):
        lines = format_report(said).splitlines()
        assert max(map(len, lines)) <= WIDTH
        assert [line for line in lines if line != line.rstrip() or not line] == []


def test_the_labels_come_in_the_order_of_the_flow(pair: PairReport, headless: PairReport) -> None:
    labels = ["teacher", "tail", "student", "projectors", "GFLOP", "loss"]
    assert list(rows(replace(pair, notes=[]))) == [*labels, "train it"]
    assert list(rows(headless)) == [*labels, "off", "note", "train it"]


def test_both_sides_are_said_with_their_features(pair: PairReport) -> None:
    said = rows(pair)
    for side, text in ((pair.teacher, said["teacher"]), (pair.student, said["student"])):
        assert f"{side.name}: {side.parameters / 1e6:.2f} M parameters, 1000 classes" in text
        height, width = side.input.size
        assert f"images 3x{height}x{width}, mean 0.5, 0.5, 0.5, std 0.5, 0.5, 0.5" in text
        assert side.plan is not None
        assert side.shapes.penultimate is not None
        for name, index, shape in (
            ("penultimate feature", side.plan.penultimate, side.shapes.penultimate),
            ("final", side.plan.final, side.shapes.final),
        ):
            assert f"{name} {index}: {'x'.join(map(str, shape))}" in text
    assert "past its final norm (norm)" in said["teacher"]
    assert "without a final norm" in said["student"]


def test_a_norm_after_pooling_and_features_without_a_plan_are_said(pair: PairReport) -> None:
    plan = ResolvedSelection(4, 5, False, "pooled", "fc_norm")
    pooled = rows(replace(pair, teacher=replace(pair.teacher, plan=plan)))
    assert "through the norm after pooling (fc_norm)" in pooled["teacher"]
    own = rows(replace(pair, student=replace(pair.student, plan=None)))
    shapes = pair.student.shapes
    assert shapes.penultimate is not None
    penultimate, final = ("x".join(map(str, s)) for s in (shapes.penultimate, shapes.final))
    assert f"penultimate feature {penultimate}, final {final}, " in own["student"]


def test_the_tail_is_said_with_how_it_was_verified(pair: PairReport) -> None:
    said = rows(pair)["tail"]
    assert "blocks.5, norm; prefix tokens beside: 1" in said
    assert f"verified: differs by {pair.difference:.0e} on a copy of " in said
    assert "NOT" not in said
    assert "NOT verified: differs by 3e-01" in format_report(
        replace(pair, verified=False, difference=0.3)
    )


def test_a_long_tail_is_said_by_its_ends(pair: PairReport) -> None:
    tail = [*(f"stages.3.blocks.{i}" for i in range(40)), "norm"]
    said = rows(replace(pair, tail=tail))["tail"]
    first = "stages.3.blocks.0, stages.3.blocks.1, stages.3.blocks.2, ... norm (41 modules)"
    assert said.startswith(first)
    five = rows(replace(pair, tail=tail[:5]))["tail"]
    assert five.startswith(", ".join(tail[:5]) + ";")


def test_projectors_are_said_from_grid_to_grid(pair: PairReport) -> None:
    said = rows(replace(pair, heads=(2, 4), projector_parameters=1_234_000))["projectors"]
    assert pair.student.shapes.penultimate is not None
    mine = [
        "x".join(map(str, s)) for s in (pair.student.shapes.penultimate, pair.student.shapes.final)
    ]
    assert f"{mine[0]} -> 64x10x10 -> tail; {mine[1]} -> 64x10x10" in said
    assert "1.23 M parameters, thrown away after training; heads 2 and 4" in said


def test_gflop_are_said_by_part(pair: PairReport) -> None:
    sides: dict[str, Any] = {
        "teacher": replace(pair.teacher, gflop=17.46),
        "student": replace(pair.student, gflop=24.3),
    }
    said = rows(replace(pair, **sides, rest_gflop=61.88, step_gflop=103.64))["GFLOP"]
    assert said == (
        "an image and step 103.6: teacher 17.5, student 24.3, projectors, tail and losses 61.9"
    )


def test_terms_are_said_with_their_weights_and_those_that_are_off(
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


def test_a_pair_without_a_classifier_is_said_to_be_one(headless: PairReport) -> None:
    said = rows(headless)
    assert "no classifier" in said["teacher"]
    assert "1000 classes" in said["student"]
    note = "logit distillation is skipped: the teacher has no classes, the student 1000"
    assert note in said["note"].splitlines()


def test_every_note_and_the_command_are_said(headless: PairReport) -> None:
    said = rows(replace(headless, notes=[Note("info", "one thing"), Note("warning", "another")]))
    assert said["note"] == "one thing\nanother"
    assert said["train it"] == headless.command
    assert format_report(headless).endswith(headless.command)
