"""The packaged list of timm's models that were tried."""

import json
import runpy
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import timm

from scalekd.compatibility import known_models
from scalekd.compatibility.known_models import (
    KnownModel,
    Role,
    Sweep,
    find_models,
    load_sweep,
    nearest_model,
)

ROOT = Path(__file__).parents[2]
SHAPES: dict[str, Any] = {"penultimate": (8, 4, 4), "final": (16, 2, 2), "norm": "none"}


def entry(role: Role, name: str, family: str, **others: Any) -> KnownModel:
    """A made-up model, which fits unless it is said to be refused."""
    plain: dict[str, Any] = {"status": "verified", "reason": "", **SHAPES, "tail": ["last"]}
    if others.get("status") == "refused":
        nothing = {"penultimate": None, "final": None, "norm": "", "tail": []}
        plain |= {"reason": "it has two streams", **nothing}
    rest = {"parameters": 7, "size": (64, 96), "tried_on": "itself"}
    return KnownModel(role, name, family, **{**plain, **rest, **others})


MADE_UP = [
    entry("teacher", "lark_tiny", "lark", status="refused"),
    entry("teacher", "lark_tine", "other"),
    entry("teacher", "lark_huge", "lark", status="entry"),
    entry("teacher", "lark_tall", "lark"),
    entry("teacher", "wren_s", "wren", status="refused"),
    entry("teacher", "wrens_all", "other"),
    entry("student", "lark_tiny", "lark"),
    entry("student", "lark_small", "lark"),
    entry("student", "wren_s", "wren"),
]


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """A sweep of birds in place of the packaged one."""
    birds = Sweep("2026-01-02", "1.2.3", "4.5.6", MADE_UP)
    (tmp_path / "known_models.json").write_text(json.dumps(asdict(birds)))
    monkeypatch.setattr(known_models, "FILE", tmp_path / "known_models.json")
    return birds


def models_of(role: Role) -> list[KnownModel]:
    return [m for m in load_sweep().models if m.role == role]


def families(models: list[KnownModel]) -> set[str]:
    return {m.family for m in models}


def test_a_sweep_is_read_as_it_was_written(made_up: Sweep) -> None:
    assert load_sweep() == made_up


def test_at_least_25_families_have_a_teacher_that_is_verified_without_an_entry() -> None:
    assert len(families([m for m in models_of("teacher") if m.status == "verified"])) >= 25


def test_at_least_60_students_from_25_families_fit() -> None:
    fit = [m for m in models_of("student") if m.status != "refused"]
    learnt = families([m for m in fit if m.tried_on == "one training step"])
    assert len(learnt) >= 25
    assert len([m for m in fit if m.family in learnt]) >= 60


def test_students_trained_for_a_step_are_the_smallest_of_their_families() -> None:
    for model in models_of("student"):
        if model.tried_on == "one training step":
            listed = [m.parameters for m in models_of("student") if m.family == model.family]
            assert model.parameters == min(listed), model.name


@pytest.mark.parametrize("family", ["volo", "tnt"])
def test_families_with_an_entry_have_the_status_entry(family: str) -> None:
    members = [m for m in models_of("teacher") if m.family == family]
    assert members
    assert {m.status for m in members} == {"entry"}


def test_refused_models_and_no_others_have_a_reason_of_one_line() -> None:
    for model in load_sweep().models:
        assert bool(model.reason) == (model.status == "refused"), model.name
        assert "\n" not in model.reason


def test_models_that_fit_have_features_and_teachers_a_tail() -> None:
    for model in load_sweep().models:
        fits = model.status != "refused"
        for shape in (model.penultimate, model.final):
            assert (shape is not None) == fits, model.name
            assert shape is None or (len(shape) == 3 and min(shape) > 0)
        assert bool(model.tail) == (fits and model.role == "teacher"), model.name
        assert model.norm in (("final", "pooled", "none") if fits else ("",)), model.name
        assert len(model.size) == 2
        assert min(*model.size, model.parameters) > 0
        assert model.tried_on


def test_each_listed_model_is_in_timm_and_was_tried_once_in_both_roles() -> None:
    tried = [(m.role, m.name) for m in load_sweep().models]
    assert len(set(tried)) == len(tried)
    assert {n for r, n in tried if r == "teacher"} == {n for r, n in tried if r == "student"}
    assert [name for _, name in tried if not timm.is_model(name)] == []
    assert {name for _, name in tried} >= {"resnet50", "swin_small_patch4_window7_224"}


def test_the_sweep_has_a_date_and_versions() -> None:
    result = load_sweep()
    assert date.fromisoformat(result.date) > date(2025, 1, 1)
    for version in (result.timm, result.torch):
        assert version.split(".")[0].isdecimal()


def test_the_page_of_families_shows_the_packaged_sweep() -> None:
    format_document = runpy.run_path(str(ROOT / "experiments" / "families.py"))["format_document"]
    assert (ROOT / "docs" / "families.md").read_text() == format_document(load_sweep())


@pytest.mark.usefixtures("made_up")
@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("", [m.name for m in MADE_UP]),
        ("rk_t", ["lark_tiny", "lark_tine", "lark_tall", "lark_tiny"]),
        ("*_s", ["wren_s", "wren_s"]),
        ("wren?_*", ["wrens_all"]),
        ("lark_[hx]*", ["lark_huge"]),
        ("other", ["lark_tine", "wrens_all"]),
        ("finch", []),
        ("LARK_Ti", ["lark_tiny", "lark_tine", "lark_tiny"]),
        ("Wren?_*", ["wrens_all"]),
        ("lark_tin?x", []),
    ],
)
def test_models_are_found_by_part_of_their_name_or_family_or_by_wildcards(
    pattern: str, names: list[str]
) -> None:
    assert [m.name for m in find_models(pattern)] == names


@pytest.mark.usefixtures("made_up")
@pytest.mark.parametrize(
    ("role", "name", "near"),
    [
        # Of the family, although another is spelt more alike, and not the refused one itself.
        ("teacher", "lark_tiny", "lark_tall"),
        ("teacher", "lark_tiny.in1k", "lark_tall"),
        # It fits itself and is not what is asked for.
        ("teacher", "lark_tall", "lark_huge"),
        ("student", "lark_small", "lark_tiny"),
        # None of its family fits in this role.
        ("teacher", "wren_s", "wrens_all"),
        # The sweep has not tried these.
        ("teacher", "wrens", "wrens_all"),
        ("teacher", "lark_tin", "lark_tine"),
        ("student", "lark_smallest", "lark_small"),
    ],
)
def test_the_nearest_model_is_of_the_family_and_otherwise_spelt_alike(
    role: Role, name: str, near: str
) -> None:
    assert nearest_model(role, name) == near


def test_the_family_of_a_model_that_was_not_tried_is_timms() -> None:
    name = "volo_d3_448"
    assert name not in {m.name for m in load_sweep().models}
    near = nearest_model("teacher", name)
    assert next(m.family for m in models_of("teacher") if m.name == near) == "volo"


@pytest.mark.usefixtures("made_up")
@pytest.mark.parametrize("name", ["", "zzz", "lark_tiny", "hf-hub:someone/lark"])
def test_there_is_always_a_nearest_model_that_fits(name: str) -> None:
    fit = {m.name for m in MADE_UP if m.role == "teacher" and m.status != "refused"}
    assert nearest_model("teacher", name) in fit


def test_every_refused_model_has_a_nearest_model_that_fits() -> None:
    fit = {(m.role, m.name): m.family for m in load_sweep().models if m.status != "refused"}
    for model in load_sweep().models:
        if model.status == "refused":
            near = nearest_model(model.role, model.name)
            assert near != model.name
            assert (model.role, near) in fit
            if model.family in families(
                [m for m in models_of(model.role) if m.status != "refused"]
            ):
                assert fit[model.role, near] == model.family


TEN = {
    "byobnet",
    "convnext",
    "crossvit",
    "efficientnet",
    "mambaout",
    "maxxvit",
    "nfnet",
    "resnet",
    "tnt",
    "vision_transformer",
}


@pytest.mark.slow
@pytest.mark.parametrize("role", ["teacher", "student"])
@pytest.mark.parametrize("family", sorted(TEN))
def test_trying_the_smallest_of_a_family_again_gives_the_listed_result(
    family: str, role: Role
) -> None:
    smallest = next(
        m for m in models_of("teacher") if m.family == family and m.tried_on == "itself"
    )
    listed = next(m for m in models_of(role) if m.name == smallest.name)
    experiment = runpy.run_path(str(ROOT / "experiments" / "families.py"))
    try_model: Callable[..., KnownModel] = experiment["try_model"]
    again = try_model(role, smallest.name, family, True)
    assert again.status == listed.status, again.reason
    assert replace(again, reason="") == replace(listed, reason="")
