"""Images of a size that is no square, from the option to the exported student."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from helpers.pictures import flat_folder, image_folder
from helpers.refusals import refused
from PIL import Image
from torch import Tensor, nn

from scalekd.cli.main import main
from scalekd.data.loader import build_loaders
from scalekd.data.open import open_source
from scalekd.evaluation.evaluate import evaluate
from scalekd.export.checkpoint import export_checkpoint
from scalekd.jobs.distill import distill
from scalekd.networks import InputConfig
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
    model: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True)
    return model.eval()


@pytest.mark.parametrize("family", STUDENTS)
def test_a_student_of_wide_images_comes_back_at_its_size(
    family: str, pictures: Path, tmp_path: Path
) -> None:
    wide = recipe(pictures, *STUDENTS[family])
    out = distill(wide, tmp_path / "out", parallel=1)
    checkpoint = RunFolder(out).checkpoint(Run("scalekd", 1))
    trained, spec = load_student(checkpoint)
    assert spec.size == WIDE
    export_checkpoint(checkpoint, tmp_path / "again")
    for folder in (out / "student", tmp_path / "again"):
        student = loaded(folder)
        assert tuple(student.pretrained_cfg["input_size"]) == (3, *WIDE)
        with torch.no_grad():
            assert torch.equal(student(images()), trained(images()))
    arguments = json.loads((out / "student" / "config.json").read_text())["model_args"]
    bound = family != "a CNN"
    assert arguments.get("img_size") == (list(WIDE) if bound else None)
    measured = json.loads((out / "summary.json").read_text())["student_top1"]
    assert evaluate(str(out / "student"), Data(str(pictures))) == measured
    assert evaluate(str(out / "student"), wide.data) == measured
    assert 0 <= evaluate(str(out / "student"), replace(wide.data, image_size=(96, 64))) <= 1


def test_images_without_labels_may_be_wide_too(tmp_path: Path) -> None:
    wide = recipe(flat_folder(tmp_path / "flat"), *STUDENTS["a ViT"])
    out = distill(wide, tmp_path / "out", parallel=1)
    assert loaded(out / "student").patch_embed.grid_size == (4, 6)


def test_a_checkpoint_from_before_sizes_were_kept_is_read(pictures: Path, tmp_path: Path) -> None:
    square = recipe(pictures, "test_resnet", {})
    out = distill(
        replace(square, data=replace(square.data, image_size=None)), tmp_path / "out", parallel=1
    )
    file = RunFolder(out).checkpoint(Run("scalekd", 1))
    kept = torch.load(file, weights_only=True)
    assert kept["scalekd_student"].pop("size") is None
    torch.save(kept, file)
    assert load_student(file)[1] == StudentSpec("test_resnet", {}, 3, None)


def test_a_size_is_a_side_or_height_and_width() -> None:
    assert Data("x").size is None
    assert Data("x", 64).size == (64, 64)
    assert Data("x", WIDE).size == WIDE
    assert Data("digits", 32).size == Data("digits", (32, 32)).size
    open_source(Data("digits", (32, 32)))
    with refused("data.image_size", "(32, 48)", "32x32"):
        open_source(Data("digits", (32, 48)))


@pytest.mark.parametrize("size", [0, -3, (64, 0), (-1, 64), (64,), (64, 64, 3)])
def test_other_sizes_are_refused(size: Any) -> None:
    with refused(f"data.image_size is {size}", "more than 0"):
        Data("x", size)


@pytest.mark.parametrize(("said", "meant"), [("64", 64), ("[64, 96]", [64, 96])])
def test_a_size_survives_the_command_line_and_the_settings(
    said: str, meant: int | list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["--teacher", "a", "--student", "b", "--data.root", "c"]

    def printed(*arguments: str) -> Any:
        with pytest.raises(SystemExit) as ended:
            main(["distill", *arguments, "--print_config"])
        assert ended.value.code == 0
        return yaml.safe_load(capsys.readouterr().out)

    first = printed(*names, "--data.image_size", said)
    assert first["data"]["image_size"] == meant
    size = tuple(meant) if isinstance(meant, list) else meant
    settings = tmp_path / "settings.yaml"
    settings.write_text(yaml.safe_dump(Recipe("a", "b", Data("c", size)).as_dict()))
    assert printed("--config", str(settings)) == first


@pytest.mark.parametrize("said", ["64x96", "[64]", "[64, 96, 3]", "[64, big]"])
def test_a_size_of_another_kind_is_refused_in_one_line(
    said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["distill", "--data.image_size", said])
    assert ended.value.code == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "data.image_size" in line


def ramps(folder: Path, size: tuple[int, int]) -> Path:
    """Pictures whose red is the column of a pixel and whose green is its row."""
    image_folder(folder, each=1)
    rows, columns = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    pixels = torch.stack([columns, rows, torch.zeros_like(rows)], 2).to(torch.uint8).numpy()
    for file in folder.rglob("*.jpg"):
        file.unlink()
        Image.fromarray(pixels).save(file.with_suffix(".png"))
    return folder


@pytest.mark.parametrize("size", [(100, 150), (150, 100), (100, 240), (240, 100)])
def test_in_validation_the_middle_is_cut_out_undistorted(
    size: tuple[int, int], tmp_path: Path
) -> None:
    config = InputConfig(3, WIDE, (0, 0, 0), (1 / 255, 1 / 255, 1 / 255))
    validation = open_source(Data(str(ramps(tmp_path / "ramps", size)), WIDE)).validation_set
    assert validation is not None
    image, _ = validation(config)[0]
    assert image.shape == (3, *WIDE)
    across = (image[0, :, -8] - image[0, :, 8]).mean().item() / (WIDE[1] - 16)
    down = (image[1, -8, :] - image[1, 8, :]).mean().item() / (WIDE[0] - 16)
    assert across == pytest.approx(down, rel=0.05)
    # An edge of seven eighths of the picture is seen whole, the other is cut further.
    assert across == pytest.approx(min(size[0] / 73, size[1] / 109), rel=0.05)
    middle = image[:, WIDE[0] // 2 - 1 : WIDE[0] // 2 + 1, WIDE[1] // 2 - 1 : WIDE[1] // 2 + 1]
    assert middle[0].mean().item() == pytest.approx(size[1] / 2, abs=2)
    assert middle[1].mean().item() == pytest.approx(size[0] / 2, abs=2)


@pytest.mark.parametrize("size", [WIDE, (96, 64), (64, 64)])
def test_in_training_crops_are_stretched_as_often_as_they_are_squeezed(
    size: tuple[int, int], tmp_path: Path
) -> None:
    config = InputConfig(3, size, (0, 0, 0), (1 / 255, 1 / 255, 1 / 255))
    data = Data(str(ramps(tmp_path / "ramps", (200, 200))), size, workers=0)
    train, _ = build_loaders(open_source(data), data, config, batch_size=3, seed=0, epochs=20)
    stretches = []
    for batch, _ in train:
        across = (batch[:, 0, :, -8] - batch[:, 0, :, 8]).abs().mean(1) / (size[1] - 16)
        down = (batch[:, 1, -8, :] - batch[:, 1, 8, :]).abs().mean(1) / (size[0] - 16)
        stretches += (across / down).tolist()
    assert max(stretches) < 4 / 3 * 1.1
    assert min(stretches) > 3 / 4 / 1.1
    assert torch.tensor(stretches).log().mean().abs() < 0.1
