"""Images that are not square, from the option to the exported student."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import timm
import torch
import yaml
from helpers.evaluating import top1_of
from helpers.pictures import flat_folder, image_folder
from helpers.refusals import refused
from torch import Tensor, nn

from scalekd.cli.main import main
from scalekd.data.open import open_source
from scalekd.export.export import export
from scalekd.jobs.distill import distill
from scalekd.networks.student import StudentSpec
from scalekd.recipe import Data, Optim, Recipe
from scalekd.runs.checkpoint import load_student
from scalekd.runs.folder import RunFolder
from scalekd.runs.result import Run

WIDE = (64, 96)
STUDENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "a ViT": ("vit_tiny_patch16_224", {"embed_dim": 32, "depth": 3, "num_heads": 2}),
    "a Swin": (
        "swin_tiny_patch4_window7_224",
        {"embed_dim": 24, "depths": [1, 1, 1], "num_heads": [1, 2, 4], "window_size": 4},
    ),
    "a CNN": ("test_resnet", {}),
}


def recipe(root: Path, student: str, arguments: dict[str, Any]) -> Recipe:
    return Recipe(
        "test_vit",
        student,
        Data(str(root), WIDE, workers=0),
        teacher_weights="random",
        student_args=arguments,
        epochs=1,
        batch_size=4,
        optim=Optim(warmup_epochs=0),
        seeds=[1],
    )


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("data") / "pictures")


def images() -> Tensor:
    return torch.randn(2, 3, *WIDE, generator=torch.Generator().manual_seed(0))


def loaded(folder: Path) -> nn.Module:
    """The student as timm loads it, with fused attention for Swins, too, as it was trained with."""
    with patch.object(timm.layers.config, "_USE_FUSED_ATTN", 2):
        model: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True)
    return model.eval()


@pytest.mark.parametrize("family", STUDENTS)
def test_a_student_of_wide_images_is_exported_with_its_size(
    family: str, pictures: Path, tmp_path: Path
) -> None:
    wide = recipe(pictures, *STUDENTS[family])
    out = distill(wide, tmp_path / "out", parallel=1)
    checkpoint = RunFolder(out).checkpoint(Run("scalekd", 1))
    trained, spec = load_student(checkpoint)
    assert spec.size == WIDE
    export(str(checkpoint), tmp_path / "again")
    for folder in (out / "student", tmp_path / "again"):
        student = loaded(folder)
        assert tuple(student.pretrained_cfg["input_size"]) == (3, *WIDE)
        with torch.no_grad():
            assert torch.equal(student(images()), trained(images()))
    arguments = json.loads((out / "student" / "config.json").read_text())["model_args"]
    has_fixed_size = family != "a CNN"
    assert arguments.get("img_size") == (list(WIDE) if has_fixed_size else None)
    measured = json.loads((out / "summary.json").read_text())["student_top1"]
    assert top1_of(str(out / "student"), Data(str(pictures))) == measured
    assert top1_of(str(out / "student"), wide.data) == measured
    assert 0 <= top1_of(str(out / "student"), replace(wide.data, image_size=(96, 64))) <= 1


def test_wide_images_without_labels_are_trained_on(tmp_path: Path) -> None:
    wide = recipe(flat_folder(tmp_path / "flat"), *STUDENTS["a ViT"])
    out = distill(wide, tmp_path / "out", parallel=1)
    assert loaded(out / "student").patch_embed.grid_size == (4, 6)


def test_a_checkpoint_without_an_image_size_is_read(pictures: Path, tmp_path: Path) -> None:
    square = recipe(pictures, "test_resnet", {})
    out = distill(
        replace(square, data=replace(square.data, image_size=None)), tmp_path / "out", parallel=1
    )
    file = RunFolder(out).checkpoint(Run("scalekd", 1))
    checkpoint = torch.load(file, weights_only=True)
    assert checkpoint["scalekd_student"].pop("size") is None
    torch.save(checkpoint, file)
    spec = StudentSpec("test_resnet", {}, 3, None, class_names=("ant", "bee", "cat"))
    assert load_student(file)[1] == spec


def test_an_image_size_is_a_side_or_height_and_width() -> None:
    assert Data("x").size is None
    assert Data("x", 64).size == (64, 64)
    assert Data("x", WIDE).size == WIDE
    assert Data("digits", 32).size == Data("digits", (32, 32)).size
    open_source(Data("digits", (32, 32)))
    with refused("data.image_size", "(32, 48)", "32x32"):
        open_source(Data("digits", (32, 48)))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, "more than 0"),
        (-3, "more than 0"),
        ((64, 0), "more than 0"),
        ((-1, 64), "more than 0"),
        ((64,), "expected a whole number or"),
        ((64, 64, 3), "expected a whole number or"),
    ],
)
def test_an_image_size_that_is_not_one_or_two_positive_numbers_is_refused(
    size: Any, expected: str
) -> None:
    with refused(f"data.image_size is {size}", expected):
        Data("x", size)


@pytest.mark.parametrize(("text", "value"), [("64", 64), ("[64, 96]", [64, 96])])
def test_an_image_size_survives_the_command_line_and_settings_yaml(
    text: str, value: int | list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["--teacher", "a", "--student", "b", "--data.root", "c"]

    def printed(*arguments: str) -> Any:
        with pytest.raises(SystemExit) as ended:
            main(["distill", *arguments, "--print_config"])
        assert ended.value.code == 0
        return yaml.safe_load(capsys.readouterr().out)

    first = printed(*names, "--data.image_size", text)
    assert first["data"]["image_size"] == value
    size = tuple(value) if isinstance(value, list) else value
    settings = tmp_path / "settings.yaml"
    settings.write_text(yaml.safe_dump(Recipe("a", "b", Data("c", size)).as_dict()))
    assert printed("--config", str(settings)) == first


@pytest.mark.parametrize("text", ["64x96", "[64]", "[64, 96, 3]", "[64, big]"])
def test_an_image_size_of_another_type_is_refused_in_one_line(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["distill", "--data.image_size", text])
    assert ended.value.code == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "data.image_size" in line
