"""Exported files agree with their models, run without this package, and are refused otherwise."""

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers.pictures import flat_folder, image_folder
from helpers.refusals import refused
from torch import nn

from scalekd.data.open import open_validation
from scalekd.evaluation.opened_model import open_model
from scalekd.export import export as export_module
from scalekd.export import onnx_file
from scalekd.export.export import Format, export
from scalekd.export.trace import trace
from scalekd.networks.input_config import normalize_bytes
from scalekd.networks.student import StudentSpec, export_student
from scalekd.recipe import Data

NAMES = ("ant", "bee", "cat")


def folder(root: Path, name: str = "test_resnet", **arguments: Any) -> Path:
    """The exported folder of a student of three classes for images of 32 pixels, with logits that
    differ from image to image."""
    torch.manual_seed(0)
    spec = StudentSpec(name, arguments, 3, None, (32, 32), class_names=NAMES)
    student = spec.build()
    for layer in student.modules():
        if isinstance(layer, nn.Linear) and layer.out_features == 3:
            nn.init.normal_(layer.weight)
    spec.export(student.eval(), root / name)
    return root / name


def load_in_timm(student: Path) -> Any:
    return timm.create_model(f"local-dir:{student}", pretrained=True).eval()


def run_without_package(script: str, cwd: Path) -> Any:
    """What a script prints as JSON, in an interpreter that cannot import scalekd."""
    prologue = "import sys, json, torch\nsys.modules['scalekd'] = None\n"
    command = [sys.executable, "-c", prologue + script]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=cwd)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


RUN_ALL = """
from pathlib import Path
import onnxruntime
images, given = torch.load("images.pth"), {}
for file in Path().glob("*.onnx"):
    session = onnxruntime.InferenceSession(file)
    run = lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    given[file.name] = torch.cat([run(part) for part in images.split([1, 4])]).tolist()
for file in Path().glob("*.pt2"):
    run = torch.export.load(file).module()
    given[file.name] = torch.cat([run(part) for part in images.split([1, 4])]).tolist()
print(json.dumps(given))
"""


def test_files_give_the_models_logits_without_this_package(tmp_path: Path) -> None:
    pixels = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    torch.save(pixels, tmp_path / "images.pth")
    expected = {}
    for name in ("test_resnet", "test_vit"):
        model = load_in_timm(folder(tmp_path, name))
        mean, std = (torch.tensor(model.pretrained_cfg[k]).view(3, 1, 1) for k in ("mean", "std"))
        for format, inside in (("onnx", name == "test_vit"), ("pt2", name == "test_resnet")):
            file = tmp_path / f"{name}.{format}"
            report = export(str(tmp_path / name), file, format, normalize_inside=inside)
            assert report.description.normalization_inside == inside
            assert report.comparison.batch_sizes == (1, 3)
            assert report.comparison.count == 25
            assert report.comparison.relative_difference < 1e-4
            assert report.comparison.class_agreement == 1
            with torch.no_grad():
                expected[file.name] = model((pixels - mean) / std if inside else pixels)
            assert expected[file.name].std() > 0.01
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == sorted(["images.pth", "test_resnet", "test_vit", *expected])  # nothing else
    _check_descriptions(tmp_path)
    given = run_without_package(RUN_ALL, cwd=tmp_path)
    assert given.keys() == expected.keys()
    for name, logits in expected.items():
        torch.testing.assert_close(torch.tensor(given[name]), logits, atol=1e-5, rtol=1e-4)


def _check_descriptions(root: Path) -> None:
    opened = open_model(str(root / "test_resnet.onnx"))
    assert opened.class_names == NAMES
    assert opened.input == open_model(str(root / "test_resnet")).input
    stored = {"scalekd": ""}
    torch.export.load(root / "test_resnet.pt2", extra_files=stored)
    plain = json.loads(stored["scalekd"])
    assert plain["label_names"] == list(NAMES)
    assert plain["input_size"] == [3, 32, 32]
    assert plain["normalization_inside"] is True


def test_an_int8_file_is_smaller_and_measured_beside_its_model(tmp_path: Path) -> None:
    student, images = folder(tmp_path), image_folder(tmp_path / "images")
    data = Data(str(images), workers=0)
    export(str(student), tmp_path / "float.onnx", "onnx", data)
    report = export(
        str(student), tmp_path / "s.onnx", "onnx-int8", data, calibration_images=10, max_loss=1
    )
    assert report.bytes < 0.5 * (tmp_path / "float.onnx").stat().st_size
    assert report.calibration_images == 10
    assert report.calibrated_on == f"training images of {images}"
    accuracy = report.accuracy
    assert accuracy is not None
    assert accuracy.count == 12
    assert accuracy.file_top1 == _top1(open_model(str(tmp_path / "s.onnx")), data)
    assert accuracy.model_top1 == _top1(open_model(str(student)), data)
    assert "validation images" in report.comparison.images
    assert report.comparison.relative_difference > 1e-3  # it is rounded indeed


def _top1(opened: Any, data: Data) -> float:
    source = open_validation(data)
    assert source.validation_set is not None
    images, labels = zip(*source.validation_set(opened.input), strict=True)
    with torch.no_grad():
        guesses = opened.network(normalize_bytes(torch.stack(images), opened.input)).argmax(1)
    return float((guesses == torch.tensor(labels)).double().mean())


def test_an_int8_file_that_loses_too_much_is_not_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_another(network: Any, file: Path, description: Any, _: Any) -> None:
        other = copy.deepcopy(network)
        other.fc.weight.data.neg_()
        other.fc.bias.data.neg_()
        onnx_file.write_onnx(other, file, description)

    monkeypatch.setattr(export_module, "write_int8", write_another)
    student, images = folder(tmp_path), flat_folder(tmp_path / "images")
    data = Data(str(images), workers=0)
    with refused("another class", "100.0% of 8 training images", "max_loss is 5.0%", "removed"):
        export(str(student), tmp_path / "s.onnx", "onnx-int8", data)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "test_resnet"]


def test_a_file_that_does_not_agree_is_not_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = folder(tmp_path)

    def trace_another(network: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            next(network.parameters()).mul_(1.05)
        program = trace(network, *args, **kwargs)
        with torch.no_grad():
            next(network.parameters()).div_(1.05)
        return program

    monkeypatch.setattr(onnx_file, "trace", trace_another)
    with refused("other logits than its model", "25 images of noise", "removed"):
        export(str(student), tmp_path / "s.onnx", "onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["test_resnet"]


class LooksAtValues(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images if images.sum() > 0 else -images


def test_a_network_that_cannot_be_traced_is_refused_with_its_module(tmp_path: Path) -> None:
    student = load_in_timm(folder(tmp_path, "test_vit"))
    student.blocks[1].mlp = LooksAtValues()
    images = open_model(str(tmp_path / "test_vit")).input
    with refused("'blocks.1.mlp'", "LooksAtValues", "--format timm"):
        trace(student, images, normalize_inside=False, plain_attention=False)


@pytest.mark.parametrize(
    ("format", "out", "changes", "pieces"),
    [
        ("onnx-int8", "s.onnx", {}, ("no", "--data.root")),
        ("onnx", "s.pt2", {}, ("s.pt2", ".onnx")),
        ("pt2", "s", {}, ("'", ".pt2")),
        ("timm", "s.onnx", {}, ("s.onnx", "--format onnx")),
        ("timm", "s", {"normalize_inside": True}, ("normalize_inside",)),
        ("onnx", "taken.onnx", {}, ("taken.onnx", "exists")),
        ("onnx", "s.onnx", {"calibration_images": 9}, ("calibration_images is 9", "onnx-int8")),
        ("pt2", "s.pt2", {"max_loss": 0.1}, ("max_loss is 0.1", "format is pt2")),
        (
            "onnx-int8",
            "s.onnx",
            {"calibration_images": 0, "data": Data("x")},
            ("calibration_images is 0",),
        ),
        ("onnx-int8", "s.onnx", {"max_loss": 2.0, "data": Data("x")}, ("max_loss is 2.0",)),
    ],
)
def test_wrong_options_are_refused_before_anything_is_loaded(
    format: Format, out: str, changes: Any, pieces: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "taken.onnx").write_text("precious")
    with refused(*pieces):
        export("no model at all", tmp_path / out, format, **changes)
    assert (tmp_path / "taken.onnx").read_text() == "precious"
    assert len(list(tmp_path.iterdir())) == 1


def test_images_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with refused("3x32x32", "validation images of digits are 1x32x32"):
        export(str(folder(tmp_path)), tmp_path / "s.onnx", "onnx", Data("digits"))
    assert not (tmp_path / "s.onnx").exists()


def test_a_folder_is_copied_and_loaded_by_timm(tmp_path: Path) -> None:
    student = folder(tmp_path)
    report = export(str(student), tmp_path / "again")
    assert report.comparison.largest_difference == 0
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (student / name).read_bytes()
    with refused("data.crop", "config.json"):
        export(str(student), tmp_path / "b", "timm", Data("digits", crop=0.5))


def test_a_model_without_classifier_gives_features(tmp_path: Path) -> None:
    model = timm.create_model("test_resnet", num_classes=0).eval()
    export_student(model, tmp_path / "features", {"num_classes": 0})
    report = export(str(tmp_path / "features"), tmp_path / "s.onnx", "onnx")
    assert report.classes == 0
    assert open_model(str(tmp_path / "s.onnx")).network(torch.zeros(1, 3, 160, 160)).shape[1] > 3


SMALL: dict[str, dict[str, Any]] = {
    "test_resnet": {},
    "mixer_s32_224": {},
    "test_vit": {},
    "swin_tiny_patch4_window7_224": {
        "embed_dim": 16,
        "depths": (1, 2),
        "num_heads": (1, 2),
        "window_size": 4,
    },
    "test_convnext": {},
}


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "pt2"])
@pytest.mark.parametrize("name", SMALL)
def test_a_student_of_each_kind_is_exported(name: str, format: Format, tmp_path: Path) -> None:
    student = folder(tmp_path, name, **SMALL[name])
    images = image_folder(tmp_path / "images")
    data = Data(str(images), workers=0)
    report = export(str(student), tmp_path / f"s.{format}", format, data)
    assert report.comparison.class_agreement == 1
    assert report.comparison.relative_difference < 1e-4
    assert report.comparison.images == f"validation images of {images}"
