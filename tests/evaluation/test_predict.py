"""Predictions for images without labels: the table, the features, and broken files."""

import csv
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from helpers.onnx_files import SIDE, expected_logits, metadata, write_onnx
from helpers.pictures import flat_folder
from helpers.refusals import refused
from helpers.warned import warned
from PIL import Image
from timm.models import save_for_hf

from scalekd.evaluation.predict import MAX_WARNINGS, predict

PLAIN: dict[str, Any] = {"mean": [0.5] * 3, "std": [0.1] * 3, "crop_pct": 1.0}


@pytest.fixture
def model(tmp_path: Path) -> str:
    notes = metadata(**PLAIN, crop_mode="center")
    return write_onnx(tmp_path / "m.onnx", notes=notes)


def colours(folder: Path, count: int = 6) -> Path:
    """Images of one colour, of the size that the model takes."""
    folder.mkdir(parents=True)
    noise = np.random.default_rng(5)
    for number in range(count):
        colour = tuple(int(value) for value in noise.integers(0, 256, 3))
        Image.new("RGB", (SIDE, SIDE), colour).save(folder / f"{number}.png")
    return folder


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", errors="surrogateescape") as lines:
        return list(csv.DictReader(lines))


@pytest.mark.parametrize("batch_size", [1, 4, 250])
def test_the_largest_probabilities_are_written_as_computed_otherwise(
    model: str, tmp_path: Path, batch_size: int
) -> None:
    folder = colours(tmp_path / "photos")
    counts = predict(model, [str(folder)], tmp_path / "p.csv", top=2, batch_size=batch_size)
    assert (counts.images, counts.unreadable) == (6, 0)
    table = rows(tmp_path / "p.csv")
    assert list(table[0]) == [
        "file", "class_1", "probability_1", "class_2", "probability_2", "error"
    ]  # fmt: skip
    for number, row in enumerate(table):
        file = folder / f"{number}.png"
        assert (row["file"], row["error"]) == (str(file), "")
        pixels = torch.from_numpy(np.asarray(Image.open(file), dtype=np.float32) / 255)
        images = (pixels.permute(2, 0, 1)[None] - 0.5) / 0.1
        shares, places = expected_logits(images)[0].softmax(0).topk(2)
        assert [row["class_1"], row["class_2"]] == [("cat", "ant", "bee")[p] for p in places]
        written = float(row["probability_1"]), float(row["probability_2"])
        assert written == pytest.approx(shares.tolist(), abs=1e-5)


def test_all_classes_of_a_model_of_few_are_written(model: str, tmp_path: Path) -> None:
    predict(model, [str(colours(tmp_path / "photos"))], tmp_path / "p.csv")
    (row, *_) = rows(tmp_path / "p.csv")
    assert sorted(row[f"class_{n}"] for n in (1, 2, 3)) == ["ant", "bee", "cat"]
    assert "class_4" not in row


def test_files_and_folders_keep_their_names_and_order(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flat_folder(Path("photos"), 4)
    Path("photos/notes.txt").write_text("none")
    Path("photos/.hidden.jpg").write_bytes(b"")
    odd = os.fsdecode(b'n\xffme, "1".png')
    Image.new("RGB", (9, 9)).save(odd)
    predict(model, [odd, "photos", "./photos/1.jpg"], Path("p.csv"))
    files = [row["file"] for row in rows(Path("p.csv"))]
    assert files == [odd, "photos/1.jpg", "photos/3.jpg", "photos/more/and more/0.jpg",
                     "photos/more/and more/2.jpg", "./photos/1.jpg"]  # fmt: skip


def test_broken_files_are_named_and_counted(model: str, tmp_path: Path) -> None:
    folder = colours(tmp_path / "photos", 3)
    (folder / "1.png").write_bytes(b"damaged")
    missing, text = str(tmp_path / "none.jpg"), str(tmp_path / "notes.txt")
    Path(text).write_text("none")
    with warned("cannot read") as warnings:
        counts = predict(
            model,
            [str(folder), missing, text],
            tmp_path / "p.csv",
            features=None,
            batch_size=2,
        )
    assert (counts.images, counts.unreadable) == (2, 3)
    table = {row["file"]: row for row in rows(tmp_path / "p.csv")}
    assert "of no known format" in table[str(folder / "1.png")]["error"]
    assert "No such file" in table[missing]["error"]
    assert table[text]["class_1"] == ""
    assert table[str(folder / "2.png")]["class_1"] != ""
    assert len(warnings) == 3


def test_of_many_broken_files_some_are_named_on_stderr(model: str, tmp_path: Path) -> None:
    folder = colours(tmp_path / "photos", 1)
    for number in range(MAX_WARNINGS + 5):
        (folder / f"broken {number}.png").write_bytes(b"")
    with warned("broken|5 more cannot be read") as warnings:
        predict(model, [str(folder)], tmp_path / "p.csv")
    assert len(warnings) == MAX_WARNINGS + 1
    assert len([row for row in rows(tmp_path / "p.csv") if row["error"]]) == MAX_WARNINGS + 5


def test_features_are_those_before_the_classifier(tmp_path: Path) -> None:
    network = timm.create_model("test_vit", num_classes=3).eval()
    save_for_hf(network, tmp_path / "model")
    folder = colours(tmp_path / "photos", 3)
    (folder / "1.png").write_bytes(b"damaged")
    with warned("1.png"):
        predict(
            str(tmp_path / "model"),
            [str(folder)],
            tmp_path / "p.csv",
            features=tmp_path / "f.npz",
        )
    stored = np.load(tmp_path / "f.npz")
    assert list(stored["files"]) == [str(folder / "0.png"), str(folder / "2.png")]
    features = torch.from_numpy(stored["features"])
    assert features.shape == (2, 64)
    with torch.no_grad():
        expected = network.head(features).softmax(1)
    table = [row for row in rows(tmp_path / "p.csv") if not row["error"]]
    assert [int(row["class_1"]) for row in table] == expected.argmax(1).tolist()
    written = [float(row["probability_1"]) for row in table]
    assert written == pytest.approx(expected.amax(1).tolist(), abs=1e-4)


def test_a_model_without_classifier_gives_features_alone(tmp_path: Path) -> None:
    save_for_hf(timm.create_model("test_resnet", num_classes=0), tmp_path / "model")
    files, model = [str(colours(tmp_path / "photos", 2))], str(tmp_path / "model")
    with refused("no classifier", "--features"):
        predict(model, files, tmp_path / "p.csv")
    predict(model, files, tmp_path / "p.csv", features=tmp_path / "f.npz")
    assert list(rows(tmp_path / "p.csv")[0]) == ["file", "error"]
    assert np.load(tmp_path / "f.npz")["features"].shape[0] == 2


def test_timms_models_describe_imagenets_classes(tmp_path: Path) -> None:
    with warned("RANDOM"):
        predict(
            "test_resnet",
            [str(colours(tmp_path / "photos", 1))],
            tmp_path / "p.csv",
            weights="random",
        )
    (row,) = rows(tmp_path / "p.csv")
    assert row["class_5"].startswith("n")
    assert row["description_5"]


def test_what_is_written_must_not_exist_and_is_not_touched(model: str, tmp_path: Path) -> None:
    folder, out = colours(tmp_path / "photos", 1), tmp_path / "p.csv"
    out.write_text("mine")
    with refused("p.csv", "exists and is not overwritten", "another --out"):
        predict(model, [str(folder)], out)
    assert out.read_text() == "mine"
    new = tmp_path / "new.csv"
    (tmp_path / "f.npz").write_text("mine")
    for features, reason in (("f.npz", "another --features"), ("f.txt", "end in .npz")):
        with refused(reason):
            predict(model, [str(folder)], new, features=tmp_path / features)
    with refused("gives logits and no features"):
        predict(model, [str(folder)], new, features=tmp_path / "g.npz")
    assert not new.exists()


def test_no_readable_image_is_refused_and_leaves_no_table(model: str, tmp_path: Path) -> None:
    folder, out = tmp_path / "photos", tmp_path / "p.csv"
    folder.mkdir()
    with refused("no images in", "photos"):
        predict(model, [str(folder)], out)
    with refused("no images in", "none.jpg"):
        predict("none.onnx", [str(tmp_path / "none.jpg")], out)
    (folder / "a.png").write_bytes(b"damaged")
    with refused("not one of 1 images can be read", "a.png"):
        predict(model, [str(folder)], out)
    assert not out.exists()


def test_numbers_that_make_no_sense_and_unknown_models_are_refused(
    model: str, tmp_path: Path
) -> None:
    files, out = [str(colours(tmp_path / "photos", 1))], tmp_path / "p.csv"
    with refused("top is 0"):
        predict(model, files, out, top=0)
    with refused("top is 100000000000", "from 1 to"):
        predict(model, files, out, top=10**11)
    with refused("batch_size is -1"):
        predict(model, files, out, batch_size=-1)
    with refused("resnet5O", "did you mean"):
        predict("resnet5O", files, out)
