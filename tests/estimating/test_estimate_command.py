"""`scalekd estimate` by the command line."""

import json
from dataclasses import asdict

import pytest

from scalekd.cli import main
from scalekd.estimating.estimate import estimate
from scalekd.estimating.text import told
from scalekd.training.recipe import Data, Recipe

PAIR = ["estimate", "--teacher", "test_vit", "--student", "test_resnet", "--gpu", "a100"]


def test_it_prints_what_the_function_gives(capsys: pytest.CaptureFixture[str]) -> None:
    found = estimate(Recipe("test_vit", "test_resnet", Data("imagenet")), devices=2, gpu="a100")
    main([*PAIR, "--devices", "2"])
    assert capsys.readouterr().out == told(found) + "\n"
    main([*PAIR, "--devices", "2", "--json"])
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(asdict(found)))


def test_a_packaged_recipe_needs_no_images_and_no_weights(
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(["estimate", "--recipe", "swin_small-resnet50", "--devices", "2", "--gpu", "h100"])
    out = capsys.readouterr().out
    assert "swin_small_patch4_window7_224 -> resnet50" in out
    assert "1281167 images" in out
    assert "H100 SXM" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--gpu", "h1000"], "no GPU is known as 'h1000'"),
        (["--devices", "0"], "devices is 0"),
        (["--batch_size", "6", "--devices", "4"], "batch_size is 6"),
        (["--data.root", "/nowhere"], "--images"),
        (["--memory", "much"], "--memory is 'much'"),
        (["--gpus", "h100"], "did you mean --gpu"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*PAIR, *words])
    assert ended.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith("scalekd: error: ")
    assert line.count("\n") == 1
    assert said in line
