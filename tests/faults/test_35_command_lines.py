"""An option given twice, an empty one and ~ after = were accepted, and something else was done."""

from pathlib import Path
from typing import Any

import pytest
from helpers.refusals import refused

from scalekd.cli.main import main
from scalekd.cli.parser import read_words
from scalekd.method import LossWeights
from scalekd.networks import FeatureSelection
from scalekd.reading import parse_yaml
from scalekd.recipe import Data, Optim, Recipe, Student


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--recipe", "a", "--recipe", "b"], ["--recipe", "twice"]),
        (["--recipe=a", "--recipe", "b"], ["--recipe", "twice"]),
        (["--optim.lr=1", "--optim.lr=1"], ["--optim.lr", "twice"]),
        (["--resume", "--resume"], ["--resume", "twice"]),
        (["--out="], ["--out", "empty"]),
        (["--data.root", ""], ["empty"]),
        ([""], ["empty"]),
        (["--teacher_args", "{a: 1, a: 2}"], ["'a'", "twice"]),
        (["--optim={lr: 1, lr: 2}"], ["'lr'", "twice"]),
        (["--teacher_args={a: {b: 1, b: 2}}"], ["'b'", "twice"]),
    ],
)
def test_what_is_given_twice_or_empty_is_refused(words: list[str], parts: list[str]) -> None:
    with refused(*parts):
        read_words(words)


@pytest.mark.parametrize("value", ["[[]]", "[1]", "3", "true", "null"])
@pytest.mark.parametrize("name", ["optim", "student_features"])
def test_a_group_of_settings_is_a_mapping(
    name: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(
        f"teacher: test_vit\nstudent: test_resnet\ndata: {{root: x}}\n{name}: {value}\n"
    )
    with pytest.raises(SystemExit) as ended:
        main(["distill", "--config", str(file), "--out", str(tmp_path / "out")])
    assert ended.value.code == 2
    assert f"{name} is" in (line := capsys.readouterr().err)
    assert "a mapping of settings" in line
    assert line.count("\n") == 1


def test_options_that_append_to_a_list_may_be_given_several_times() -> None:
    words = ["--seeds+=1", "--seeds+=2", "--out", "x", "pattern*"]
    assert read_words(words) == words


def test_the_home_folder_is_expanded_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    words = ["--out=~/x", "~/y", "--teacher=local-dir:~/t", "--data.root=hf:~/d", "--a=~", "a~/b"]
    expected = ["--out=/home/me/x", "/home/me/y", "--teacher=local-dir:/home/me/t"]
    assert read_words(words) == [*expected, "--data.root=hf:/home/me/d", "--a=/home/me", "a~/b"]
    recipe = Recipe("local-dir:~/t", "s", Data("~/d"), teacher_weights="~/w", cache="~/c")
    assert (recipe.teacher, recipe.data.root) == ("local-dir:/home/me/t", "/home/me/d")
    assert (recipe.teacher_weights, recipe.cache) == ("/home/me/w", "/home/me/c")


def test_a_key_that_is_there_twice_in_a_recipe_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, optim = tmp_path / "recipe.yaml", tmp_path / "optim.yaml"
    file.write_text("epochs: 1\noptim: {lr: 1}\nepochs: 2\n")
    optim.write_text("lr: 1\nlr: 2\n")
    for option in (f"--config={file}", f"--optim={optim}"):
        with pytest.raises(SystemExit) as ended:
            main(["distill", option, "--out", str(tmp_path / "out")])
        assert ended.value.code == 2
        assert "twice" in capsys.readouterr().err


def test_yaml_is_read_as_before() -> None:
    text = "a: 1e-3\nb: [1, 2.5, .5, 1., -3]\nc: true\nd: 2020-01-01\ne: &x word\nf: *x\ng:\n"
    assert parse_yaml(text) == {
        "a": 1e-3, "b": [1, 2.5, 0.5, 1.0, -3], "c": True, "d": "2020-01-01", "e": "word",
        "f": "word", "g": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"teacher_prefix": "foo"}, "teacher_prefix"),
        ({"task": "foo"}, "task"),
        ({"one_token": True}, "one_token"),
        ({"precision": "fp8"}, "precision"),
        ({"compare": ["alone"]}, "compare"),
        ({"compare": "supervised"}, "compare"),
        ({"trackers": ["x"]}, "trackers"),
        ({"fsdp": ["all"]}, "fsdp"),
        ({"epochs": "3"}, "epochs"),
        ({"epochs": 1.5}, "epochs"),
        ({"epochs": True}, "epochs"),
        ({"seeds": [0.5]}, "seeds"),
        ({"heads": [1, 2]}, "heads"),
        ({"teacher_size": 64}, "teacher_size"),
        ({"data": "images"}, "data"),
        ({"optim": {"lr": 1}}, "optim"),
        ({"student": None}, "student"),
        ({"compile": "yes"}, "compile"),
        ({"teacher": ""}, "teacher"),
        ({"cache": " "}, "cache"),
        ({"teacher_weights": "a\0b"}, "teacher_weights"),
    ],
)
def test_in_python_a_value_of_another_kind_is_refused(settings: dict[str, Any], name: str) -> None:
    with refused(name):
        Recipe(**{"teacher": "a", "student": "b", "data": Data("x"), **settings})


def test_in_python_the_parts_of_a_recipe_are_checked_too() -> None:
    wrong: Any = "foo"
    for build, name in (
        (lambda: Data("x", corrupt_images=wrong), "data.corrupt_images"),
        (lambda: Data(Path("x")), "data.root"),
        (lambda: Data(""), "data.root"),
        (lambda: Optim(lr=wrong), "optim.lr"),
        (lambda: Student("a", args=wrong), "args"),
        (lambda: LossWeights(logits=wrong), "logits"),
        (lambda: FeatureSelection(norm=wrong), "norm"),
    ):
        with refused(name):
            build()
