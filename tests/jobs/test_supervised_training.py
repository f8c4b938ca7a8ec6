"""`scalekd train`: the student of a recipe without its teacher."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import yaml
from helpers.pictures import flat_folder, image_folder
from helpers.refusals import refused
from helpers.tiny import tiny

from scalekd.cli.main import main
from scalekd.jobs.distill import distill
from scalekd.recipe import Data, Optim, Recipe
from scalekd.runs.folder import RunFolder
from scalekd.runs.result import Run


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A distillation with its supervised baseline."""
    pictures = image_folder(tmp_path_factory.mktemp("data") / "pictures")
    optim = Optim(warmup_epochs=0.5)
    return tiny(pictures, epochs=2, optim=optim, seeds=[3], compare=["supervised"])


def test_training_without_a_teacher_is_bit_identical_to_the_supervised_baseline(
    recipe: Recipe, tmp_path: Path
) -> None:
    compared = distill(recipe, tmp_path / "compared", parallel=1)
    without_teacher = replace(recipe, teacher=None, compare=[])
    supervised = distill(without_teacher, tmp_path / "supervised", parallel=1)
    run = Run("supervised", 3)
    for out in (compared, supervised):
        assert RunFolder(out).checkpoint(run).exists()
    measured = [
        [
            (line["step"], line["loss"], line["top1"])
            for line in map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
            if line["method"] == "supervised"
        ]
        for out in (compared, supervised)
    ]
    assert measured[0] == measured[1]
    assert len(measured[0]) >= 2


def test_the_run_folder_has_a_student_and_settings_without_a_teacher(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cheaper = replace(recipe, separable_stem=True)  # a setting of projectors, which are not built
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(cheaper.as_dict()))
    words = ["train", "--config", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "out")]
    main([*words, "--parallel", "1"])
    printed = capsys.readouterr().out
    assert "test_resnet" in printed
    assert "is trained without a teacher (supervised baseline)" in printed
    assert "projected" not in printed
    assert "separable_stem" not in printed
    student = timm.create_model(f"local-dir:{tmp_path}/out/student", pretrained=True)
    assert student.num_classes == 3
    settings = yaml.safe_load((tmp_path / "out" / "settings.yaml").read_text())
    assert settings["teacher"] is None
    assert settings["compare"] == []
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["supervised_top1"] is not None
    assert summary["student_top1"] is summary["teacher_top1"] is None
    with pytest.raises(SystemExit):
        main(["distill", *words[1:], "--resume"])
    assert "was created with" in capsys.readouterr().err


def test_no_teacher_is_needed_on_the_command_line(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--student", "test_resnet", "--data.root", recipe.data.root, "--data.image_size", "64"]
    words += ["--epochs", "1", "--optim.warmup_epochs", "0", "--batch_size", "4"]
    main(["train", *words, "--out", str(tmp_path / "out"), "--data.workers", "0"])
    assert (tmp_path / "out" / "student").is_dir()
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["distill", *words])
    assert "--teacher" in capsys.readouterr().err


def test_training_without_a_teacher_and_without_labels_is_refused(tmp_path: Path) -> None:
    flat = Recipe(None, "test_resnet", Data(str(flat_folder(tmp_path / "flat")), 64), batch_size=4)
    with refused("a student without a teacher learns from labels", "scalekd distill"):
        distill(flat, tmp_path / "out")
    assert not (tmp_path / "out").exists()
