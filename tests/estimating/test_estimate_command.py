"""`scalekd estimate` on the command line."""

import json
from dataclasses import asdict

import pytest

from scalekd.cli.main import main
from scalekd.estimating.estimate import estimate
from scalekd.estimating.meta_pair import IMAGENET_IMAGES
from scalekd.estimating.text import format_estimate
from scalekd.recipe import Data, Recipe

PAIR = ["estimate", "--teacher", "test_vit", "--student", "test_resnet"]


def test_the_command_prints_what_the_function_returns(capsys: pytest.CaptureFixture[str]) -> None:
    small = Data("imagenet", image_size=64)
    recipe = Recipe("test_vit", "test_resnet", small, teacher_size=(64, 64))
    result = estimate(recipe, devices=2, gpu="a100")
    words = [
        *PAIR,
        "--gpu",
        "a100",
        "--devices",
        "2",
        "--data.image_size",
        "64",
        "--teacher_size",
        "[64,64]",
    ]
    main(words)
    assert capsys.readouterr().out == format_estimate(result) + "\n"
    main([*words, "--json"])
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(asdict(result)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe", ["digits", "eva_large-vit_base14", "swin_large-convnext_tiny", "swin_large-mixer_s16"]
)
def test_a_packaged_recipe_needs_neither_images_nor_weights(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["estimate", "--recipe", recipe, "--gpu", "h100", "--precision", "bf16-mixed", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert result["memory"]["student_activations"] > 0
    assert 0 < result["days"][0] < result["days"][2]
    assert result["largest_micro_batch"] > 0
    assert result["images_per_epoch"] == (2720 if recipe == "digits" else IMAGENET_IMAGES)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpu", "h1000"], "gpu is 'h1000'"),
        (["--devices", "0"], "devices is 0"),
        (["--batch_size", "6", "--devices", "4"], "batch_size is 6"),
        (["--data.root", "/nowhere"], "--images"),
        (["--memory", "much"], "--memory is 'much'"),
        (["--gpus", "h100"], "did you mean --gpu"),
    ],
)
def test_bad_input_to_the_estimate_is_refused_in_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*PAIR, *words])
    assert ended.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith("scalekd: error: ")
    assert line.count("\n") == 1
    assert message in line
