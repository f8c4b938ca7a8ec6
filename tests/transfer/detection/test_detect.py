"""`scalekd transfer detect` as a person starts it: what it leaves, kills, ranks and refusals."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers.objects import CLASSES, SIDE, change_coco, coco_folder, tiny_detection
from helpers.real_runs import finish, metrics_lines
from helpers.refusals import refused
from helpers.transfers import (
    assert_same_gradients,
    checkpoint_of,
    start,
    state_of,
    train_undisturbed_and_disturbed,
)
from PIL import Image

from scalekd.cli.main import main
from scalekd.recipe import Optim
from scalekd.runs.checkpoint import load_student
from scalekd.runs.folder import RunFolder
from scalekd.runs.status import read_run_folder
from scalekd.transfer.detection.detect import detect
from scalekd.transfer.detection.detector import load_detector
from scalekd.transfer.detection.prepare import PreparedDetection
from scalekd.transfer.detection.recipe import RECIPES, DetectRecipe, find_detect_recipe

TASK = PreparedDetection.task


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return coco_folder(tmp_path_factory.mktemp("objects") / "objects")


def test_the_command_goes_from_images_to_pictures_and_a_file_of_scores(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    words = ["transfer", "detect", "--backbone", "timm:test_resnet"]
    words += ["--backbone_weights", "random", "--data.root", str(root), "--data.short_side", "48"]
    words += ["--data.long_side", "64", "--data.workers", "0", "--head_channels", "8"]
    words += ["--anchor_scale", "4", "--epochs", "6", "--batch_size", "4", "--optim.lr", "3e-3"]
    main([*words, "--log_every", "1", "--validate_every", "3", "--out", str(out)])
    assert "mask AP" in capsys.readouterr().out
    scores = json.loads((out / "detection.json").read_text())
    assert (scores["steps"], scores["head"]) == (12, "mask_rcnn")
    assert [c["name"] for c in scores["classes"]] == list(CLASSES)
    assert scores["box"].keys() == scores["mask"].keys() >= {"ap", "ap50", "small", "large"}
    confusion = np.array(scores["confusion"])
    assert confusion.shape == (3, 3)
    assert confusion[:2].sum() == sum(c["objects"] for c in scores["classes"]) == 6
    for name in ("predictions.png", "confusion.png"):
        with Image.open(out / name) as picture:
            assert min(picture.size) > 300
    lines = metrics_lines(out)
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert lines[-1]["scores"].keys() == {"box_ap", "mask_ap"}
    assert lines[-1]["loss"] < lines[0]["loss"]
    detector, spec = load_detector(out / "detector")
    assert spec.class_names == CLASSES
    assert detector([torch.zeros(3, SIDE, SIDE)])[0]["masks"].shape[2:] == (SIDE, SIDE)
    with refused("transfer", "no student"):
        load_student(checkpoint_of(TASK, out, seed=0))
    status = read_run_folder(RunFolder(out))
    assert (status.state, status.transfer) == ("finished", "detection")
    assert status.scores.keys() == {"box_ap", "mask_ap"}


def test_a_run_that_is_killed_and_stopped_ends_bit_identical(root: Path, tmp_path: Path) -> None:
    """By -9, and by a signal after which it saves its step; with BatchNorm, two micro-batches, two
    lengths of the short side and a loading process."""
    recipe = tiny_detection(root, epochs=12, accumulate=2, save_steps=3, validate_every=4)
    recipe = replace(recipe, data=replace(recipe.data, short_side=(32, SIDE), workers=1))
    out = train_undisturbed_and_disturbed(TASK, recipe, tmp_path)
    scores = [json.loads((each / "detection.json").read_text()) for each in out]
    assert scores[0]["box"] == scores[1]["box"]
    assert scores[0]["confusion"] == scores[1]["confusion"]


def test_the_gradients_of_two_ranks_are_those_of_two_micro_batches(
    root: Path, tmp_path: Path
) -> None:
    """What is drawn depends on step and micro-batch, so one device with two micro-batches computes
    what two devices do; after one step of momentum its buffer is the gradient. Three validation
    images are odd."""
    optim = Optim("momentum", lr=0.1, weight_decay=0.0, warmup_epochs=0, clip=0.0)
    recipe = tiny_detection(
        root, backbone="timm:test_convnext", epochs=1, steps=1, optim=optim, batch_size=8
    )
    detect(replace(recipe, accumulate=2), tmp_path / "one")
    finish(start(TASK, recipe, tmp_path / "two", "--devices", "2"))
    assert_same_gradients(*(state_of(TASK, tmp_path / name) for name in ("one", "two")))
    scores = [json.loads((tmp_path / n / "detection.json").read_text()) for n in ("one", "two")]
    assert scores[0]["box"]["ap"] == pytest.approx(scores[1]["box"]["ap"], abs=1e-3)
    assert scores[0]["validation_images"] == scores[1]["validation_images"] == 3


@pytest.mark.parametrize("head", ["faster_rcnn", "linear"])
def test_without_masks_only_boxes_are_trained_and_measured(
    head: Any, root: Path, tmp_path: Path
) -> None:
    recipe = tiny_detection(root, head=head, backbone="timm:test_vit", frozen=head == "linear")
    grey = replace(recipe, backbone_args={"in_chans": 1})
    out = detect(grey, tmp_path / "run")
    scores = json.loads((out / "detection.json").read_text())
    assert scores["mask"] is None
    assert scores["box"]["ap"] is not None
    assert metrics_lines(out)[-1]["scores"].keys() == {"box_ap"}
    before = (out / "detection.json").read_text()
    assert detect(grey, out, resume=True) == out
    assert (out / "detection.json").read_text() == before


def test_masks_that_a_head_does_not_use_are_not_read(root: Path, tmp_path: Path) -> None:
    other = tmp_path / "objects"
    shutil.copytree(root, other)
    for number in range(2):
        segmentation = {"size": [9, 9], "counts": [81]}
        change_coco(other, "val", "annotations", number, segmentation=segmentation)
    with refused("the mask is 9x9"):
        detect(tiny_detection(other), tmp_path / "masks")
    out = detect(tiny_detection(other, head="faster_rcnn"), tmp_path / "boxes")
    assert (out / "predictions.png").is_file()


def test_a_run_is_not_resumed_with_other_annotations(root: Path, tmp_path: Path) -> None:
    recipe = tiny_detection(root, head="faster_rcnn")
    out = detect(recipe, tmp_path / "run")
    other = coco_folder(tmp_path / "other", training=9)
    with refused("another number of images"):
        detect(replace(recipe, data=replace(recipe.data, root=str(other))), out, resume=True)
    with refused("exists"):
        detect(recipe, out)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--data.root", "nowhere"], ["no folder 'nowhere'"]),
        (["--backbone", "nowhere"], ["no folder 'nowhere'"]),
        (["--backbone", "timm:mixer_s32_224"], ["mixer_s32_224"]),
        (["--backbone", "timm:vit_base_patch14_dinov2"], ["[14]", "patch_size: 16"]),
        (["--backbone_args", "{in_chans: 5}"], ["5 channels"]),
        (["--batch_size", "16"], ["8 images", "16"]),
        (["--batch_size", "1"], ["BatchNorm", "2"]),
        (["--data.short_side", "0"], ["data.short_side is 0", "from 1"]),
        (["--data.short_side", "[48,96]"], ["data.short_side is 96", "data.long_side 64"]),
        (["--anchor_scale", "0"], ["anchor_scale is 0"]),
        (["--frozen_stages", "9"], ["frozen_stages is 9", "levels"]),
        (["--min_score", "2"], ["min_score is 2"]),
        (["--data.epoch_images", "99"], ["data.epoch_images is 99", "8 images"]),
        (
            ["--epochs", "9", "--steps", "6", "--optim.drops", "[1,3]"],
            ["steps is 6", "before epoch 3 of optim.drops"],
        ),
        (["--optim.drops", "[8]"], ["optim.drops", "between 0 and the 1 epochs"]),
        (["--recipe", "coco"], ["'coco'", "detect-resnet50"]),
        (["--head", "upernet"], ["head"]),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") else "",
)
def test_bad_input_is_refused_in_one_line_before_the_first_step(
    options: list[str],
    parts: list[str],
    root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = {
        "--backbone": "timm:test_resnet",
        "--backbone_weights": "random",
        "--data.root": str(root),
        "--data.short_side": "48",
        "--data.long_side": "64",
        "--data.workers": "0",
        "--head_channels": "8",
        "--batch_size": "4",
        "--epochs": "1",
        "--out": str(tmp_path / "run"),
        **dict(zip(options[::2], options[1::2], strict=True)),
    }
    with pytest.raises(SystemExit) as ended:
        main(["transfer", "detect", *(word for pair in settings.items() for word in pair)])
    assert ended.value.code == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1, line
    assert [part for part in parts if part not in line] == [], line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("file", sorted(RECIPES.glob("*.yaml")), ids=lambda file: file.stem)
def test_each_packaged_recipe_has_the_papers_protocol(file: Path) -> None:
    assert find_detect_recipe(file.stem) == file
    text = file.read_text()
    assert "The paper's: " in text
    assert "not run here" in text
    settings = yaml.safe_load(text)
    assert (settings["epochs"], settings["batch_size"]) == (12, 16)
    assert settings["optim"]["drops"] == [8, 11]
    assert settings["data"]["short_side"] == 800
    assert settings["data"]["empty_images"] is False


def test_a_packaged_recipe_is_smoked(tmp_path: Path) -> None:
    """The Swin's, in a narrow form; the slow test runs all as they are."""
    narrow = {"embed_dim": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 3, 4]}
    words = ["transfer", "detect", "--recipe", "detect-swin_tiny", "--smoke"]
    words += ["--backbone_args", json.dumps(narrow), "--head_channels", "8"]
    main([*words, "--out", str(tmp_path / "run")])
    assert json.loads((tmp_path / "run/detection.json").read_text())["steps"] == 4


@pytest.mark.slow
@pytest.mark.parametrize("file", sorted(RECIPES.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_packaged_recipe_smokes(file: Path, tmp_path: Path) -> None:
    main(["transfer", "detect", "--recipe", file.stem, "--smoke", "--out", str(tmp_path / "run")])
    assert json.loads((tmp_path / "run/detection.json").read_text())["steps"] == 4


def test_a_recipe_is_read_from_what_it_writes() -> None:
    import jsonargparse

    recipe = tiny_detection("scenes", frozen_batchnorm=True, min_score=0.25)
    recipe = replace(recipe, data=replace(recipe.data, short_side=(32, 48)))
    parser = jsonargparse.ArgumentParser()
    parser.add_class_arguments(DetectRecipe, as_group=False)
    read = DetectRecipe(**vars(parser.instantiate(parser.parse_object(recipe.as_dict()))))
    assert read.as_dict() == recipe.as_dict()
