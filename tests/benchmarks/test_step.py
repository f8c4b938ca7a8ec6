"""The benchmarks: their reference has the released code's losses, and real steps are timed."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.goldens import FILES, TERMS, Tail, golden
from released_structure import ReleasedStructure
from scaling import benchmark_setting, benchmark_students
from timm import create_model
from torch.utils.flop_counter import FlopCounterMode

from scalekd.features import Features
from scalekd.method import loss_from_released
from scalekd.recipe import Data, Recipe

STEP = Path(__file__).parents[2] / "benchmarks" / "step.py"
SMALL = {"img_size": 48}
RECIPE = Recipe(
    teacher="test_vit",
    student="test_vit",
    teacher_args=SMALL,
    student_args=SMALL,
    data=Data(root="imagenet", image_size=48),
    batch_size=2,
)


@pytest.mark.parametrize("name", FILES)
def test_the_benchmark_reference_gives_the_losses_of_the_released_code(name: str) -> None:
    file = golden(name)
    inputs = {key: x.double() for key, x in file["inputs"].items() if key != "labels"}
    loss = loss_from_released(
        s3_cfg=file["s3_cfg"],
        s4_cfg=file["s4_cfg"],
        kd_cfg=file["kd_cfg"],
        state_dict=file["state_dict"],
    )
    loss.double().train(file["module_mode"] == "train")
    grid = (inputs["t4"].shape[2], inputs["t4"].shape[3])

    def logits(features: torch.Tensor, fc: dict[str, torch.Tensor]) -> torch.Tensor:
        return features.mean((2, 3)) @ fc["weight"].double().T + fc["bias"].double()

    student = Features(inputs["s3"], inputs["s4"], logits(inputs["s4"], file["student_fc"]))
    teacher = Features(inputs["t3"], inputs["t4"], logits(inputs["t4"], file["teacher_fc"]))
    released = ReleasedStructure(loss, loss.weights, grid).double()
    terms = released(student, teacher, Tail().double())
    for theirs, expected in file["f64"]["losses"].items():
        if theirs != "ori_loss":
            ours = terms[TERMS[theirs]].item()
            assert ours == pytest.approx(expected.item(), rel=1e-9), theirs


def test_a_step_is_timed_beside_the_released_structure() -> None:
    words = ["--teacher", "test_vit", "--teacher_args", "{img_size: 48}", "--student", "test_vit"]
    words += ["--student_args", "{img_size: 48}", "--data.image_size", "48", "--batch_size", "2"]
    command = [sys.executable, str(STEP), *words, "--threads", "1", "--device", "cpu", "--json"]
    done = subprocess.run([*command, "--repetitions", "2"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["difference_of_losses"] < 1e-5
    assert report["step_seconds"]["low"] > 0
    assert 0 < report["peak_bytes"] <= report["reference_peak_bytes"]
    assert report["gflop_per_image"] > 0
    assert report["batch"] == 2


def test_a_step_is_timed_for_several_batch_sizes() -> None:
    batches = [(str(n), replace(RECIPE, batch_size=n)) for n in (2, 4)]
    few, more = benchmark_setting("batch", batches, 2, torch.device("cpu"))
    assert few.gflop_per_image == pytest.approx(more.gflop_per_image, rel=0.01)
    assert few.peak_bytes < more.peak_bytes
    assert few.images_per_second == pytest.approx(2 / few.step_seconds.median)


def test_several_students_under_one_teacher_are_timed_beside_each_student_by_itself() -> None:
    recipe = replace(RECIPE, student="test_resnet")
    names = ("test_resnet", "test_efficientnet")
    one, other, both = benchmark_students(recipe, names, 2, torch.device("cpu"))
    assert (one.value, other.value) == names
    saved = one.gflop_per_image + other.gflop_per_image - both.gflop_per_image
    teacher = create_model("test_vit", img_size=48).eval()
    with FlopCounterMode(display=False) as counter:
        teacher(torch.zeros(1, 3, 48, 48))
    assert saved == pytest.approx(counter.get_total_flops() / 1e9, rel=1e-3)
    assert max(one.peak_bytes, other.peak_bytes) < both.peak_bytes
    assert both.peak_bytes < one.peak_bytes + other.peak_bytes
    assert both.ratio is not None
    assert one.ratio is None
