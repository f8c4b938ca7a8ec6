"""The command line: help, options, recipes, exit codes and Ctrl-C."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import fields, replace
from pathlib import Path

import pytest
import timm
import torch
import yaml

from scalekd.cli.commands import COMMANDS
from scalekd.cli.main import main
from scalekd.cli.parser import TOPICS
from scalekd.recipe import Recipe

RUN = [sys.executable, "-c", "from scalekd.cli.main import main; main()"]
ONE_RUN = ["--seeds", "[4]", "--compare", "[]"]
TINY = ["--data.epoch_images", "64", "--epochs", "1", "--optim.warmup_epochs", "0", *ONE_RUN]
ENDLESS = ["--data.epoch_images", "6400", "--epochs", "1000", "--seeds", "[4,5]", "--compare", "[]"]


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr that a refusal is."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("scalekd: error: ")
    assert printed.err.count("\n") == 1
    return printed.err


def test_the_help_of_scalekd_fits_a_screen_and_has_examples(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 33
    assert max(map(len, lines)) <= 100
    text = "\n".join(lines)
    assert "examples:" in text
    for command in ("distill", "runs", "check", "models", "evaluate", "export"):
        assert f"  scalekd {command}" in text


def test_a_full_gpu_is_told_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has.")

    monkeypatch.setitem(COMMANDS, "models", replace(COMMANDS["models"], run=run))
    line = refused(["models"], capsys)
    assert "Tried to allocate 2.00 GiB. GPU 0 has. A training takes less memory with" in line
    assert "--accumulate" in line


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("distill", ["--recipe", "--config", "--teacher", "--data.root", "--weights.logits"]),
        ("check", ["--teacher", "--student", "--image_size", "--teacher_features", "--json"]),
        ("runs", ["folders", "--compare", "--json"]),
        ("models", ["pattern"]),
        ("evaluate", ["--data.root", "models", "--out", "--per_class", "--json"]),
        ("export", ["model", "--out", "--format", "--normalize_inside", "--data"]),
    ],
)
def test_each_command_lists_its_options(
    command: str, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert [option for option in options if option not in printed] == []


@pytest.mark.parametrize(
    ("arguments", "pieces"),
    [
        ([], ["distill", "check", "models", "evaluate", "export"]),
        (["distil"], ["distil", "distill"]),
        (["distill", "--epoch", "3"], ["--epoch", "--epochs"]),
        (["distill", "--optim.lrr", "1"], ["--optim.lrr", "--optim.lr"]),
        (["distill", "--data.rooot", "x"], ["--data.rooot", "--data.root"]),
        (["chek"], ["chek", "check"]),
        (["check", "--techer", "a"], ["--techer", "--teacher"]),
        (["check", "--teacher", "a"], ["--student"]),
        (["models", "a", "b"], ["b"]),
        (["runs", "/nowhere"], ["/nowhere"]),
        (["runs", "--compare", "curves.txt"], ["curves.txt", "png"]),
        (["distill", "--trackers", "[tensorbord]"], ["trackers", "tensorbord", "tensorboard"]),
        (["export", "--output", "x"], ["--out"]),
        (["distill", "--epochs", "many"], ["epochs", "many"]),
        (["distill", "--compare", "[kd]"], ["compare", "kd", "supervised", "logit_kd"]),
        (["distill", "--teacher", "a", "--student", "b"], ["--data.root"]),
        (["evaluate", "some/student"], ["--data.root"]),
        (["export", "some.ckpt"], ["--out"]),
        (["distill", "--recipe", "imagenet"], ["imagenet", "digits"]),
        (["distill", "--recipe=imagenet"], ["imagenet", "digits"]),
        (["distill", "--config", "/nowhere.yaml"], ["/nowhere.yaml"]),
        (["distill", "extra"], ["extra"]),
    ],
)
def test_a_mistyped_command_line_is_refused_in_one_line_that_names_the_mistake(
    arguments: list[str], pieces: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(arguments, capsys)
    assert [piece for piece in pieces if piece not in line] == [], line


@pytest.mark.parametrize(
    "arguments",
    [
        ["distill", "--epochs", "many"],
        ["distill", "--compare", "[kd]"],
        ["distill", "--heads", "[1]"],
        ["distill", "--out"],
        ["check", "--image_size", "large"],
        ["check", "--teacher_prefix", "all"],
    ],
)
def test_a_refused_value_is_described_without_python_types(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(arguments, capsys)
    assert [word for word in ("<class", "typing.", "Parser key") if word in line] == [], line


def test_distill_without_options_uses_the_packaged_digits_recipe(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["distill", "--recipe", "digits", "--print_config"])
    assert ended.value.code == 0
    packaged = yaml.safe_load(capsys.readouterr().out)
    with pytest.raises(SystemExit):
        main(["distill", "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out) == packaged
    assert packaged["data"]["root"] == "digits"
    assert packaged["teacher"] == "scalekd_digits_swin"


def test_options_override_the_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["distill", "--print_config"])
    packaged = yaml.safe_load(capsys.readouterr().out)
    with pytest.raises(SystemExit):
        main(["distill", "--epochs", "3", "--optim.lr=0.5", "--seeds", "[7]", "--print_config"])
    changed = yaml.safe_load(capsys.readouterr().out)
    assert changed["epochs"] == 3
    assert changed["optim"] == {**packaged["optim"], "lr": 0.5}
    assert changed["seeds"] == [7]
    assert {**changed, "epochs": 0, "optim": 0, "seeds": 0} == {
        **packaged,
        "epochs": 0,
        "optim": 0,
        "seeds": 0,
    }


def test_a_recipe_is_read_from_a_yaml_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("teacher: a\nstudent: b\ndata: {root: digits}\nepochs: 7\n")
    with pytest.raises(SystemExit):
        main(["distill", "--config", str(file), "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out)["epochs"] == 7


def test_a_student_of_distill_is_evaluated_and_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    main(["distill", *TINY, "--parallel", "1", "--out", str(out)])
    printed = capsys.readouterr()
    assert "local-dir:" in printed.out
    assert printed.err == ""
    settings = yaml.safe_load((out / "settings.yaml").read_text())
    assert settings["data"] == {
        **settings["data"],
        "root": "digits",
        "train_images": 100,
        "epoch_images": 64,
    }
    top1 = json.loads((out / "summary.json").read_text())["student_top1"]
    main(["evaluate", str(out / "student"), "--data.root", "digits"])
    assert re.search(rf"^ *top-1 +{top1:.2%} *$", capsys.readouterr().out, re.MULTILINE)
    checkpoint = out / "checkpoints" / "scalekd-seed4.ckpt"
    main(["export", str(checkpoint), "--out", str(tmp_path / "again")])
    assert f"local-dir:{tmp_path / 'again'}" in capsys.readouterr().out
    refused(["export", str(checkpoint), "--out", str(tmp_path / "again")], capsys)
    again = timm.create_model(f"local-dir:{tmp_path / 'again'}", pretrained=True)
    assert again.num_classes == 10


def test_settings_yaml_is_a_recipe_that_trains_the_same_student(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, again = tmp_path / "run", tmp_path / "again"
    main(["distill", *TINY, "--parallel", "1", "--out", str(out)])
    main(["distill", "--config", str(out / "settings.yaml"), "--parallel", "1", f"--out={again}"])
    assert (out / "settings.yaml").read_text() == (again / "settings.yaml").read_text()
    one, other = (p / "student" / "model.safetensors" for p in (out, again))
    assert one.read_bytes() == other.read_bytes()


def start_training(parallel: int, out: Path) -> subprocess.Popen[str]:
    """A real command, once each of its runs has begun to train."""
    process = subprocess.Popen(
        [*RUN, "distill", *ENDLESS, "--parallel", str(parallel), "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    metrics = out / "metrics.jsonl"
    while process.poll() is None and not (
        metrics.exists() and len({json.loads(m)["seed"] for m in lines(metrics)}) >= parallel
    ):
        time.sleep(0.1)
    return process


def interrupt(parallel: int, out: Path) -> subprocess.CompletedProcess[str]:
    """Ctrl-C at a terminal, where it reaches every process."""
    process = start_training(parallel, out)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def lines(file: Path) -> list[str]:
    return [line for line in file.read_text().split("\n")[:-1] if line]


@pytest.mark.parametrize("parallel", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_ctrl_c_saves_checkpoints_and_names_their_folder(parallel: int, tmp_path: Path) -> None:
    out = tmp_path / "run"
    ended = interrupt(parallel, out)
    assert ended.returncode == 130, ended.stderr
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert ended.stderr.startswith("scalekd: stopped")
    assert f"{out}/checkpoints" in ended.stderr
    assert "scalekd export" in ended.stderr
    checkpoints = sorted((out / "checkpoints").iterdir())
    assert [f.name for f in checkpoints] == [f"scalekd-seed{4 + i}.ckpt" for i in range(parallel)]
    main(["export", str(checkpoints[0]), "--out", str(tmp_path / "student")])
    model = timm.create_model(f"local-dir:{tmp_path / 'student'}", pretrained=True)
    assert model.num_classes == 10
    assert not (out / "student").exists()


@pytest.mark.slow
def test_training_processes_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    process = start_training(2, tmp_path / "run")
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(workers) >= 2
    process.kill()
    process.communicate(timeout=300)  # returns when the last holder of its output is gone
    assert [pid for pid in workers if is_running(pid)] == []


def is_running(pid: str) -> bool:
    """Whether a process is there and more than an entry that nobody has collected yet."""
    command = Path("/proc", pid, "cmdline")
    return command.exists() and command.read_bytes() != b""


def test_ctrl_c_before_training_exits_with_130(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    # Half a second is within the checks beforehand, or, on a fast machine, in the training.
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises((SystemExit, KeyboardInterrupt)) as ended:
        main(["distill", *ENDLESS, "--parallel", "1", "--out", str(out)])
    assert isinstance(ended.value, SystemExit), "Ctrl-C came through as a traceback"
    assert ended.value.code == 130
    stderr = capsys.readouterr().err
    assert stderr.startswith("scalekd: stopped")
    assert stderr.count("\n") == 1


def test_bad_input_exits_with_2_without_a_traceback(tmp_path: Path) -> None:
    ended = subprocess.run(
        [*RUN, "distill", "--epochs", "0"], capture_output=True, text=True, cwd=tmp_path
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith("scalekd: error: epochs is 0")
    assert ended.stderr.count("\n") == 1
    assert ended.stdout == ""
    assert not list(tmp_path.iterdir())


def test_the_help_of_distill_lists_every_setting_in_the_group_of_its_topic(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert sorted(sum(TOPICS.values(), ())) == sorted(field.name for field in fields(Recipe))
    with pytest.raises(SystemExit):
        main(["distill", "--help"])
    text = capsys.readouterr().out.partition("\n\n")[2]
    positions = [text.index(f"\n{topic}:\n") for topic in TOPICS]
    assert positions == sorted(positions)
    for (topic, names), end in zip(TOPICS.items(), [*positions[1:], None], strict=True):
        section = text[text.index(f"\n{topic}:\n") : end]
        assert [name for name in names if f"\n  --{name} " not in section] == []


@pytest.mark.parametrize("command", ["evaluate", "predict", "probe"])
def test_the_help_of_a_command_without_student_names_none(command: str) -> None:
    shown = " ".join(COMMANDS[command].build_parser(command).format_help().split())
    for said in ("the student's images are", "that the student's model"):
        assert said not in shown
    if command != "predict":
        assert "in evaluate and probe of threads" in shown


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_in_the_help_has_a_description_in_a_full_sentence(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    parser = COMMANDS[command].build_parser(command)
    texts = {"/".join(a.option_strings) or a.dest: a.help or "" for a in parser._actions}
    own = {name: text for name, text in texts.items() if name != "-h/--help"}
    assert [name for name, text in own.items() if not text[:1].isupper()] == []
    assert [name for name, text in own.items() if not text.endswith((".", "exit"))] == []
    assert "typing." not in parser.format_help()
    assert "Union[" not in parser.format_help()
