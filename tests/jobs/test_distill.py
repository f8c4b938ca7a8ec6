"""A complete job on the digits: its run folder, its comparison, its repeatability."""

import json
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from helpers.evaluating import top1_of
from helpers.refusals import refused
from helpers.tiny import tiny_digits
from PIL import Image
from torch.utils.data import DataLoader

from scalekd import BaselineDistiller
from scalekd.baselines import LogitKd
from scalekd.data.loader import build_loaders
from scalekd.device import best_device
from scalekd.digits import images
from scalekd.jobs.distill import distill
from scalekd.recipe import Data, Optim
from scalekd.runs.checkpoint import load_student
from scalekd.runs.folder import RunFolder
from scalekd.runs.result import Method, Run
from scalekd.training.prepare import prepare
from scalekd.training.validation import top1

METHODS: tuple[Method, ...] = ("supervised", "logit_kd", "scalekd")
RUNS = [Run(method, seed) for seed in (1, 2) for method in METHODS]
SUMMARY_NAMES = {"supervised": "supervised", "logit_kd": "logit_kd", "scalekd": "student"}

TINY = tiny_digits(
    epochs=2,
    optim=Optim(lr=2e-3, warmup_epochs=0.5),
    temperature=4.0,
    seeds=[1, 2],
    compare=["supervised", "logit_kd"],
)
ONE = replace(TINY, seeds=[1], compare=[], epochs=1)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def parallel_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return distill(TINY, tmp_path_factory.mktemp("jobs") / "parallel_runs", parallel=2)


@pytest.fixture(scope="module")
def serial_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return distill(TINY, tmp_path_factory.mktemp("jobs") / "serial", parallel=1)


def summary(out: Path) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return plain


def metrics(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_the_run_folder_has_its_documented_files(serial_runs: Path) -> None:
    assert {p.name for p in serial_runs.iterdir()} == {
        ".lock",
        "settings.yaml",
        "inputs.json",
        "metrics.jsonl",
        "results.jsonl",
        "curves.png",
        "summary.json",
        "checkpoints",
        "student",
    }
    assert {p.name for p in (serial_runs / "checkpoints").iterdir()} == {
        f"{run.method}-seed{run.seed}{which}.ckpt" for run in RUNS for which in ("", ".best")
    }
    assert yaml.safe_load((serial_runs / "settings.yaml").read_text()) == TINY.as_dict()
    with Image.open(serial_runs / "curves.png") as picture:
        picture.load()
        assert picture.format == "PNG"


def test_the_summary_is_complete(serial_runs: Path) -> None:
    summarised = summary(serial_runs)
    assert summarised["seeds"] == [1, 2]
    assert summarised["steps"] == 4
    assert 0.85 < summarised["teacher_top1"] < 0.95
    assert summarised["seconds"] > 0
    assert summarised["images_per_second"] > 0
    for name in SUMMARY_NAMES.values():
        by_seed = summarised[f"{name}_top1_by_seed"]
        assert set(by_seed) == {"1", "2"}
        assert all(0 <= v <= 1 for v in by_seed.values())
        assert summarised[f"{name}_top1"] == pytest.approx(sum(by_seed.values()) / 2)
        assert summarised[f"{name}_seconds_per_step"] > 0
    assert summarised["versions"]["torch"] == version("torch")
    assert set(summarised["versions"]) >= {"scalekd", "torch", "timm", "lightning", "python"}
    assert set(summarised["machine"]) == {"system", "processor", "cores", "gpu"}
    assert summarised["parameters"]["teacher"] == 588482


@pytest.mark.parametrize(
    "job", ["serial_runs", pytest.param("parallel_runs", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", [1, 2])
def test_the_measurement_at_a_runs_end_is_in_the_metrics_and_the_summary(
    job: str, method: Method, seed: int, request: pytest.FixtureRequest
) -> None:
    out: Path = request.getfixturevalue(job)
    lines = [m for m in metrics(out) if (m["method"], m["seed"]) == (method, seed)]
    measured = [(m["step"], m["top1"]) for m in lines if m["top1"] is not None]
    assert [step for step, _ in measured] == [2, 4]
    assert measured[-1][1] == summary(out)[f"{SUMMARY_NAMES[method]}_top1_by_seed"][str(seed)]


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS, ids=str)
def test_two_processes_give_the_weights_of_one(
    parallel_runs: Path, serial_runs: Path, run: Run
) -> None:
    one, other = (
        torch.load(RunFolder(out).checkpoint(run), weights_only=True)["learner"]
        for out in (parallel_runs, serial_runs)
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_two_processes_give_the_accuracies_of_one(parallel_runs: Path, serial_runs: Path) -> None:
    one, other = summary(parallel_runs), summary(serial_runs)
    for name in SUMMARY_NAMES.values():
        assert one[f"{name}_top1_by_seed"] == other[f"{name}_top1_by_seed"]


def test_methods_and_seeds_end_in_different_students(serial_runs: Path) -> None:
    students = [load_student(RunFolder(serial_runs).checkpoint(run))[0] for run in RUNS]
    weights = [next(s.parameters()).detach() for s in students]
    pairs = [(a, b) for i, a in enumerate(weights) for b in weights[i + 1 :]]
    assert not [pair for pair in pairs if torch.equal(*pair)]


@pytest.mark.parametrize("seed", [1, 2])
def test_methods_of_a_seed_start_from_the_same_student_and_images(seed: int) -> None:
    prepared = prepare(TINY)
    starts, firsts = [], []
    for method in METHODS:
        starts.append(prepared.build_learner(Run(method, seed)).student.state_dict())
        batches, _ = build_loaders(
            prepared.source, TINY.data, prepared.input, batch_size=TINY.batch_size, seed=seed
        )
        firsts.append(next(iter(batches)))
    for start, (pictures, labels) in zip(starts[1:], firsts[1:], strict=True):
        assert all(torch.equal(start[n], t) for n, t in starts[0].items())
        assert torch.equal(pictures, firsts[0][0])
        assert torch.equal(labels, firsts[0][1])


def test_seeds_start_from_different_students() -> None:
    prepared = prepare(TINY)
    one, two = (prepared.build_learner(Run("supervised", seed)).student for seed in (1, 2))
    assert not torch.equal(next(one.parameters()), next(two.parameters()))


def test_logit_kd_has_no_projectors_and_the_same_weight_of_logits() -> None:
    learner = prepare(TINY).build_learner(Run("logit_kd", 1))
    assert isinstance(learner, BaselineDistiller)
    assert learner.criterion.settings == LogitKd(logits=0.5, temperature=4.0)
    assert not list(learner.criterion.parameters())


def test_plain_timm_loads_the_trained_student_bit_identically(serial_runs: Path) -> None:
    loaded = timm.create_model(f"local-dir:{serial_runs / 'student'}", pretrained=True).eval()
    trained, _ = load_student(RunFolder(serial_runs).checkpoint(Run("scalekd", 1)))
    pictures = images.build_test_set().tensors[0][:64]
    with torch.no_grad():
        assert torch.equal(loaded(pictures), trained(pictures))
    config = loaded.pretrained_cfg
    assert tuple(config["input_size"]) == (1, 32, 32)
    assert tuple(config["mean"]) == (images.MEAN,)
    assert tuple(config["std"]) == (images.STD,)
    assert loaded.num_classes == 10


def test_evaluating_the_student_folder_gives_the_summarys_accuracy(serial_runs: Path) -> None:
    measured = top1_of(str(serial_runs / "student"), Data("digits"))
    assert measured == summary(serial_runs)["student_top1_by_seed"]["1"]
    loaded = timm.create_model(f"local-dir:{serial_runs / 'student'}", pretrained=True).eval()
    assert measured == top1(loaded.to(best_device()), DataLoader(images.build_test_set(), 250), 10)


def test_an_existing_folder_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    with refused(str(tmp_path), "--out"):
        distill(ONE, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]
    assert (tmp_path / "mine").read_text() == "precious"


def test_default_folders_are_numbered_and_gradients_are_clipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    step = replace(ONE, data=replace(ONE.data, epoch_images=32))
    for clip in (1e-4, 0.0):
        optim = Optim(name="momentum", lr=1.0, weight_decay=0, warmup_epochs=0, clip=clip)
        distill(replace(step, optim=optim), parallel=1)
    assert sorted(p.name for p in Path("runs").iterdir()) == ["digits", "digits-2"]
    start = prepare(step).build_learner(Run("scalekd", 1)).student
    moved = []
    for out in (Path("runs/digits"), Path("runs/digits-2")):
        end, _ = load_student(RunFolder(out).checkpoint(Run("scalekd", 1)))
        changes = [
            (b - a).flatten() for a, b in zip(start.parameters(), end.parameters(), strict=True)
        ]
        moved.append(torch.cat(changes).norm().item())
    assert 0 < moved[0] <= 1.01e-4
    assert moved[1] > 100 * moved[0]


def test_separable_stems_are_noted_and_cannot_be_changed_on_resume(
    tmp_path: Path,
) -> None:
    out = distill(replace(ONE, separable_stem=True), tmp_path / "out", parallel=1)
    assert any("separable_stem is true" in note["text"] for note in summary(out)["notes"])
    with refused("separable_stem", "True", "False"):
        distill(ONE, out, resume=True)
    one, other = (
        prepare(recipe).build_learner(Run("scalekd", 1)).student.state_dict()
        for recipe in (ONE, replace(ONE, separable_stem=True))
    )
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_a_run_is_validated_at_its_end_whatever_validate_every_is(tmp_path: Path) -> None:
    out = distill(replace(ONE, epochs=3, validate_every=2), tmp_path / "out", parallel=1)
    measured = [(m["step"], m["top1"]) for m in metrics(out) if m["top1"] is not None]
    assert [step for step, _ in measured] == [4, 6]
    assert measured[-1][1] == summary(out)["student_top1"]
    assert summary(out)["supervised_top1"] is None
    assert summary(out)["logit_kd_top1"] is None


def test_parallel_0_is_refused(tmp_path: Path) -> None:
    with refused("parallel is 0"):
        distill(ONE, tmp_path / "out", parallel=0)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("where", ["a file", "a folder that is no folder"])
def test_a_run_folder_that_cannot_be_created_is_named(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "out" if where == "a file" else Path("/proc/scalekd/out")
    with refused(str(out)):
        distill(ONE, out, parallel=1)
