"""Jobs that train by a baseline, or compare ScaleKD with several."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.pictures import flat_folder, image_folder
from helpers.real_runs import (
    assert_bit_identical,
    finish,
    kill,
    metrics_lines,
    newest_state,
    random_settings,
    start,
    wait_until_training,
)
from helpers.refusals import refused
from helpers.tiny import tiny, tiny_cacheable, tiny_digits

from scalekd import BaselineDistiller
from scalekd.baselines import FeatureDistillation, LogitKd, Relations
from scalekd.estimating.estimate import estimate
from scalekd.jobs.build_cache import build_cache
from scalekd.jobs.distill import distill
from scalekd.method import LossWeights
from scalekd.recipe import Method
from scalekd.runs.folder import RunFolder
from scalekd.runs.result import METHOD_NAMES, Run
from scalekd.runs.status import read_run_folder
from scalekd.training.prepare import prepare

OTHERS: list[Method] = [method for method in METHOD_NAMES if method != "dist"]
TERMS = {
    "supervised": {"task"},
    "logit_kd": {"task", "logits"},
    "fd": {"task", "penultimate", "final", "logits"},
    "dist": {"task", "inter", "intra"},
    "ofa": {"task", "logits", "stage_1", "stage_2", "stage_3"},
    "rsd": {"task", "diagonal", "off_diagonal"},
    "relations": {"task", "images", "tokens"},
    "vkd": {"task", "features"},
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("baselines") / "images", each=6)


@pytest.fixture(scope="module")
def all_methods(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job whose own method is DIST, compared with all others."""
    out = tmp_path_factory.mktemp("baselines") / "all"
    return distill(tiny_digits(method="dist", compare=OTHERS, log_every=1), out, parallel=1)


def test_every_method_trains_by_its_own_terms(all_methods: Path) -> None:
    terms = {line["method"]: set(line["terms"]) for line in metrics_lines(all_methods)}
    assert terms.keys() == set(METHOD_NAMES)
    assert {method: terms[method] for method in TERMS} == TERMS
    assert all(
        line["loss"] == pytest.approx(sum(line["terms"].values()), rel=1e-5)
        for line in metrics_lines(all_methods)
    )


def test_the_recipes_own_method_gives_the_student_and_all_are_reported(
    all_methods: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = json.loads((all_methods / "summary.json").read_text())
    results = {
        line["run"]["method"]: line["top1"]
        for line in map(json.loads, (all_methods / "results.jsonl").read_text().splitlines())
    }
    assert summary["student_top1"] == results["dist"]
    assert {m: summary[f"{m}_top1"] for m in OTHERS} == {m: results[m] for m in OTHERS}
    lineage = json.loads((all_methods / "student" / "config.json").read_text())
    assert "dist" in json.dumps(lineage)
    status = read_run_folder(RunFolder(all_methods))
    assert status.state == "finished"
    assert status.methods[0] == "dist"
    assert status.gain["scalekd"] == [pytest.approx(100 * (results["dist"] - results["scalekd"]))]


def test_all_methods_of_a_seed_start_from_the_same_student() -> None:
    prepared = prepare(tiny_digits(compare=["fd"]))
    starts = [
        prepared.build_learner(Run(method, 1)).student.state_dict() for method in METHOD_NAMES
    ]
    for start_of_method in starts[1:]:
        assert all(torch.equal(starts[0][name], tensor) for name, tensor in start_of_method.items())


def test_logit_kd_and_fd_follow_the_recipes_weight_and_temperature_unless_they_have_their_own() -> (
    None
):
    recipe = tiny_digits(temperature=4.0, weights=LossWeights(logits=0.25))
    for method, changes, weight, temperature in (
        ("logit_kd", {}, 0.25, 4.0),
        ("fd", {}, 0.25, 4.0),
        ("fd", {"fd": FeatureDistillation(logits=0.75, temperature=2.0)}, 0.75, 2.0),
    ):
        learner = prepare(replace(recipe, **changes)).build_learner(Run(method, 1))  # type: ignore[arg-type]
        assert isinstance(learner, BaselineDistiller)
        assert learner.criterion.task_weight == 1 - weight
        assert learner.criterion.settings.temperature == temperature


def test_a_killed_run_whose_loss_has_a_state_resumes_bit_identically(
    images: Path, tmp_path: Path
) -> None:
    run = Run("relations", 7)
    settings = {**random_settings(images.parent), "method": "relations"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))
    finish(start(tmp_path, "undisturbed"))
    process = start(tmp_path, "killed")
    assert wait_until_training(process, tmp_path / "killed")
    kill(process)
    finish(start(tmp_path, "killed", "--resume"))
    assert_bit_identical(tmp_path / "undisturbed", tmp_path / "killed", run)
    state = newest_state(tmp_path / "killed", run)
    assert state is not None
    assert any("queue" in name for name in state["learner"])


@pytest.mark.parametrize("method", ["logit_kd", "dist", "ofa", "rsd", "relations", "vkd"])
def test_a_baseline_trained_from_a_cache_has_the_losses_of_the_live_teacher(
    method: Method, images: Path, cache: Path, tmp_path: Path
) -> None:
    recipe = tiny_cacheable(images, method=method)
    live = distill(recipe, tmp_path / "live", parallel=1)
    cached = distill(replace(recipe, cache=str(cache)), tmp_path / "cached", parallel=1)
    for one, other in zip(metrics_lines(live), metrics_lines(cached), strict=True):
        assert one["terms"] == pytest.approx(other["terms"], rel=1e-3)


@pytest.fixture(scope="module")
def cache(images: Path) -> Path:
    recipe = tiny_cacheable(images)
    return build_cache(recipe, images.parent / "cache", augmented_views=3, dtype="float32")


def test_what_reads_the_teachers_penultimate_feature_is_refused_with_a_cache(
    images: Path, cache: Path
) -> None:
    with refused("fd.penultimate is 0.08", "cache", "set it to 0"):
        tiny_cacheable(images, compare=["fd"], cache=str(cache))
    tiny_cacheable(images, compare=["fd"], fd=FeatureDistillation(0.0), cache=str(cache))


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"method": "supervised"}, ["method is supervised", "scalekd train"]),
        ({"method": "fd", "compare": ["fd"]}, ["method is fd", "train twice"]),
        (
            {"compare": ["logit_kd"], "weights": LossWeights(logits=0)},
            ["weights.logits is 0", "logit_kd"],
        ),
    ],
)
def test_methods_that_make_no_job_are_refused(
    changes: dict[str, Any], parts: list[str], images: Path
) -> None:
    with refused(*parts):
        tiny(images, **changes)


def test_a_method_that_the_pair_does_not_allow_is_refused_before_anything_is_trained(
    images: Path, tmp_path: Path
) -> None:
    for changes, part in (({"method": "ofa"}, "OFA"), ({"compare": ["dist"]}, "compare has dist")):
        with refused(part, "1000", "3"):
            distill(tiny(images, **changes), tmp_path / "out", parallel=1)
    assert not (tmp_path / "out").exists()


def test_without_labels_ofa_is_refused_and_relations_are_learnt(tmp_path: Path) -> None:
    flat = flat_folder(tmp_path / "flat")
    with refused("method is ofa", "labels"):
        distill(tiny(flat, method="ofa"), tmp_path / "out", parallel=1)
    recipe = tiny(flat, method="relations", relations=Relations(queue=16))
    out = distill(recipe, tmp_path / "out", parallel=1)
    assert set(metrics_lines(out)[-1]["terms"]) == {"images", "tokens"}


def test_an_estimate_is_of_scalekd_alone(images: Path) -> None:
    with refused("method is dist", "drop --method"):
        estimate(tiny(images, method="dist"))


def test_a_distiller_of_ones_own_loop_takes_any_baseline() -> None:
    distiller = BaselineDistiller(
        "test_vit", "test_resnet", LogitKd(logits=1.0), teacher_weights="random", size=(64, 64)
    )
    step = distiller(torch.randn(4, 3, 64, 64))
    assert list(step.terms) == ["logits"]
    assert distiller.no_weight_decay() == set()
