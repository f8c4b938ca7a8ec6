"""Experiment trackers log each point once, however often a run is killed, and never end a run."""

import csv
import itertools
import json
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.full_disk import limited_file_size
from helpers.refusals import refused
from helpers.tiny import tiny_digits
from helpers.warned import warned

from scalekd.jobs.distill import distill
from scalekd.recipe import Data, Recipe, Tracker
from scalekd.runs.folder import RunFolder
from scalekd.runs.result import Run
from scalekd.runs.trackers import Trackers, check_trackers, numeric_values

RECIPE = Recipe("scalekd_digits_swin", "test_resnet", Data("digits"), student_args={"a": {"b": 1}})


def entry(step: int, top1: float | None = None, method: str = "scalekd") -> dict[str, Any]:
    return {
        "method": method,
        "seed": 4,
        "step": step,
        "steps": 60,
        "seconds": step / 4,
        "loss": step / 8,
        "terms": {"task": 0.5, "logits": step / 16},
        "top1": top1,
    }


ENTRIES = [entry(10), entry(20, 0.25), entry(30), entry(40, 0.5), entry(50), entry(60, 0.75)]
LOSSES = [(e["step"], e["loss"]) for e in ENTRIES]
TOPS = [(e["step"], e["top1"]) for e in ENTRIES if e["top1"] is not None]


def record(out: Path, entries: list[dict[str, Any]]) -> None:
    out.mkdir(exist_ok=True)
    others = [entry(e["step"], method="supervised") for e in entries]
    lines = [json.dumps(e) + "\n" for pair in zip(entries, others, strict=True) for e in pair]
    (out / "metrics.jsonl").write_text("".join(lines))


def trackers(name: Tracker, out: Path) -> Trackers:
    return Trackers(replace(RECIPE, trackers=[name]), Run("scalekd", 4), RunFolder(out))


def killed_and_resumed(name: Tracker, out: Path, pause: float = 0.0) -> None:
    """Log up to step 40, be killed; resume from 20, be killed at 30; resume from 20 and finish."""
    record(out, [])
    killed = trackers(name, out).__enter__()
    for each in ENTRIES[:4]:
        killed.log(each)
    killed.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    record(out, ENTRIES[:2])
    time.sleep(pause)
    again = trackers(name, out).__enter__()
    again.log(ENTRIES[2])
    again.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    record(out, ENTRIES[:2])
    time.sleep(pause)
    with trackers(name, out) as last:
        for each in ENTRIES[2:]:
            last.log(each)


def read_csv(out: Path, name: str) -> list[tuple[int, float]]:
    with (out / "trackers/csv/scalekd-seed4/metrics.csv").open() as file:
        return [(int(r["step"]), float(r[name])) for r in csv.DictReader(file) if r[name]]


def read_tensorboard(out: Path, name: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(out / "trackers/tensorboard/scalekd-seed4"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


@pytest.mark.parametrize("name", ["csv", "tensorboard"])
def test_tracker_files_have_each_point_once_after_kills(name: Tracker, tmp_path: Path) -> None:
    if name == "tensorboard":
        pytest.importorskip("tensorboard")
    read: Callable[[Path, str], Any] = {"csv": read_csv, "tensorboard": read_tensorboard}[name]
    killed_and_resumed(name, tmp_path / "run")
    assert read(tmp_path / "run", "loss") == LOSSES
    assert read(tmp_path / "run", "top1") == TOPS
    assert read(tmp_path / "run", "terms/logits") == [(s, s / 16) for s, _ in LOSSES]
    settings = tmp_path / "run/trackers" / name / "scalekd-seed4/hparams.yaml"
    assert "student_args.a.b: 1" in settings.read_text()


def test_mlflow_has_one_run_with_each_point_once_after_kills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking = pytest.importorskip("mlflow.tracking")
    uri = f"file:{tmp_path / 'server'}"
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # or it accepts only databases
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    check_trackers(["mlflow"])
    killed_and_resumed("mlflow", tmp_path / "run")
    client = tracking.MlflowClient(uri)
    experiment = client.get_experiment_by_name("scalekd")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.runName"] == "run scalekd-seed4"
    assert run.data.params["student_args.a.b"] == "1"
    for name, points in (("loss", LOSSES), ("top1", TOPS)):
        history = client.get_metric_history(run.info.run_id, name)
        assert [(m.step, m.value) for m in history] == points


def logged(content: bytes) -> Iterator[bytes]:
    """The records of a file of W&B's: LevelDB's log, behind a header of 7 bytes."""
    at, begun = 7, b""
    while at + 7 <= len(content):
        length, kind = struct.unpack_from("<HB", content, at + 4)
        if left := (32768 - at % 32768) if 32768 - at % 32768 < 7 else 0:
            at += left
            continue
        begun += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a complete record, or the last part of one
            yield begun
            begun = b""


def test_weights_and_biases_offline_has_runs_of_one_id_with_each_point_once_after_kills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_MODE", "offline")
    killed_and_resumed("wandb", tmp_path / "run", pause=1.1)  # its folders are named by seconds
    until = time.monotonic() + 30  # another process writes them, and not at once
    points: list[tuple[int, float]] = []
    while len(points) < len(LOSSES) and time.monotonic() < until:
        files = sorted((tmp_path / "run/trackers/wandb/wandb").glob("offline-run-*/*.wandb"))
        points = []
        for data in itertools.chain(*(logged(file.read_bytes()) for file in files)):
            line = wandb_internal_pb2.Record()
            line.ParseFromString(data)
            items = {i.key or ".".join(i.nested_key): i.value_json for i in line.history.item}
            if "loss" in items:
                points.append((int(items["trainer/global_step"]), float(items["loss"])))
    assert points == LOSSES
    assert len({file.name for file in files}) == 1


def test_a_tracker_that_is_added_late_receives_the_recorded_metrics(tmp_path: Path) -> None:
    record(tmp_path, ENTRIES)
    with trackers("csv", tmp_path):
        pass
    assert read_csv(tmp_path, "loss") == LOSSES


def log_on_a_full_disk(tracker: Trackers) -> None:
    with limited_file_size(60):
        for each in ENTRIES[1:]:
            tracker.log(each)


def test_a_tracker_that_fails_to_log_warns_once_and_ends_nothing(tmp_path: Path) -> None:
    record(tmp_path, [])
    with trackers("csv", tmp_path) as tracker:
        tracker.log(ENTRIES[0])
        with warned("csv receives no more metrics of scalekd-seed4") as messages:
            log_on_a_full_disk(tracker)
    assert len(messages) == 1
    assert "metrics.jsonl has everything" in messages[0]


def test_a_tracker_that_cannot_be_opened_warns_once_and_ends_nothing(tmp_path: Path) -> None:
    record(tmp_path, [])
    (tmp_path / "trackers").touch()
    with (
        warned("csv receives no more metrics") as messages,
        trackers("csv", tmp_path) as tracker,
    ):
        tracker.log(ENTRIES[0])
    assert len(messages) == 1


def test_mlflow_without_a_server_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with refused("mlflow", "MLFLOW_TRACKING_URI"):
        check_trackers(["mlflow"])


def test_a_tracker_that_is_not_installed_names_its_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.path", [])
    monkeypatch.delitem(__import__("sys").modules, "wandb", raising=False)
    with refused("wandb", "pip install 'scalekd[wandb]'"):
        check_trackers(["csv", "wandb"])


def test_only_numeric_values_of_an_entry_are_logged() -> None:
    expected = {"seconds": 2.5, "loss": 1.25, "terms/task": 0.5, "terms/logits": 0.625}
    assert numeric_values(entry(10)) == expected


def test_a_tracker_that_is_named_twice_is_refused() -> None:
    with refused("trackers is ['csv', 'csv']"):
        replace(RECIPE, trackers=["csv", "csv"])


def test_a_complete_job_is_tracked_as_it_is_recorded(tmp_path: Path) -> None:
    recipe = tiny_digits(seeds=[4], log_every=1, trackers=["csv"])
    out = distill(recipe, tmp_path / "run", parallel=1)
    recorded = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert read_csv(out, "loss") == [(e["step"], e["loss"]) for e in recorded]
    assert read_csv(out, "gradients/student") == [
        (e["step"], e["gradients"]["student"]) for e in recorded
    ]
