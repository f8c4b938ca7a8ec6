"""A run's checkpoints: what they contain, damaged ones, and a full disk."""

from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from helpers.full_disk import limited_file_size
from helpers.pictures import image_folder
from helpers.refusals import refused
from helpers.tiny import tiny
from helpers.warned import warned

from scalekd.export.export import export
from scalekd.runs.checkpoint import load_newest, load_student, previous_checkpoint, write_checkpoint
from scalekd.runs.folder import RunFolder
from scalekd.runs.result import Progress, Run
from scalekd.signals import Interrupted
from scalekd.training.prepare import prepare
from scalekd.training.train import train

RUN = Run("scalekd", 1)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("data") / "pictures", side=32)


@pytest.fixture(scope="module")
def trained(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    train(prepare(tiny(pictures, epochs=2)), RUN, RunFolder(out), lambda _: None, Event())
    return out


def test_a_checkpoint_contains_student_projectors_optimizer_and_no_teacher(
    trained: Path,
) -> None:
    file = RunFolder(trained).checkpoint(RUN)
    state = torch.load(file, weights_only=True)
    names = list(state["learner"])
    assert any(n.startswith("student.") for n in names)
    assert any(n.startswith("criterion.") for n in names)
    assert not [n for n in names if "teacher" in n]
    assert state["optimizer"]["state"]
    assert state["step"] == 6
    # Weights and AdamW's two moments of what trains, and hardly anything beside.
    trains = sum(t.numel() for t in state["learner"].values())
    assert file.stat().st_size < 3 * 4 * trains * 1.1


def test_the_student_in_a_checkpoint_is_the_exported_one(trained: Path) -> None:
    student, spec = load_student(RunFolder(trained).checkpoint(RUN))
    assert (spec.name, spec.classes) == ("test_resnet", 3)
    assert not student.training
    export(str(RunFolder(trained).checkpoint(RUN)), trained / "again")
    one, other = ((trained / n / "model.safetensors").read_bytes() for n in ("student", "again"))
    assert one == other


def test_a_stopped_run_leaves_a_checkpoint_that_gives_the_student(
    pictures: Path, tmp_path: Path
) -> None:
    stop = Event()

    def report(news: Progress) -> None:
        if news.step >= 1:
            stop.set()

    with pytest.raises(Interrupted):
        train(prepare(tiny(pictures, epochs=2)), RUN, RunFolder(tmp_path), report, stop)
    assert not (tmp_path / "student").exists()
    student, spec = load_student(RunFolder(tmp_path).checkpoint(RUN))
    assert spec.classes == 3
    assert student(torch.zeros(1, 3, 160, 160)).shape == (1, 3)
    export(str(RunFolder(tmp_path).checkpoint(RUN)), tmp_path / "rescued")
    assert (tmp_path / "rescued" / "config.json").is_file()


STATE = {
    "scalekd_student": {},
    "step": 1,
    "learner": {"weight": torch.zeros(10_000)},
    "average": None,
}


def state_of_step(step: int) -> dict[str, Any]:
    return {**STATE, "step": step}


def test_a_full_disk_leaves_the_older_checkpoints_unchanged(tmp_path: Path) -> None:
    file = tmp_path / "checkpoints" / "run.ckpt"
    for step in (1, 2):
        write_checkpoint(state_of_step(step), file, previous_checkpoint(file))
    contents = {f: f.read_bytes() for f in file.parent.iterdir()}
    with (
        pytest.raises(OSError, match="File too large"),
        limited_file_size(1000),
    ):
        write_checkpoint(state_of_step(3), file, previous_checkpoint(file))
    assert {f: f.read_bytes() for f in file.parent.iterdir()} == contents


def test_training_continues_with_a_warning_on_a_full_disk(pictures: Path, tmp_path: Path) -> None:
    often = replace(tiny(pictures, epochs=2), save_steps=2)
    with (
        warned(r"scalekd-seed1(\.best)?\.ckpt could not be written at step [2346]"),
        limited_file_size(4_000_000),
    ):
        result = train(prepare(often), RUN, RunFolder(tmp_path), lambda _: None, Event())
    assert result.steps == 6
    assert (tmp_path / "student" / "model.safetensors").is_file()
    assert not list((tmp_path / "checkpoints").iterdir())


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_the_previous_checkpoint_is_loaded_where_the_newest_is_damaged(
    tmp_path: Path, damage: str
) -> None:
    file = tmp_path / "run.ckpt"
    for step in (1, 2):
        write_checkpoint(state_of_step(step), file, previous_checkpoint(file))
    content = bytearray(file.read_bytes())
    if damage == "gone":
        file.unlink()
        state = load_newest(file)
    else:
        content[len(content) // 2] ^= 1
        file.write_bytes(content[: len(content) // 2] if damage == "cut" else content)
        with warned(r"run.ckpt' is damaged"):
            state = load_newest(file)
    assert state is not None
    assert state["step"] == 1


def test_damaged_checkpoints_are_refused_and_missing_ones_are_none(
    tmp_path: Path,
) -> None:
    file = tmp_path / "run.ckpt"
    assert load_newest(file) is None
    for path in (file, previous_checkpoint(file)):
        path.write_bytes(b"PK and then nothing")
    with warned("damaged"), refused(str(file), "remove them"):
        load_newest(file)


def test_a_missing_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    with refused(str(tmp_path / "none.ckpt")) as _:
        load_student(tmp_path / "none.ckpt")


def test_a_missing_checkpoint_is_refused_without_options_of_other_commands(
    tmp_path: Path,
) -> None:
    with pytest.raises(ValueError, match=r"none\.ckpt") as caught:
        load_student(tmp_path / "none.ckpt")
    assert "pretrained" not in str(caught.value)


def test_a_file_of_other_tensors_is_refused_as_no_checkpoint(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.ckpt")
    with refused(str(tmp_path / "other.ckpt"), "not a checkpoint"):
        load_student(tmp_path / "other.ckpt")


@pytest.mark.parametrize("size", [0, 10, 5000])
def test_a_truncated_checkpoint_is_refused(trained: Path, tmp_path: Path, size: int) -> None:
    file = tmp_path / "half.ckpt"
    file.write_bytes(RunFolder(trained).checkpoint(RUN).read_bytes()[:size])
    with refused(str(file)):
        load_student(file)
