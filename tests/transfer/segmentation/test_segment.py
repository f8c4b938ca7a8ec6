"""`scalekd transfer segment` as a person starts it: what it leaves, kills, ranks and refusals."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers.real_runs import finish, metrics_lines
from helpers.refusals import refused
from helpers.scenes import CLASSES, ade20k_folder, scene, tiny_segmentation
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
from scalekd.transfer.segmentation.prepare import PreparedSegmentation
from scalekd.transfer.segmentation.recipe import RECIPES, find_segment_recipe
from scalekd.transfer.segmentation.segment import segment
from scalekd.transfer.segmentation.segmenter import load_segmenter
from scalekd.transfer.segmentation.smoke import shrink_to_smoke_test

TASK = PreparedSegmentation.task


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ade20k_folder(tmp_path_factory.mktemp("scenes") / "scenes")


def test_the_command_goes_from_images_to_pictures_and_a_file_of_scores(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    optim = ["--optim.lr", "1e-3", "--optim.poly_power", "1.0"]
    words = ["transfer", "segment", "--backbone", "timm:test_resnet"]
    words += ["--backbone_weights", "random", "--data.root", str(root), "--data.crop_size", "32"]
    words += ["--data.workers", "0", "--head_channels", "8", "--epochs", "10", "--batch_size", "4"]
    main([*words, *optim, "--log_every", "1", "--validate_every", "5", "--out", str(out)])
    assert "mean IoU" in capsys.readouterr().out
    scores = json.loads((out / "segmentation.json").read_text())
    assert scores["steps"] == 20
    assert [c["name"] for c in scores["classes"]] == list(CLASSES)
    confusion = np.array(scores["confusion"])
    right, union = confusion.diagonal(), confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
    assert scores["miou"] == pytest.approx((right / union).mean())
    assert confusion.sum() == 3 * 48 * 48 - 5 * 48
    for name in ("predictions.png", "confusion.png"):
        with Image.open(out / name) as picture:
            assert min(picture.size) > 300
    lines = metrics_lines(out)
    assert [line["step"] for line in lines] == list(range(1, 21))
    assert lines[-1]["scores"]["miou"] == scores["miou"]
    assert lines[-1]["loss"] < lines[0]["loss"]
    segmenter, spec = load_segmenter(out / "segmenter")
    assert spec.class_names == CLASSES
    assert segmenter(torch.zeros(1, 3, 48, 48)).shape == (1, 3, 48, 48)
    with refused("transfer", "no student"):
        load_student(checkpoint_of(TASK, out, seed=0))


def test_a_run_that_is_killed_and_stopped_ends_bit_identical(root: Path, tmp_path: Path) -> None:
    """By -9, and by a signal after which it saves its step; with BatchNorm, stochastic depth, two
    micro-batches and a loading process."""
    recipe = tiny_segmentation(
        root,
        backbone="timm:test_convnext",
        backbone_args={"drop_path_rate": 0.3},
        epochs=40,
        accumulate=2,
        save_steps=3,
        validate_every=4,
    )
    recipe = replace(recipe, data=replace(recipe.data, color_jitter=0.2, workers=1))
    train_undisturbed_and_disturbed(TASK, recipe, tmp_path)


def test_the_gradients_of_two_ranks_are_those_of_one(root: Path, tmp_path: Path) -> None:
    """After one step of momentum its buffer is the gradient; three validation images are odd."""
    optim = Optim("momentum", lr=0.1, weight_decay=0.0, warmup_epochs=0, clip=0.0)
    recipe = tiny_segmentation(
        root, backbone="timm:test_convnext", head="linear", epochs=1, steps=1, optim=optim
    )
    segment(recipe, tmp_path / "one")
    finish(start(TASK, recipe, tmp_path / "two", "--devices", "2"))
    assert_same_gradients(*(state_of(TASK, tmp_path / name) for name in ("one", "two")))
    scores = [json.loads((tmp_path / n / "segmentation.json").read_text()) for n in ("one", "two")]
    assert scores[0]["miou"] == pytest.approx(scores[1]["miou"], abs=1e-3)
    assert sum(map(sum, scores[1]["confusion"])) == sum(map(sum, scores[0]["confusion"]))


def test_a_linear_probe_trains_its_head_alone(root: Path, tmp_path: Path) -> None:
    recipe = tiny_segmentation(root, backbone="timm:test_vit", head="linear", frozen=True)
    out = segment(recipe, tmp_path / "run")
    trained = state_of(TASK, out)["learner"]
    again = segment(replace(recipe, optim=Optim(lr=1e-9, warmup_epochs=0)), tmp_path / "same")
    untrained = state_of(TASK, again)["learner"]
    moved = {n for n, t in trained.items() if not torch.allclose(t, untrained[n], atol=1e-7)}
    assert moved
    assert all(name.startswith(("student.head.", "student.backbone.norms.")) for name in moved)


def test_a_finished_run_that_is_resumed_gives_its_scores_again(root: Path, tmp_path: Path) -> None:
    grey = {"in_chans": 1}
    recipe = tiny_segmentation(root, head="linear", inference="sliding", backbone_args=grey)
    out = segment(recipe, tmp_path / "run")
    before = (out / "segmentation.json").read_text()
    segment(recipe, out, resume=True)
    assert (out / "segmentation.json").read_text() == before
    with refused("batch_size"):
        segment(replace(recipe, batch_size=2), out, resume=True)
    with refused("exists"):
        segment(recipe, out)


def test_a_run_is_not_resumed_on_other_images(root: Path, tmp_path: Path) -> None:
    recipe = tiny_segmentation(root, head="linear")
    out = segment(recipe, tmp_path / "run")
    other = ade20k_folder(tmp_path / "other", training=9)
    with refused("another number of images"):
        segment(replace(recipe, data=replace(recipe.data, root=str(other))), out, resume=True)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--data.classes", "4"], ["data.classes is 4", "3 classes"]),
        (["--backbone", "nowhere"], ["no folder 'nowhere'"]),
        (["--backbone", "timm:mixer_s32_224"], ["mixer_s32_224", "32"]),
        (["--backbone_args", "{in_chans: 5}"], ["5 channels"]),
        (["--batch_size", "16"], ["8 images", "16"]),
        (["--batch_size", "1"], ["BatchNorm", "2"]),
        (["--data.crop_size", "0"], ["data.crop_size", "from 1"]),
        (["--optim.poly_power", "0"], ["poly_power"]),
        (["--data.scale", "[2,1]"], ["data.scale"]),
        (["--stride", "40", "--inference", "sliding"], ["stride is 40", "32"]),
        (["--stride", "20"], ["stride is 20 and inference is whole"]),
        (["--data.epoch_images", "99"], ["data.epoch_images is 99", "8 images"]),
        (
            ["--epochs", "9", "--steps", "4", "--optim.warmup_epochs", "2"],
            ["steps is 4", "epoch 2 of optim.warmup_epochs", "2 steps", "within 2 epochs"],
        ),
        (["--recipe", "ade"], ["'ade'", "segment-resnet50"]),
        (["--head", "mask"], ["head"]),
    ],
    ids=lambda value: value[0] if value[0].startswith("--") else "",
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
        "--data.crop_size": "32",
        "--data.workers": "0",
        "--head_channels": "8",
        "--batch_size": "4",
        "--epochs": "1",
        "--out": str(tmp_path / "run"),
        **dict(zip(options[::2], options[1::2], strict=True)),
    }
    with pytest.raises(SystemExit) as ended:
        main(["transfer", "segment", *(word for pair in settings.items() for word in pair)])
    assert ended.value.code == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1, line
    assert [part for part in parts if part not in line] == [], line
    assert not (tmp_path / "run").exists()


def test_a_label_map_of_another_size_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    root = ade20k_folder(tmp_path / "scenes")
    Image.fromarray(scene(0, 40)[1]).save(root / "annotations/training/0.png")
    with refused("40x40"):
        segment(tiny_segmentation(root), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("file", sorted(RECIPES.glob("*.yaml")), ids=lambda file: file.stem)
def test_each_packaged_recipe_has_the_papers_protocol(file: Path) -> None:
    assert find_segment_recipe(file.stem) == file
    text = file.read_text()
    assert "The paper's: " in text
    assert "not run here" in text
    settings = yaml.safe_load(text)
    assert (settings["steps"], settings["batch_size"]) == (160_000, 16)
    assert settings["data"]["crop_size"] == 512
    assert settings["data"]["reduce_zero_label"]
    warmup = settings["optim"]["warmup_epochs"] * (20_210 // 16)
    assert round(warmup) in (0, 1500)


def test_a_packaged_recipe_is_smoked(tmp_path: Path) -> None:
    """The Swin's, in a narrow form; the slow test runs all as they are."""
    narrow = {"embed_dim": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 3, 4]}
    words = ["transfer", "segment", "--recipe", "segment-swin_tiny", "--smoke"]
    words += ["--backbone_args", json.dumps(narrow), "--head_channels", "8"]
    main([*words, "--out", str(tmp_path / "run")])
    assert json.loads((tmp_path / "run/segmentation.json").read_text())["steps"] == 4


@pytest.mark.slow
@pytest.mark.parametrize("file", sorted(RECIPES.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_packaged_recipe_smokes(file: Path, tmp_path: Path) -> None:
    main(["transfer", "segment", "--recipe", file.stem, "--smoke", "--out", str(tmp_path / "run")])
    assert json.loads((tmp_path / "run/segmentation.json").read_text())["steps"] == 4


def test_a_smoke_test_keeps_a_folders_weights_and_shortens_the_rest(tmp_path: Path) -> None:
    recipe = tiny_segmentation("nowhere", backbone="student", epochs=50, steps=900)
    shrunk = shrink_to_smoke_test(replace(recipe, backbone_weights="pretrained"), tmp_path)
    assert (shrunk.backbone_weights, shrunk.epochs, shrunk.steps) == ("pretrained", 2, None)
    assert len(list((tmp_path / "images/training").iterdir())) == 8
