"""`scalekd predict` as a user sees it."""

from pathlib import Path

import pytest
from helpers.onnx_files import metadata, write_onnx
from helpers.pictures import flat_folder
from helpers.warned import warned

from scalekd.cli.main import main


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of three classes, four images and a broken one in the working folder."""
    monkeypatch.chdir(tmp_path)
    flat_folder(tmp_path / "photos", 4)
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"damaged")
    write_onnx(tmp_path / "student.onnx", notes=metadata())


def test_a_table_is_written_and_broken_files_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    with warned("broken.jpg"):
        main(["predict", "student.onnx", "photos", "--out", "new/preds.csv", "--top=1"])
    printed = capsys.readouterr()
    assert printed.out == "new/preds.csv: predictions for 4 images; 1 cannot be read\n"
    assert "cannot read the image 'photos/broken.jpg'" in printed.err
    lines = Path("new/preds.csv").read_text().splitlines()
    assert lines[0] == "file,class_1,probability_1,error"
    assert len(lines) == 6


@pytest.mark.parametrize(
    ("arguments", "pieces"),
    [
        (["student.onnx", "photos"], ["--out"]),
        (["student.onnx", "--out=x.csv"], ["files"]),
        (["student.onnx", "photos", "--out=student.onnx"], ["exists and is not overwritten"]),
        (["student.onnx", "nowhere", "--out=x.csv"], ["no images in 'nowhere'"]),
        (["none.onnx", "photos", "--out=x.csv"], ["none.onnx", "missing"]),
        (["student.onnx", "photos", "--out=x.csv", "--top=0"], ["top is 0"]),
        (["student.onnx", "photos", "--out=x.csv", "--data.crop=2"], ["data.crop is 2"]),
        (["student.onnx", "photos", "--out=x.csv", "--data.image_size=9"], ["9x9", "8x8"]),
        (["student.onnx", "photos", "--out=x.csv", "--data.root=y"], ["no option --data.root"]),
    ],
)
def test_bad_input_is_refused_in_one_line_and_nothing_is_written(
    arguments: list[str], pieces: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(Path().rglob("*"))
    with pytest.raises(SystemExit) as ended:
        main(["predict", *arguments])
    assert ended.value.code == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert [piece for piece in pieces if piece not in line] == [], line
    assert sorted(Path().rglob("*")) == before
