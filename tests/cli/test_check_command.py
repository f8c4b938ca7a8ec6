"""`scalekd check` and `scalekd models` by the command line."""

import json
import re
import shlex
import subprocess
import sys
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.warned import warned

from scalekd import FeatureSelection, InputError, LossWeights
from scalekd.cli.main import main
from scalekd.compatibility import known_models
from scalekd.compatibility.check import PairReport, check_pair
from scalekd.compatibility.known_models import KnownModel, Sweep, load_sweep, nearest_model
from scalekd.compatibility.text import format_report

PAIR = ["--teacher", "test_vit", "--student", "test_resnet"]
VIT = ["--teacher", "test_vit", "--student", "vit_tiny_patch16_224"]


def printed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command prints that succeeds without a warning."""
    main(arguments)
    output = capsys.readouterr()
    assert output.err == ""
    return output.out


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """What a refusal prints, and its one line on stderr."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    output = capsys.readouterr()
    assert output.err.startswith("scalekd: error: ")
    assert output.err.count("\n") == 1, output.err
    return output.out, output.err


@cache
def at_64_pixels() -> PairReport:
    return check_pair("test_vit", "test_resnet", image_size=64)


def test_check_prints_the_report_of_a_pair(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(["check", *PAIR, "--image_size", "64"], capsys)
    assert text == format_report(at_64_pixels()) + "\n"
    assert f"train it   {at_64_pixels().command}" in text


def test_check_with_json_prints_the_report_as_data(capsys: pytest.CaptureFixture[str]) -> None:
    data = json.loads(printed(["check", *PAIR, "--image_size", "64", "--json"], capsys))
    assert data["verified"] is True
    assert isinstance(data["difference"], float)
    assert data == json.loads(json.dumps(asdict(at_64_pixels())))


def test_a_warning_of_check_goes_to_stderr_and_not_into_the_json(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with warned("final_alternative"):
        main(["check", *PAIR, "--image_size", "32", "--one_token", "drop", "--json"])
    output = capsys.readouterr()
    assert json.loads(output.out)["weights"]["final_alternative"] == 0
    assert output.err.startswith("scalekd: warning: ")
    assert output.err.count("\n") == 1
    assert "the term final_alternative is dropped" in output.err


REFUSALS: dict[str, tuple[list[str], list[str]]] = {
    "a teacher of two streams": (
        ["--teacher", "crossvit_tiny_240", "--student", "test_resnet"],
        ["crossvit_tiny_240", "several final features", "a teacher that fits: "],
    ),
    "a student of two streams": (
        ["--teacher", "test_vit", "--student", "crossvit_tiny_240"],
        ["crossvit_tiny_240", "several final features", "a student that fits: "],
    ),
    "a student of another size": (
        [*VIT, "--image_size", "8"],
        ["vit_tiny_patch16_224", "8x8"],
    ),
    "a teacher of one size": (
        ["--teacher", "mixer_s16_224", "--student", "test_resnet", "--teacher_size", "[64,64]"],
        ["mixer_s16_224", "224x224", "64x64"],
    ),
    "heads that do not divide": ([*PAIR, "--heads", "[5,8]"], ["5 heads", "64", "take one of 1"]),
    "one token": ([*PAIR, "--image_size", "32"], ["1x1", "larger image", "final_alternative"]),
    "other channels": ([*PAIR, "--student_args", "{in_chans: 1}"], ["in_chans=3"]),
    "logits of a headless teacher": (
        [*PAIR, "--teacher_args.num_classes", "0", "--weights.logits", "0.5"],
        ["no classifier", "set it to 0"],
    ),
    "an unknown teacher": (
        ["--teacher", "swin_small_patch4_window7", "--student", "test_resnet"],
        ["'swin_small_patch4_window7'", "did you mean", "swin_small_patch4_window7_224"],
    ),
    "an unknown student": (
        ["--teacher", "test_vit", "--student", "resnet5O"],
        ["'resnet5O'", "did you mean", "resnet50"],
    ),
    "an unknown tag": (
        ["--teacher", "test_vit.nope", "--student", "test_resnet"],
        ["test_vit.nope"],
    ),
    "no folder": (
        ["--teacher", "local-dir:/nowhere", "--student", "test_resnet"],
        ["/nowhere", "config.json"],
    ),
}


@pytest.mark.parametrize(("arguments", "pieces"), REFUSALS.values(), ids=REFUSALS)
def test_a_refused_pair_ends_with_one_line_and_its_reason_as_json(
    arguments: list[str], pieces: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out, line = refused(["check", *arguments, "--json"], capsys)
    assert [piece for piece in pieces if piece not in line] == [], line
    data = json.loads(out)
    assert data == {"verified": False, "reason": line.removeprefix("scalekd: error: ").strip()}


def test_a_refusal_without_json_is_one_line_that_names_a_model_that_fits(
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, line = refused(["check", *REFUSALS["a teacher of two streams"][0]], capsys)
    assert out == ""
    fitting = nearest_model("teacher", "crossvit_tiny_240")
    assert line.endswith(f"; a teacher that fits: {fitting}\n")
    assert check_pair(fitting, "test_resnet").verified


@pytest.mark.parametrize(
    ("student", "options"),
    [
        ("vit_tiny_patch16_224", {"image_size": 8}),
        ("test_resnet", {"student_args": {"fo": 1}}),
        ("test_resnet", {"student_features": FeatureSelection(penultimate=9)}),
    ],
    ids=["image size", "timm arguments", "features"],
)
def test_a_suggested_model_fits_with_the_same_options(
    student: str, options: dict[str, Any]
) -> None:
    with pytest.raises(InputError) as caught:
        check_pair("test_vit", student, **options)
    if found := re.search("a student that fits: (.*)", str(caught.value)):
        assert check_pair("test_vit", found[1], **options).verified


@pytest.mark.parametrize(
    ("arguments", "pieces"),
    [
        (["check"], ["--teacher", "--student"]),
        (["check", *PAIR, "--jso"], ["--jso", "--json"]),
        (["check", *PAIR, "--image_size", "large"], ["--image_size", "'large'"]),
        (["check", *PAIR, "--teacher_size", "64"], ["--teacher_size", "'64'"]),
        (["check", *PAIR, "--heads", "[1]"], ["--heads", "1"]),
        (["check", *PAIR, "--teacher_prefix", "some"], ["--teacher_prefix", "'own', 'none'"]),
        (["check", *PAIR, "--weights.logits", "2"], ["logits is 2"]),
        (["check", *PAIR, "--data.root", "x"], ["--data.root"]),
        (["check", "test_vit", "test_resnet"], ["test_vit test_resnet"]),
        (["models", "one", "two"], ["two"]),
        (["models", "--json"], ["--json"]),
    ],
)
def test_a_mistyped_command_is_answered_by_one_line_that_names_the_mistake(
    arguments: list[str], pieces: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out, line = refused(arguments, capsys)
    assert out == ""
    assert [piece for piece in pieces if piece not in line] == [], line
    assert [word for word in ("<class", "typing.", "Parser key") if word in line] == [], line


@pytest.mark.parametrize(
    ("option", "value", "hint"),
    [
        ("--weights.logit", "0", "did you mean --weights.logits?"),
        ("--weights.depth", "0", "--help lists the options"),
        ("--teacher_features.norm", "last", "is 'last': expected one of 'final', 'pooled', 'none'"),
    ],
)
def test_a_mistyped_nested_option_is_named_in_full(
    option: str, value: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in ([option, value], [f"{option}={value}"]):
        _, line = refused(["check", *PAIR, *words], capsys)
        assert option in line
        assert hint in line


def test_a_refused_weight_is_reported_as_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = refused(["check", *PAIR, "--weights.logits", "2", "--json"], capsys)
    assert json.loads(out)["verified"] is False


EVERYTHING: dict[str, Any] = {
    "teacher_args": {"num_classes": 7, "drop_path_rate": 0.1},
    "student_args": {"num_classes": 7, "channels": [32, 48, 48, 96], "stem_type": "deep"},
    "image_size": (64, 96),
    "teacher_size": (96, 128),
    "teacher_features": FeatureSelection(penultimate=-3, norm="final"),
    "student_features": FeatureSelection(penultimate=2, final=-1),
    "teacher_prefix": "none",
    "weights": LossWeights(tpp_original=0.2, final_alternative=0.0, logits=0.25),
    "heads": (2, 4),
    "one_token": "drop",
}


def as_distill_reads_it(command: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The options of a command that `check_pair` gave."""
    words = shlex.split(command.replace("DIR", "some/where"))
    assert words[:2] == ["scalekd", "distill"]
    with pytest.raises(SystemExit) as ended:
        main([*words[1:], "--print_config"])
    output = capsys.readouterr()
    assert (ended.value.code, output.err) == (0, "")
    options: dict[str, Any] = yaml.safe_load(output.out)
    assert options["data"]["root"] == "some/where"
    options["image_size"] = options["data"]["image_size"]
    return options


@pytest.mark.parametrize(
    "options",
    [
        EVERYTHING,
        {
            "image_size": 64,
            "teacher_args": {"img_size": (96, 96), "class_token": False, "global_pool": "avg"},
            "student_args": {"num_classes": 0, "global_pool": ""},
        },
        {
            "image_size": 64,
            "teacher_args": {
                "pos_embed": None,
                "pretrained_cfg_overlay": {"mean": (0.1, 0.2, 0.3)},
            },
        },
    ],
    ids=["everything", "some arguments", "odd arguments"],
)
def test_the_printed_command_has_the_options_of_the_checked_pair(
    options: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    report = check_pair("test_vit", "test_resnet", **options)
    read = as_distill_reads_it(report.command, capsys)
    assert (read["teacher"], read["student"]) == ("test_vit", "test_resnet")
    nothing = asdict(FeatureSelection())
    asked: dict[str, Any] = {
        "teacher_args": {},
        "student_args": {},
        "image_size": None,
        "teacher_size": None,
        "teacher_features": nothing,
        "student_features": nothing,
        "teacher_prefix": "own",
        "weights": None,
        "heads": None,
        "one_token": "refuse",
    }
    for name, value in options.items():
        asked[name] = asdict(value) if isinstance(value, FeatureSelection | LossWeights) else value
    assert {name: read[name] for name in asked} == json.loads(json.dumps(asked))


SHAPES: dict[str, Any] = {"penultimate": (8, 4, 6), "final": (16, 2, 3), "tried_on": "itself"}
LARK: dict[str, Any] = {"name": "lark_s", "family": "lark", "parameters": 1_234_567}
WREN: dict[str, Any] = {"name": "wren_b", "family": "wren", "parameters": 9_000_000}
BIRDS = [
    KnownModel(
        role="teacher",
        status="verified",
        reason="",
        size=(64, 96),
        norm="none",
        tail=["stages.3"],
        **LARK,
        **SHAPES,
    ),
    KnownModel(
        role="student",
        status="refused",
        reason="it has no features",
        size=(64, 96),
        norm="",
        tail=[],
        **LARK,
        **{**SHAPES, "penultimate": None, "final": None},
    ),
    KnownModel(
        role="teacher",
        status="entry",
        reason="",
        size=(64, 64),
        norm="final",
        tail=["norm"],
        **WREN,
        **SHAPES,
    ),
]


@pytest.fixture
def _birds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep of birds in place of the packaged one."""
    birds = Sweep("2026-01-02", "1.2.3", "4.5.6", BIRDS)
    (tmp_path / "known_models.json").write_text(json.dumps(asdict(birds)))
    monkeypatch.setattr(known_models, "FILE", tmp_path / "known_models.json")


@pytest.mark.usefixtures("_birds")
@pytest.mark.parametrize(
    ("pattern", "found"),
    [([], [0, 1, 2]), (["lark"], [0, 1]), (["*_b"], [2]), (["w?en*"], [2]), (["rk_"], [0, 1])],
)
def test_models_lists_the_models_that_match_a_pattern(
    pattern: list[str], found: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    title, *lines = printed(["models", *pattern], capsys).splitlines()
    assert title.startswith(f"{len(found)} of 3, tried on 2026-01-02 with timm 1.2.3 and torch")
    assert [line.split()[:2] for line in lines] == [[BIRDS[i].role, BIRDS[i].name] for i in found]


@pytest.mark.usefixtures("_birds")
def test_models_prints_shapes_or_the_reason_of_a_refusal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, fitting, refused_line = printed(["models", "lark"], capsys).splitlines()
    assert fitting.split(maxsplit=2)[2] == "1.23 M  64x96 -> 8x4x6, 16x2x3"
    assert refused_line.split(maxsplit=2)[2] == "refused: it has no features"


@pytest.mark.usefixtures("_birds")
def test_models_prints_one_line_if_no_model_matches(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(["models", "finch"], capsys)
    assert text.count("\n") == 1
    for piece in ("'finch'", "2026-01-02", "timm 1.2.3", "scalekd check"):
        assert piece in text


def test_models_lists_the_packaged_sweep_with_the_reasons_of_refusals(
    capsys: pytest.CaptureFixture[str],
) -> None:
    title, *lines = printed(["models"], capsys).splitlines()
    result = load_sweep()
    assert f"{result.date} with timm {result.timm}" in title
    assert len(lines) == len(result.models)
    for line, model in zip(lines, result.models, strict=True):
        assert line.split()[:2] == [model.role, model.name]
        assert ("refused: " in line) == (model.status == "refused")
        assert line.endswith(model.reason)


def test_check_and_models_load_no_trainer_and_no_plots(tmp_path: Path) -> None:
    commands = [["check", *PAIR], ["models", "crossvit"]]
    code = f"""
import sys
from scalekd.cli.main import main
forbidden = ('lightning', 'lightning_fabric', 'matplotlib', 'torchmetrics')
trainer = ('scalekd.training.loop', 'scalekd.training.train', 'scalekd.jobs')
for command in {commands}:
    main(command)
    print("loaded:", [m for m in sys.modules if m.startswith(forbidden + trainer)])
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert [x for x in ended.stdout.splitlines() if x.startswith("loaded:")] == ["loaded: []"] * 2
