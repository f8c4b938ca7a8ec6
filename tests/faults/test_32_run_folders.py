"""Damaged or strange files of run folders ended in tracebacks or hangs, or hid other runs."""

import json
import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.pictures import image_folder
from helpers.refusals import refused
from helpers.tiny import tiny
from helpers.warned import warned

from scalekd.cli.main import main
from scalekd.errors import InputError
from scalekd.jobs.distill import distill
from scalekd.recipe import Data, Optim, Recipe
from scalekd.runs.checkpoint import best_checkpoint, load_newest, load_student, previous_checkpoint
from scalekd.runs.folder import RunFolder
from scalekd.runs.result import Result, Run
from scalekd.runs.status import read_run_folders

RECIPE = Recipe("test_vit", "test_resnet", Data("x"), optim=Optim(), seeds=[1])
RESULT = Result(Run("scalekd", 1), 0.5, 12.5, 30, 100.0, {"task": 1.5})
LINE = {"method": "scalekd", "seed": 1, "step": 1, "steps": 30, "seconds": 1.0, "loss": 1.0,
        "top1": None}  # fmt: skip


def make(path: Path) -> RunFolder:
    folder = RunFolder(path)
    folder.start(RECIPE, {"teacher": "random"}, [])
    folder.record_results([RESULT])
    folder.append_metrics(LINE)
    folder.summary.write_text('{"teacher_top1": 0.5}')
    (path / ".lock").write_text('{"host": "node", "pid": 1, "since": "today"}')
    return folder


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
YAML = {
    "empty": b"",
    "binary": bytes(range(256)),
    "a list": b"[1, 2]",
    "text": b"hello",
    "a tag": b"!!python/object/apply:os.system [echo pwned]",
    "levels": b"[" * 1000 + b"]" * 1000,
    "levels of mappings": b"".join(b" " * i + b"a:\n" for i in range(1000)),
    "aliases": BOMB.encode(),
    "itself": b"a: &a [*a]",
    "a key twice": b"student: a\nstudent: b\n",
    "keys that are no names": b"{1: 2, [a]: b}",
    "huge": b"a: " + b"x" * 10_000_000,
    "other kinds": b"{student: [1], teacher: {}, data: 3, seeds: {}, compare: x}",
    "other entries": b"{student: a, teacher: b, data: {}, seeds: [[1], x], compare: [{}, 3]}",
    "dates": b"a: 2020-13-45\n",
    "surrogates": b"student: \xed\xa0\x80\n",
    "a null byte": b'student: "a\\0b"\ndata: {}\nseeds: [1]\ncompare: []\n',
}


@pytest.mark.parametrize("content", YAML.values(), ids=YAML)
def test_settings_that_are_no_recipe_hide_no_other_run(
    tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "good")
    bad = make(tmp_path / "bad")
    bad.settings.write_bytes(content)
    main(["runs", str(tmp_path)])
    shown = capsys.readouterr().out
    assert "good" in shown
    assert "bad" in shown
    main(["runs", str(tmp_path), "--json", "--compare", str(tmp_path / "x.png")])
    assert len(json.loads(capsys.readouterr().out)["runs"]) == 2
    with suppress(InputError), bad.hold(RECIPE, resume=True):
        pass


@pytest.mark.parametrize("content", YAML.values(), ids=YAML)
def test_a_configuration_that_is_no_recipe_is_refused_in_one_line(
    tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_bytes(content)
    for words in ([f"--config={file}"], ["--config", str(file)]):
        with pytest.raises(SystemExit) as ended:
            main(["distill", *words, "--out", str(tmp_path / "out")])
        assert ended.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.yaml"]


JSON: list[Any] = ["", "null", "[]", "{}", "3", '"x"', "[" * 100_000, "{" * 10, "\x00\xff", "nan",
                   json.dumps({**LINE, "steps": "30"}), json.dumps({**LINE, "seed": [1]}),
                   json.dumps({**LINE, "top1": "high"}), json.dumps({**LINE, "method": {}}),
                   json.dumps({**LINE, "seconds": 10**400}), '{"teacher_top1": "x"}',
                   json.dumps({**asdict(RESULT), "terms": 3}),
                   json.dumps({**asdict(RESULT), "terms": {"task": "x"}}),
                   json.dumps({**asdict(RESULT), "steps": 0}),
                   json.dumps({**asdict(RESULT), "run": 3}),
                   json.dumps({"host": 3, "pid": "x", "since": None})]  # fmt: skip


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "results.jsonl", "summary.json", ".lock", "inputs.json"]
)
def test_json_of_any_content_is_listed_and_compared(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, content in enumerate(JSON):
        folder = make(tmp_path / f"{number}")
        (folder.path / name).write_text(f"{content}\n")
    make(tmp_path / "good")
    main(["runs", str(tmp_path), "--compare", str(tmp_path / "x.png")])
    assert "good" in capsys.readouterr().out
    with warned("") if name in ("metrics.jsonl", "results.jsonl") else nullcontext():
        for number in range(len(JSON)):
            folder = RunFolder(tmp_path / f"{number}")
            with folder.hold(RECIPE, resume=True):
                folder.finished_results(RECIPE)
                folder.check_inputs(RECIPE, {})
                folder.trim_metrics([])


def pipe(file: Path) -> None:
    file.unlink(missing_ok=True)
    os.mkfifo(file)


def folder_in_its_place(file: Path) -> None:
    file.unlink(missing_ok=True)
    file.mkdir()


def dangling(file: Path) -> None:
    file.unlink(missing_ok=True)
    file.symlink_to("nowhere")


def endless(file: Path) -> None:
    file.unlink(missing_ok=True)
    file.symlink_to("/dev/zero")


@pytest.mark.parametrize("put", [pipe, folder_in_its_place, dangling, endless])
@pytest.mark.parametrize("name", ["settings.yaml", "metrics.jsonl", "results.jsonl",
                                  "summary.json", ".lock", "inputs.json"])  # fmt: skip
def test_what_is_no_file_neither_stops_nor_hangs_runs(
    tmp_path: Path, put: Callable[[Path], None], name: str
) -> None:
    make(tmp_path / "good")
    bad = make(tmp_path / "bad")
    put(bad.path / name)
    statuses = read_run_folders([tmp_path])
    assert str(tmp_path / "good") in [status.folder for status in statuses]
    with suppress(InputError), bad.hold(RECIPE, resume=True):
        bad.finished_results(RECIPE)
        bad.trim_metrics([])


def test_a_checkpoint_of_another_kind_gives_way_to_the_one_before(tmp_path: Path) -> None:
    recipe = tiny(image_folder(tmp_path / "images"), teacher=None)
    out = distill(recipe, tmp_path / "out", 1)
    folder, run = RunFolder(out), Run("supervised", 1)
    file = folder.checkpoint(run)
    good = tmp_path / "good.ckpt"
    shutil.copy(file, good)
    state = torch.load(good)
    other = tmp_path / "other"
    distill(tiny(tmp_path / "images", teacher=None, student="test_vit2"), other, 1)
    strange = {
        "weights": {"a": torch.zeros(2)},
        "a tensor": torch.zeros(2),
        "a list": [1],
        "no step": {k: v for k, v in state.items() if k != "step"},
        "steps in words": {**state, "step": "three"},
        "negative steps": {**state, "step": -3},
        "no tensors": {**state, "learner": {"a": 1}},
    }
    for kind in (*strange, "another run's", "a pipe", "half of it"):
        shutil.copy(good, previous_checkpoint(file))
        if kind in strange:
            torch.save(strange[kind], file)
        elif kind == "another run's":
            shutil.copy(RunFolder(other).checkpoint(run), file)
        elif kind == "a pipe":
            pipe(file)
        else:
            pipe(file)
            file.unlink()
            file.write_bytes(good.read_bytes()[:2000])
        folder.results.unlink(missing_ok=True)
        with warned("trying the checkpoint before it"):
            distill(recipe, out, 1, resume=True)
        shutil.rmtree(folder.student)
        assert (loaded := load_newest(previous_checkpoint(file)))
        assert loaded["step"] == state["step"], kind
    for missing in ("optimizer", "metrics", "validation", "must_match", "skipped"):
        for path in (file, previous_checkpoint(file)):
            path.unlink(missing_ok=True)
        torch.save({k: v for k, v in state.items() if k != missing}, file)
        folder.results.unlink(missing_ok=True)
        with refused(str(file), "cannot be resumed from"):
            distill(recipe, out, 1, resume=True)


def test_a_students_description_is_checked(tmp_path: Path) -> None:
    file = tmp_path / "x.ckpt"
    good = {"name": "test_resnet", "arguments": {}, "classes": 3, "input": None}
    bad: list[Any] = [{}, {**good, "name": 3}, {**good, "arguments": []}, {**good, "classes": "x"},
                      {**good, "classes": -1}, {**good, "size": 3}, {**good, "size": (10**6, 1)},
                      {**good, "input": 3}, {**good, "input": {"channels": 0}},
                      {**good, "other": 1},
                      {**good, "mean": 3}, {**good, "class_names": [3]}]  # fmt: skip
    for plain in bad:
        torch.save({"scalekd_student": plain, "step": 1, "learner": {}, "average": None}, file)
        with refused("x.ckpt"):
            load_student(file)
    assert not best_checkpoint(file).exists()
