"""The prepared measurements of a GPU, run at a small size on what is here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from gpu import PLAN, SMALL_PLAN, TINY, Measurement, measure

GPU = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


def test_what_was_measured_is_kept_and_what_failed_is_tried_again(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    words = f"{TINY} --repetitions 2"
    good = Measurement("repeating", "repeat", words)
    bad = Measurement("a size that no pair has", "repeat", f"{words} --data.image_size -3")
    assert measure([good], file, budget=5) == {}
    first = measure([good, bad], file, budget=900)
    plain, deterministic = first["repeating"]["repeated"]
    assert (plain["deterministic"], deterministic["deterministic"]) == (False, True)
    for each in (plain, deterministic):  # on a CPU
        assert each["same_loss"]
        assert each["number_different"] == 0
        assert each["gradients"] > 20
    assert "data.image_size is -3" in first[bad.name]["failed"]
    second = measure([good, Measurement(bad.name, "repeat", words)], file, budget=900)
    assert second["repeating"] == first["repeating"]
    assert "failed" not in second[bad.name]
    assert json.loads(file.read_text()) == second


def test_every_script_of_the_plan_is_tried_by_the_small_one() -> None:
    assert {each.script for each in PLAN} == {each.script for each in SMALL_PLAN}
    assert len({each.name for each in PLAN}) == len(PLAN)


def test_without_a_gpu_only_the_small_plan_runs() -> None:
    environment = {"CUDA_VISIBLE_DEVICES": "", "PATH": ""}
    command = [sys.executable, str(GPU)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 1
    assert result.stderr == "torch sees no GPU: give --small to try the scripts without one\n"


@pytest.mark.slow
def test_the_small_plan_runs_to_its_end(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    command = [sys.executable, str(GPU), "--small", "--out", str(file), "--budget", "1800"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    results = json.loads(file.read_text())
    assert [values.get("failed") for values in results.values()] == [None] * len(SMALL_PLAN)
    for trainings in results["resuming"]["trainings"]:
        assert trainings["difference"] == 0  # on a CPU
        assert trainings["interrupted_at"] > 0
    kernels = results["kernels"]["kernels"]
    assert kernels[0]["seconds"] >= kernels[-1]["seconds"] > 0
