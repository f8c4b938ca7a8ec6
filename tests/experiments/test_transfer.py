"""Experiment 11, by real small segmentations that the runner starts, stops and resumes."""

import importlib
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.tiny import tiny_digits

from scalekd.data.fashion_mnist import DEBIAN_FOLDER
from scalekd.recipe import Optim
from scalekd.transfer.detection.recipe import DetectData, DetectRecipe
from scalekd.transfer.recipe import TransferRecipe
from scalekd.transfer.segmentation.recipe import SegmentData, SegmentRecipe

EVIDENCE = Path(__file__).parents[2] / "experiments" / "evidence"


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a module of the evidence, which writes below the test's folder."""
    monkeypatch.syspath_prepend(str(EVIDENCE))
    monkeypatch.chdir(tmp_path)
    return importlib.import_module


def tiny_transfer(load: Any, **changes: Any) -> Any:
    """A linear probe of a student of digits on four scenes, for two steps."""
    run = load("transfer_run")
    settings = tiny_digits().as_dict()
    del settings["seeds"]
    student = load("trials").Trial(
        experiment="tiny", regime="few", arm="a", seed=1, settings=settings
    )
    own: dict[str, Any] = {
        "data": {"crop_size": 32, "workers": 0},
        "head": "linear",
        "frozen": True,
        "epochs": 2,
        "batch_size": 4,
        "optim": {"lr": 0.01, "warmup_epochs": 0.0},
        "log_every": 1,
    }
    return run.Transfer(
        experiment="tiny",
        regime="segmentation",
        arm="a, frozen",
        seed=1,
        settings=load("trials").merge(own, changes),
        task=run.SEGMENTATION,
        student=student,
        scenes=run.Scenes(4, 2, 1),
    )


def test_a_transfer_comes_after_its_student_which_is_trained_again_where_its_folder_is_gone(
    load: Any,
) -> None:
    transfer, runner = tiny_transfer(load), load("runner")
    trials = [transfer, transfer.student]  # also where it is listed before its student
    assert runner.run_all(trials, processes=2, budget=None) == 2
    record = json.loads(transfer.record.read_text())
    assert transfer.record.name == "segmentation-a_frozen-seed1.json"
    assert set(record["measures"]) == {"miou", "pixel_accuracy", "mean_accuracy"}
    assert all(0 <= value <= 1 for value in record["measures"].values())
    assert record["steps"] == 2
    assert record["seconds"] > 0
    assert "student" in record["weights"]
    assert record["commit"]
    assert record["machine"]
    assert record["student"]["settings"]["student"] == "resnetv2_18"
    assert transfer.outcome.startswith("miou ")
    assert not transfer.folder.checkpoints.exists()
    assert runner.run_all(trials, processes=2, budget=None) == 0
    with pytest.raises(SystemExit, match="other settings"):
        runner.run_all([tiny_transfer(load, epochs=3)], processes=1, budget=None)

    shutil.rmtree(transfer.student.folder.path)
    assert runner.run_all(trials, processes=2, budget=None) == 0  # nothing needs it any more
    transfer.record.unlink()
    assert transfer.student.finished
    assert runner.in_order([transfer]) == ([transfer.student], [transfer])


def test_a_transfer_that_the_budget_stops_is_resumed(
    load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs = 600
    transfer = tiny_transfer(load, epochs=epochs, validate_every=1000)
    runner = load("runner")
    assert runner.run_all([transfer.student], processes=1, budget=None) == 1

    def clock() -> float:
        """The budget is over as soon as steps were recorded, on a fast machine and a slow one."""
        metrics = transfer.folder.metrics
        return 60.0 if metrics.exists() and metrics.read_text() else 0.0

    monkeypatch.setattr(runner, "time", SimpleNamespace(monotonic=clock))
    assert runner.run_all([transfer], processes=1, budget=20) == 0
    assert not transfer.finished
    lines = transfer.folder.metrics.read_text().splitlines()
    assert 0 < json.loads(lines[-1])["step"] < epochs
    (checkpoint,) = transfer.folder.checkpoints.glob("*seed1.ckpt")
    assert checkpoint.exists()
    assert runner.run_all([transfer], processes=1, budget=None) == 1
    steps = [json.loads(line)["step"] for line in transfer.folder.metrics.read_text().splitlines()]
    assert steps == list(range(1, epochs + 1))


def test_scores_are_found_by_their_keys(load: Any) -> None:
    score_at = load("transfer_run").score_at
    assert score_at({"miou": 0.5}, "miou") == 0.5
    assert score_at({"box": {"ap": 0.25}}, "box.ap") == 0.25


def test_a_command_that_fails_or_is_stopped_before_it_begins_says_so(load: Any) -> None:
    run_command = load("transfer_run").run_command
    never, at_once = (SimpleNamespace(is_set=lambda stop=stop: stop) for stop in (False, True))
    words = ["transfer", "segment", "--backbone", "nowhere", "--data.root", "nowhere"]
    with pytest.raises(load("scalekd.errors").InputError, match=r"ended with 2: .*nowhere"):
        run_command(words, never)
    assert run_command(words, at_once) is False


@pytest.fixture
def chosen(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates as if tuning had chosen the second of each mode of each task."""

    def second(plan: Any) -> dict[str, float]:
        return {mode: tried[1] for mode, tried in plan.rates.items()}

    monkeypatch.setattr(load("transfer"), "chosen_rates", second)


def read_recipe(task: str, settings: dict[str, Any]) -> TransferRecipe:
    """The recipe of the command's settings, checked as the command checks it."""
    kinds = {"segment": (SegmentRecipe, SegmentData), "detect": (DetectRecipe, DetectData)}
    recipe, images = kinds[task]
    data = {n: tuple(v) if isinstance(v, list) else v for n, v in settings["data"].items()}
    parts = {"data": images(**data), "optim": Optim(**settings["optim"])}
    return recipe(**{**settings, **parts})


@pytest.mark.usefixtures("chosen")
def test_all_starts_of_a_seed_differ_by_the_student_alone(load: Any) -> None:
    transfer = load("transfer")
    found = transfer.trials()
    assert len(found) == len({trial.name for trial in found}) == 15 + (40 + 1) + (24 + 1)
    assert {trial.experiment for trial in found} == {"transfer"}
    students = [trial for trial in found if not trial.starts_from]
    assert found[:15] == students
    few = load("main_comparison").at_equal_steps
    assert students[0].settings == few("few", "supervised", 0).settings
    for plan in load("transfer_tuning").PLANS:
        of_task = [trial for trial in found[15:] if trial.task == plan.task]
        compared = [trial for trial in of_task if trial.arm != transfer.REFERENCE]
        for trial in compared:
            start, _, mode = trial.arm.partition(", ")
            recipe = read_recipe(plan.task.command, trial.recipe)
            assert recipe.frozen is (mode == "frozen")
            assert recipe.optim.lr == plan.rates[mode][1]
            assert recipe.seed == trial.seed == trial.scenes.seed == trial.student.seed
            assert recipe.backbone_weights == ("random" if start == "random" else "pretrained")
            assert trial.student.arm == ("supervised" if start == "random" else start)
            assert trial.student in students
        for seed in plan.seeds:
            assert len({trial.scenes for trial in compared if trial.seed == seed}) == 1
        (reference,) = (trial for trial in of_task if trial.arm == transfer.REFERENCE)
        few_scenes = next(trial for trial in compared if trial.seed == reference.seed).scenes
        assert reference.scenes == replace(few_scenes, training=10 * few_scenes.training)


def test_tuning_chooses_the_rate_of_each_mode_without_test_images(load: Any) -> None:
    tuning = load("transfer_tuning")
    student, *found = tuning.trials()
    assert len(found) == 6 + 8
    assert student.settings["data"]["root"] == "fashion-mnist:choosing"
    assert {trial.scenes.validation_part for trial in found} == {"choosing"}
    assert {trial.seed for trial in (student, *found)} == {1000}
    for trial in found:
        epochs = {"segment": 40, "detect": 16}[trial.task.command]
        assert read_recipe(trial.task.command, trial.recipe).epochs == epochs
    assert [tuning.chosen_rates(plan) for plan in tuning.PLANS] == [None, None]
    with pytest.raises(SystemExit, match="run transfer_tuning first"):
        load("transfer").trials()
    best = ("fine-tuned 0.004", "frozen 0.064")
    for trial in found[:6]:
        trial.record.parent.mkdir(parents=True, exist_ok=True)
        measures = {"miou": 0.4 if trial.arm in best else 0.3}
        trial.record.write_text(json.dumps({**asdict(trial), "measures": measures}))
    assert tuning.chosen_rates(tuning.SEGMENT) == {"fine-tuned": 4e-3, "frozen": 6.4e-2}
    assert len(load("transfer").trials()) == 15 + 40 + 1  # detection is not tuned


@pytest.mark.skipif(
    not DEBIAN_FOLDER.is_dir(), reason="Debian's dataset-fashion-mnist is not installed"
)
def test_the_parts_of_the_originals_have_no_image_in_common(load: Any) -> None:
    load("transfer_run")
    scenes = importlib.import_module("scenes")
    parts = [
        {image.tobytes() for image in scenes.read_originals(part).images} for part in scenes.PARTS
    ]
    sizes = [len(part) for part in parts]
    assert len(set.union(*parts)) == sum(sizes)
    assert sum(sizes) > 24_000  # a few originals are in Fashion-MNIST twice
