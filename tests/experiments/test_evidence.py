"""The runner of the evidence, by real small runs, and its statistics by values."""

import importlib
import itertools
import json
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from helpers.tiny import tiny_digits
from helpers.weights import same_weights
from timm.models import save_for_hf
from torch.utils.data import Dataset

from scalekd.data.cached import AugmentedViews
from scalekd.data.fashion_mnist import DEBIAN_FOLDER
from scalekd.errors import InputError
from scalekd.method import LossWeights
from scalekd.networks import InputConfig
from scalekd.runs import lock
from scalekd.runs.result import main_run
from scalekd.training.prepare import prepare

EVIDENCE = Path(__file__).parents[2] / "experiments" / "evidence"


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EVIDENCE))
    monkeypatch.syspath_prepend(str(EVIDENCE.parent / "report"))


@pytest.fixture
def trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module `trials`, which writes below the test's folder."""
    monkeypatch.chdir(tmp_path)
    return importlib.import_module("trials")


@pytest.fixture
def runner() -> Any:
    return importlib.import_module("runner")


def tiny_settings(**changes: Any) -> dict[str, Any]:
    settings = tiny_digits(**changes).as_dict()
    del settings["seeds"]
    return settings


def test_finished_runs_are_recorded_skipped_and_not_taken_for_others(
    trials: Any, runner: Any
) -> None:
    def trial(arm: str, **changes: Any) -> Any:
        parts = {name: changes.pop(name) for name in ("views", "change") if name in changes}
        return trials.Trial(
            experiment="tiny",
            regime="few",
            arm=arm,
            seed=3,
            settings=tiny_settings(**changes),
            **parts,
        )

    all_ = [
        trial("logit KD", method="logit_kd", views=2),
        trial("logit KD, live", method="logit_kd"),
        trial("other_image", change="other_image"),
    ]
    assert runner.run_all(all_, processes=2, budget=None) == 3
    records = [json.loads(one.record.read_text()) for one in all_]
    assert [record["arm"] for record in records] == ["logit KD", "logit KD, live", "other_image"]
    assert all_[0].record.name == "few-logit_kd-seed3.json"
    for record in records:
        assert record["seed"] == 3
        assert 0 <= record["top1"] <= 1
        assert record["steps"] == 2
        assert record["settings"]["student"] == "resnetv2_18"
        assert record["parameters"] > 1000
        assert record["commit"]
        assert record["versions"]["torch"]
        assert record["machine"]
    assert set(records[0]["terms"]) == {"task", "logits"}
    assert records[0]["terms"] == pytest.approx(records[1]["terms"], rel=1e-3)
    assert "tpp_original" in records[2]["terms"]
    assert (all_[0].folder.student / "model.safetensors").exists()
    assert not all_[0].folder.checkpoints.exists()
    before = all_[0].record.read_bytes()
    assert runner.run_all(all_, processes=2, budget=None) == 0
    assert all_[0].record.read_bytes() == before
    with pytest.raises(SystemExit, match="other settings"):
        runner.run_all([trial("logit KD", method="dist", views=2)], processes=1, budget=None)
    with pytest.raises(SystemExit, match="other settings"):
        runner.run_all([trial("logit KD", method="logit_kd")], processes=1, budget=None)
    assert runner.expected_seconds(all_) == 0


def test_a_run_that_the_budget_stops_is_resumed(
    trials: Any, runner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny_settings(method="logit_kd", epochs=40, save_minutes=0.001)
    trial = trials.Trial(experiment="tiny", regime="few", arm="a", seed=1, settings=settings)

    def clock() -> float:
        """The budget is over as soon as steps were recorded, on a fast machine and a slow one."""
        metrics = trial.folder.metrics
        return 60.0 if metrics.exists() and metrics.read_text() else 0.0

    monkeypatch.setattr(runner, "time", SimpleNamespace(monotonic=clock))
    assert runner.run_all([trial], processes=1, budget=20) == 0
    assert not trial.finished
    first = json.loads(trial.folder.metrics.read_text().splitlines()[-1])["step"]
    assert 0 < first < 80
    (before,) = trial.folder.checkpoints.glob("*seed1.ckpt")
    assert before.exists()
    assert runner.run_all([trial], processes=1, budget=None) == 1
    steps = [json.loads(line)["step"] for line in trial.folder.metrics.read_text().splitlines()]
    assert steps == sorted(set(steps))
    assert steps[-1] == 80


def test_a_run_folder_of_other_settings_or_another_process_is_refused(
    trials: Any, runner: Any
) -> None:
    def trial(**changes: Any) -> Any:
        settings = tiny_settings(method="logit_kd", **changes)
        return trials.Trial(experiment="tiny", regime="few", arm="a", seed=1, settings=settings)

    assert runner.run_all([trial()], processes=1, budget=None) == 1
    record = trial().record
    kept = record.rename(record.with_suffix(".kept"))
    with pytest.raises(SystemExit, match="begun with other settings: move it away"):
        runner.run_all([trial(temperature=2.0)], processes=1, budget=None)
    with (
        lock.hold_folder(trial().folder.path),
        pytest.raises(SystemExit, match=r"few-a-seed1 failed.*is being trained in"),
    ):
        runner.run_all([trial()], processes=1, budget=None)
    assert not record.exists()
    assert kept.exists()


def test_a_student_that_is_trained_again_must_be_that_of_its_record(
    trials: Any, runner: Any
) -> None:
    settings = tiny_settings(method="logit_kd")
    trial = trials.Trial(experiment="tiny", regime="few", arm="a", seed=1, settings=settings)
    assert runner.run_all([trial], processes=1, budget=None) == 1
    before = trial.record.read_bytes()
    student_run, stop = importlib.import_module("student_run"), SimpleNamespace(is_set=bool)

    shutil.rmtree(trial.folder.path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the runner's processes
    try:
        assert student_run.train_student(trial, stop)
        assert trial.record.read_bytes() == before

        shutil.rmtree(trial.folder.path)
        record = json.loads(before)
        record["terms"]["logits"] += 1.0
        trial.record.write_text(json.dumps(record))
        with pytest.raises(InputError, match=r"not the student of .*few-a-seed1\.json"):
            student_run.train_student(trial, stop)
    finally:
        torch.set_num_threads(threads)
    assert not trial.folder.student.exists()
    assert json.loads(trial.record.read_text()) == record


def test_distances_are_measured_by_view_after_training(trials: Any, runner: Any) -> None:
    inside = importlib.import_module("inside")
    weights = {"final_original": 1.0, "tpp_original": 1.0, "logits": 0.5}
    off = {"final_alternative": 0.0, "tpp_alternative": 0.0}
    without, both = (
        inside.Inside(
            experiment="tiny",
            regime="few",
            arm=arm,
            seed=1,
            settings=trials.merge(tiny_settings(), {"weights": weights | more}),
            views=2,
        )
        for arm, more in {"without DFM": off, "with DFM": dict.fromkeys(off, 1.0)}.items()
    )
    assert runner.run_all([without, both], processes=2, budget=None) == 2
    of_one, of_both = (json.loads(one.record.read_text())["measures"] for one in (without, both))
    assert set(of_one) == {"original"}
    assert set(of_both) == {"original", "alternative"}
    assert all(0 < distance < 4 for distance in (*of_one.values(), *of_both.values()))
    assert not both.folder.checkpoints.exists()


def test_a_run_that_fails_is_named_with_its_reason(trials: Any, runner: Any) -> None:
    settings = {**tiny_settings(), "student": "no_such_model"}
    trial = trials.Trial(experiment="tiny", regime="few", arm="a", seed=1, settings=settings)
    with pytest.raises(SystemExit, match=r"few-a-seed1 failed.*no_such_model"):
        runner.run_all([trial], processes=1, budget=None)
    assert not trial.record.exists()


def distiller() -> Any:
    weights = LossWeights(1.0, 1.0, 1.0, 1.0)
    prepared = prepare(tiny_digits(weights=weights))
    assert prepared.student is not None
    return prepared.build_scalekd(prepared.student.build())


def test_the_controls_change_one_part_alone() -> None:
    changes = importlib.import_module("changes")
    torch.manual_seed(0)
    images = torch.randn(4, 1, 32, 32)
    plain = distiller()
    outputs = plain.run_teacher(images)
    tokens = torch.randn(4, 64, 64)
    through_own = plain.teacher.tail(tokens)

    shifted = distiller()
    changes.other_image(shifted)
    other = shifted.run_teacher(images)
    assert torch.equal(other.final, outputs.final.roll(1, 0))
    assert torch.equal(other.logits, outputs.logits)

    random = distiller()
    changes.random_tail(random)
    same = random.run_teacher(images)
    assert torch.equal(same.final, outputs.final)
    through_random = random.teacher.tail(tokens)
    assert through_random.shape == through_own.shape
    assert not torch.allclose(through_random, through_own, atol=0.1)
    own = dict(random.teacher.model.named_parameters())
    assert all(torch.equal(t, own[n]) for n, t in plain.teacher.model.named_parameters())

    shorter = distiller()
    changes.last_block(shorter)
    same = shorter.run_teacher(images)
    assert torch.equal(same.final, outputs.final)
    stage = plain.teacher.model.layers[-1]
    assert len(stage.blocks) > 1
    through_one = stage.blocks[-1](stage.downsample(tokens.reshape(4, 8, 8, 64)))
    expected = plain.teacher.model.norm(through_one).flatten(1, 2)
    assert torch.allclose(shorter.teacher.tail(tokens), expected, atol=1e-5)


def test_the_main_comparison_has_each_arm_with_each_seed_at_equal_steps_and_time(
    trials: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    comparison = importlib.import_module("main_comparison")
    methods = comparison.METHODS
    seconds = dict.fromkeys(methods, 1.0) | {f"{m}, cache": 0.5 for m in methods[1:]}
    seconds |= {"scalekd": 3.0, "scalekd, cache": 2.0}
    cost = dict.fromkeys(("few", "all"), seconds)
    chosen = {regime: {m: {"optim": {"lr": 0.5}} for m in methods} for regime in ("few", "all")}
    monkeypatch.setattr(comparison, "read_cost", lambda: cost)
    methods_ = importlib.import_module("methods")
    for module in (comparison, methods_):
        monkeypatch.setattr(module, "read_chosen", lambda: chosen)
    found = comparison.trials()
    assert len({trial.name for trial in found}) == len(found)
    arms = {trial.arm for trial in found}
    assert arms == {
        *methods,
        "random_tail",
        "other_image",
        *(f"{m}, equal time{c}" for m in methods[:-1] for c in ("", ", cache")),
    }
    for regime in ("few", "all"):
        for arm in arms:
            seeds = [t.seed for t in found if (t.regime, t.arm) == (regime, arm)]
            assert seeds == list(range(5 if arm in ("random_tail", "other_image") else 10))
    epochs = {(trial.regime, trial.arm): trial.settings["epochs"] for trial in found}
    assert epochs["few", "scalekd"] == epochs["few", "logit_kd"] == 30
    assert epochs["few", "logit_kd, equal time"] == 3 * 30
    assert epochs["few", "logit_kd, equal time, cache"] == 4 * 30
    assert epochs["all", "supervised, equal time, cache"] == 2
    every = {"epochs": 1, "batch_size": 64, "data": {}}
    longer = methods_.lengthened(every, 2.5)
    assert longer == {"epochs": 3, "batch_size": 64, "data": {"epoch_images": 716 * 64}}
    assert importlib.import_module("cost").steps_of(longer) == pytest.approx(2.5 * 859, rel=1e-3)
    for trial in found[:: len(found) // 40]:
        method = "scalekd" if trial.change else trial.arm.partition(",")[0]
        assert main_run(trial.recipe).method == method
    cached = {trial.arm for trial in found if trial.views is not None}
    taught = {"scalekd", "logit_kd", "dist", "ofa", "rsd"}
    assert cached == taught | {f"{method}, equal time, cache" for method in taught - {"scalekd"}}
    assert {t.views for t in found if t.regime == "few"} == {None, 30}
    assert {trial.settings["optim"]["lr"] for trial in found} == {0.5}
    assert {trial.settings["data"]["root"] for trial in found} == {"fashion-mnist:final"}


EXPERIMENTS = {
    "components": 55,
    "inside": 10,
    "seven_classes": 35,
    "no_classifier": 15,
    "stages": 65,
    "teacher_size": 50,
    "every_student": 33,
    "pretraining": 15,
    "width": 40,
    "second_tuning": 24,
    "longer": 35,
}


@pytest.fixture
def chosen(trials: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings as if tuning had chosen the first of each method."""
    space = importlib.import_module("tuning").SPACE
    first = {method: {**choices[0], "optim": {"lr": 0.004}} for method, choices in space.items()}
    for module in map(importlib.import_module, ("main_comparison", "methods")):
        monkeypatch.setattr(module, "read_chosen", lambda: {"few": first, "all": first})


@pytest.mark.usefixtures("chosen")
@pytest.mark.parametrize(("experiment", "count"), EXPERIMENTS.items())
def test_an_experiment_has_its_runs_by_valid_recipes(experiment: str, count: int) -> None:
    found = importlib.import_module(experiment).trials()
    assert len(found) == len({trial.name for trial in found}) == count
    assert {trial.experiment for trial in found} == {experiment}
    for trial in found[:13]:
        assert trial.recipe.seeds == [trial.seed]
        assert (trial.views is None) or (trial.views == trial.recipe.epochs)
    expected = importlib.import_module("cost").expected
    assert all(expected(trial) > 0 for trial in found)


@pytest.mark.skipif(
    not DEBIAN_FOLDER.is_dir(), reason="Debian's dataset-fashion-mnist is not installed"
)
@pytest.mark.usefixtures("chosen")
def test_a_pre_trained_student_is_trained_before_it_is_fine_tuned(runner: Any) -> None:
    found = importlib.import_module("pretraining").trials()
    first, then = runner.in_order(found)
    assert [t.name for t in first if t.experiment != "pretraining"] == ["all-cnn_long-seed0"]
    assert [t.arm for t in then] == ["pre-trained"] * 5
    recipe = then[0].recipe
    student = timm.create_model(recipe.student, num_classes=10, **recipe.student_args)
    save_for_hf(student, recipe.student_weights, model_args=recipe.student_args)
    loaded = prepare(recipe).build_learner(main_run(recipe)).student
    assert same_weights(loaded, student)


@pytest.mark.usefixtures("chosen")
def test_the_second_tuning_runs_its_best_trial_on_the_test_images() -> None:
    tuning = importlib.import_module("second_tuning")
    tried = tuning.trials()
    assert {trial.settings["data"]["root"] for trial in tried} == {"fashion-mnist:choosing"}
    for number, trial in enumerate(tried):
        trial.record.parent.mkdir(parents=True, exist_ok=True)
        trial.record.write_text(json.dumps(asdict(trial) | {"top1": 0.9 if number == 5 else 0.8}))
    finals = tuning.trials()[len(tried) :]
    few, every, controls, in_time = finals[:10], finals[10:20], finals[20:30], finals[30:]
    assert [(c.seed, c.change) for c in controls] == [
        (seed, control) for seed in range(5) for control in ("random_tail", "other_image")
    ]
    assert all(control.settings == few[0].settings for control in controls)
    assert [trial.seed for trial in (*few, *every)] == [*range(10), *range(10)]
    data = tried[5].settings["data"] | {"root": "fashion-mnist:final"}
    assert all(trial.settings == tried[5].settings | {"data": data} for trial in few)
    for trial in every:
        assert trial.settings["weights"] == tried[5].settings["weights"]
        assert trial.settings["optim"]["lr"] == tried[5].settings["optim"]["lr"]
        assert (trial.settings["epochs"], trial.settings["batch_size"]) == (1, 64)
    assert len(in_time) == 40
    cost, read = importlib.import_module("cost"), tuning.read_seconds()
    for trial in in_time:
        assert trial.settings["method"] == "logit_kd"
        way = ", cache" if trial.views else ""
        seconds = read[trial.regime]
        steps = cost.steps_of((few if trial.regime == "few" else every)[0].settings)
        ratio = cost.steps_of(trial.settings) / steps
        assert ratio == pytest.approx(
            seconds[tuning.ARM + way] / seconds[tuning.LOGITS + way], rel=0.02
        )


@pytest.mark.usefixtures("chosen")
def test_components_have_the_terms_that_they_are_named_for() -> None:
    found = {t.arm: t for t in importlib.import_module("components").trials() if t.seed == 0}
    on = {
        arm: {term for term, weight in trial.settings["weights"].items() if weight}
        for arm, trial in found.items()
    }
    views = {
        f"{stage}_{view}" for stage in ("tpp", "final") for view in ("original", "alternative")
    }
    assert on["logits"] == {"logits"}
    assert on["CAP"] == {"logits", "final_original"}
    assert on["CAP, DFM"] == {"logits", "final_original", "final_alternative"}
    assert on["CAP, TPP"] == {"logits", "final_original", "tpp_original"}
    assert on["all, without logits"] == views
    assert on["all, own queries"] == on["all, last block of the tail"] == views | {"logits"}
    assert on["beta 0.0"] == {"logits", "tpp_alternative", "final_alternative"}
    assert found["logits"].settings["method"] == "logit_kd"
    assert found["all, own queries"].change == "own_queries"
    assert found["all, last block of the tail"].change == "last_block"


def test_own_queries_are_trained_and_read_in_place_of_those_of_the_tail() -> None:
    changes = importlib.import_module("changes")
    changed = distiller()
    changes.own_queries(changed)
    images = torch.randn(4, 1, 32, 32)
    outputs = changed.run_teacher(images)
    student = changed.student_extractor(images)
    projected = dict(changed.criterion.project("original", student, changed.teacher.tail))
    final, tpp = projected["final"], projected["tpp"]
    (gradient,) = torch.autograd.grad(final.square().sum(), tpp, allow_unused=True)
    assert gradient is None  # the tail's tokens are no queries any more
    assert tpp.shape == final.shape == (4, 16, outputs.final.shape[1])
    names = [name for name, _ in changed.criterion.named_parameters()]
    assert sum(name.endswith("own_query") for name in names) == 4  # of both stages and views


@pytest.mark.skipif(
    not DEBIAN_FOLDER.is_dir(), reason="Debian's dataset-fashion-mnist is not installed"
)
def test_the_hidden_classes_are_not_trained_on_and_labels_can_be_withheld(trials: Any) -> None:
    student_run, probes = map(importlib.import_module, ("student_run", "probes"))
    settings = {
        "teacher": "scalekd_digits_swin",
        "student": "resnetv2_18",
        "data": {"root": "fashion-mnist:choosing", "image_size": 32, "train_images": 100},
    }
    options = {"experiment": "tiny", "regime": "few", "arm": "a", "seed": 0, "settings": settings}
    config = InputConfig(channels=1, size=(32, 32), mean=(0.286,), std=(0.353,))

    def open_images(trial: Any) -> Any:
        return student_run.open_images(trial, trial.recipe.data)

    hidden = open_images(trials.Trial(**options, hidden=probes.HIDDEN))
    shown = hidden.training_set(config, 0)
    assert len(shown) == 70
    assert {int(shown[key][1]) for key in range(140)} == set(range(10)) - set(probes.HIDDEN)
    bare = open_images(trials.Trial(**options, labelled=False))
    assert bare.classes is None
    assert bare.validation_set is None
    assert len(bare.training_set(config, 0)[0]) == 1


def test_a_row_of_a_cache_is_read_once() -> None:
    read = []

    class Images(Dataset[Any]):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, key: int) -> tuple[Any, ...]:
            read.append(key)
            return (torch.full((1, 2, 2), key), key)

    rows = importlib.import_module("student_run").KeptRows(AugmentedViews(Images(), 6))
    assert len(rows) == 3
    assert [rows[key][1] for key in (0, 5, 6, 11, 13)] == [0, 5, 0, 5, 1]
    assert read == [0, 5, 1]


def test_probes_measure_what_features_tell() -> None:
    probes = importlib.import_module("probes")
    config = InputConfig(channels=1, size=(8, 8), mean=(0.0,), std=(1.0,))
    torch.manual_seed(0)
    images = (torch.rand(40, 1, 8, 8) > 0.5).float()
    pixels = torch.nn.functional.unfold(images, 2, stride=2)  # each token tells its own pixels
    features = pixels.reshape(40, 4, 4, 4)
    overlap = probes.foreground_overlap(
        features[:30], images[:30], features[30:], images[30:], config
    )
    assert overlap == 1
    noise = torch.randn(40, 4, 4, 4)
    blind = probes.foreground_overlap(noise[:30], images[:30], noise[30:], images[30:], config)
    assert blind < 0.7
    places = torch.eye(16).reshape(1, 16, 4, 4).expand(40, -1, -1, -1)
    assert probes.place_accuracy(places[:30], places[30:]) == 1
    assert probes.place_accuracy(noise[:30], noise[30:]) < 0.2


def test_tuning_gives_every_method_eight_trials_without_the_test_images(trials: Any) -> None:
    tuning = importlib.import_module("tuning")
    found = tuning.trials()
    by_method = itertools.groupby(
        sorted((t.regime, t.settings.get("method") or "supervised") for t in found)
    )
    assert {len(list(group)) for _, group in by_method} == {8}
    assert {trial.settings["data"]["root"] for trial in found} == {"fashion-mnist:choosing"}
    assert len({json.dumps(t.settings, sort_keys=True) for t in found}) == len(found)


def test_tuning_chooses_the_most_accurate(trials: Any) -> None:
    tuning = importlib.import_module("tuning")
    found = tuning.trials()
    for trial in found:
        best = trial.arm == "logit_kd 0.004 1" and trial.regime == "few"
        trial.record.parent.mkdir(parents=True, exist_ok=True)
        record = {**asdict(trial), "top1": 0.9 if best else 0.8}
        trial.record.write_text(json.dumps(record))
    chosen = tuning.choose()
    assert chosen["few"]["logit_kd"] == {"temperature": 4.0, "optim": {"lr": 0.004}}
    assert chosen["all"]["logit_kd"] == {"temperature": 1.0, "optim": {"lr": 0.002}}
    few, every = ([t for t in found if t.regime == regime] for regime in ("few", "all"))
    every[0].record.unlink()
    assert list(tuning.choose()) == ["few"]
    few[0].record.unlink()
    with pytest.raises(SystemExit, match="no regime is finished"):
        tuning.choose()


def test_paired_differences_and_holm_have_their_values() -> None:
    comparison = importlib.import_module("comparison")
    one, other = [83.0, 80.0, 86.0, 82.0], [82.0, 80.0, 83.0, 80.0]
    gaps = np.array([1.0, 0.0, 3.0, 2.0])
    found = comparison.paired_difference(one, other)
    assert found.mean == pytest.approx(1.5)
    assert found.seeds == 4
    signs = itertools.product((-1, 1), repeat=4)
    as_large = [abs(np.mean(gaps * s)) >= 1.5 - 1e-9 for s in signs]
    assert found.p == pytest.approx(np.mean(as_large))
    means = [np.mean(sample) for sample in itertools.product(gaps, repeat=4)]
    assert found.low == pytest.approx(np.quantile(means, 0.025), abs=0.13)
    assert found.high == pytest.approx(np.quantile(means, 0.975), abs=0.13)
    assert not found.one_sign
    assert (found.smallest, found.largest) == pytest.approx((min(gaps), max(gaps)))
    assert comparison.paired_difference([2.0, 3.0], [1.0, 1.0]).one_sign
    assert comparison.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert comparison.paired_difference([0.5, 0.5], [0.5, 0.5]).p == 1
    with pytest.raises(ValueError, match="two or more"):
        comparison.paired_difference([0.5], [0.4])


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("45m", 2700), ("2h", 7200), ("1h30m", 5400)]
)
def test_budgets_are_read(text: str, seconds: float, runner: Any) -> None:
    assert runner.parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--budget", "soon"], 2, "'soon' is no duration such as 90s"),
        pytest.param(
            ["--device", "cuda"],
            1,
            "torch sees no GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_wrong_options_are_refused_in_one_line(words: list[str], code: int, said: str) -> None:
    command = [sys.executable, str(EVIDENCE / "runner.py"), "main_comparison", *words]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == code
    assert said in ended.stderr.splitlines()[-1]
