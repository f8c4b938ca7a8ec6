"""`scalekd evaluate` as a user sees it: tables, JSON, a folder, and what is refused."""

import json
from pathlib import Path

import pytest
from helpers.onnx_files import metadata, write_onnx
from helpers.pictures import image_folder

from scalekd.cli.main import main


@pytest.fixture
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two models of three classes, and images of these, in the working folder."""
    monkeypatch.chdir(tmp_path)
    image_folder(tmp_path / "images", side=16)
    write_onnx(tmp_path / "student.onnx", notes=metadata())
    write_onnx(tmp_path / "teacher.onnx", notes=metadata(mean=[0.9, 0.1, 0.5]))


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", *arguments])
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("scalekd: error: ")
    assert printed.err.count("\n") == 1
    return printed.err


@pytest.mark.usefixtures("_files")
def test_student_and_teacher_are_printed_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    main(["evaluate", "student.onnx", "teacher.onnx", "--data.root=images", "--per_class"])
    printed = capsys.readouterr()
    rows = [line.split() for line in printed.out.splitlines() if line.split()]
    assert rows[0] == ["student.onnx", "teacher.onnx"]
    assert [row[0] for row in rows[2:5]] == ["top-1", "calibration", "images/s"]
    assert all(len(row) == 3 for row in rows if row[0] in ("top-1", "images/s"))
    assert "12 images of 3 classes from images" in printed.out
    assert "15 bins" in printed.out
    assert "student.onnx and teacher.onnx predict the same class for" in printed.out
    assert [row[0] for row in rows if row[1:2] == ["4"]] == ["ant", "bee", "cat"]
    assert printed.err.count("ONNX Runtime on the CPU") == 2
    assert printed.err.count("matched by their names") == 2


@pytest.mark.usefixtures("_files")
def test_json_is_all_that_stdout_has(capsys: pytest.CaptureFixture[str]) -> None:
    main(["evaluate", "student.onnx", "--data.root=images", "--json", "--out=out"])
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(Path("out/evaluation.json").read_text())
    assert (printed["images"], printed["agreements"]) == (12, [])
    (model,) = printed["models"]
    assert model["model"] == "student.onnx"
    assert 0 <= model["top1"] <= 1
    assert model["top5"] is None
    assert [row["name"] for row in model["per_class"]] == ["ant", "bee", "cat"]


@pytest.mark.parametrize(
    ("arguments", "pieces"),
    [
        (["student.onnx", "--out=images"], ["'images'", "exists and is not overwritten"]),
        (["student.onnx", "--out=student.onnx/x"], ["student.onnx", "no folder"]),
        (["student.onnx", "student.onnx"], ["name each once"]),
        (["student.onnx", "--batch_size=0"], ["batch_size is 0"]),
        (["student.onnx", "--weights=[random,random]"], ["weights", "1 models"]),
        (["student.onnx", "--data.mean=[0.5]"], ["data.mean is [0.5]", "3 channels"]),
        (["student.onnx", "--data.image_size=9"], ["9x9", "8x8"]),
        (["student.onnx", "--classes=none.txt"], ["classes is 'none.txt'"]),
        (["student.onnx", "teacher.pth"], ["teacher.pth"]),
        (["[/red]\x1b[31m"], ["\\x1b"]),
    ],
)
@pytest.mark.usefixtures("_files")
def test_bad_input_is_refused_in_one_line_and_nothing_is_written(
    arguments: list[str], pieces: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(Path().rglob("*"))
    line = refused([*arguments, "--data.root=images"], capsys)
    assert [piece for piece in pieces if piece not in line] == [], line
    assert sorted(Path().rglob("*")) == before
