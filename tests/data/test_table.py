"""Images and labels that a CSV, TSV or Parquet file names."""

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import timm
import torch
from helpers.pictures import PLAIN, class_folders, mean_byte, open_folder
from helpers.refusals import refused
from timm.models import save_for_hf

from scalekd.data.open import open_source, open_validation
from scalekd.data.table import is_table_name
from scalekd.evaluation.evaluate import evaluate
from scalekd.recipe import Data

CLASSES = ("ant", "bee", "cat")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Class folders whose images have grey values in the order of classes and numbers."""
    return class_folders(tmp_path / "images", CLASSES, each=4)


def frame(images: Path, **columns: Any) -> pd.DataFrame:
    """One row for each image, with its path from the images' folder and the name of its class."""
    files = [f"{name}/{number}.png" for name in CLASSES for number in range(4)]
    return pd.DataFrame({"path": files, "label": [file[:3] for file in files], **columns})


SPLITS = ["train", "train", "train", "val"] * 3


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet", "CSV"])
def test_each_kind_of_table_gives_its_images_and_classes(ending: str, images: Path) -> None:
    table, file = frame(images, split=SPLITS), images / f"labels.{ending}"
    if ending == "parquet":
        table.to_parquet(file)
    else:
        table.to_csv(file, index=False, sep="\t" if ending == "tsv" else ",")
    source = open_folder(file)
    assert [(split.name, split.images) for split in source.splits] == [("train", 9), ("val", 3)]
    assert source.class_names == CLASSES
    training, validation = source.training_set(PLAIN, 0), source.validation_set(PLAIN)  # type: ignore[misc]
    shown = {(mean_byte(training[i][0]), training[i][1]) for i in range(9)}
    assert shown == {(i, i // 4) for i in range(12) if i % 4 < 3}
    assert [validation[i][1] for i in range(3)] == [0, 1, 2]
    assert open_validation(Data(str(file))).splits == source.splits[1:]


@pytest.mark.parametrize("column", ["path", "File", "filename", "file_name", "filepath", "IMAGE"])
@pytest.mark.parametrize("label", ["label", "Class", "target"])
def test_columns_are_found_by_their_usual_names_and_said(
    column: str, label: str, images: Path
) -> None:
    table = frame(images, more=[1] * 12).rename(columns={"path": column, "label": label})
    table.to_csv(images / "labels.csv", index=False)
    notes = [note.text for note in open_folder(images / "labels.csv").notes]
    assert f"{column} for the files and {label} for the classes" in notes[0]
    assert "no column split" in notes[1]


@pytest.mark.parametrize(
    ("training", "validation"), [("training", "valid"), ("Train", "Test"), ("train", "validation")]
)
def test_splits_have_several_names(training: str, validation: str, images: Path) -> None:
    names = {"train": training, "val": validation}
    frame(images, split=[names[name] for name in SPLITS]).to_csv(images / "a.csv", index=False)
    assert [split.name for split in open_folder(images / "a.csv").splits] == [training, validation]


def test_without_a_split_column_a_part_is_held_out_by_the_names_alone(
    images: Path, tmp_path: Path
) -> None:
    frame(images).to_csv(images / "a.csv", index=False)
    source = open_folder(images / "a.csv", val_share=0.3)
    shutil.copytree(images, tmp_path / "copy")
    copy = open_folder(tmp_path / "copy" / "a.csv", val_share=0.3)
    assert (source.identity, source.splits) == (copy.identity, copy.splits)
    absolute = frame(images)
    absolute["path"] = [str(images / path) for path in absolute["path"]]
    absolute.to_csv(images / "b.csv", index=False)
    assert open_folder(images / "b.csv", val_share=0.3).identity == source.identity
    for place in ("lists", "more/lists"):
        (tmp_path / place).mkdir(parents=True)
        absolute.to_csv(tmp_path / place / "c.csv", index=False)
    elsewhere, moved = (
        open_folder(tmp_path / place / "c.csv", val_share=0.3) for place in ("lists", "more/lists")
    )
    assert (elsewhere.identity, elsewhere.splits) == (moved.identity, moved.splits)
    part = open_validation(Data(str(images / "a.csv"), val_share=0.3))
    assert part.splits[0].images == source.splits[1].images
    assert open_validation(Data(str(images / "a.csv"))).splits[0].images == 12


def test_a_model_is_evaluated_on_the_images_of_a_table(images: Path, tmp_path: Path) -> None:
    frame(images, split=SPLITS).to_csv(images / "a.csv", index=False)
    network = timm.create_model("test_resnet", num_classes=3)
    torch.nn.init.zeros_(network.get_classifier().weight)
    network.get_classifier().bias.data.copy_(torch.tensor([0.0, 0.0, 1.0]))
    save_for_hf(network, tmp_path / "model", model_args={})
    evaluation = evaluate([str(tmp_path / "model")], Data(str(images / "a.csv"), 64))
    assert evaluation.models[0].top1 == pytest.approx(1 / 3)


def test_labels_that_are_numbers_are_ordered_by_value(images: Path) -> None:
    numbers = {"ant": 10, "bee": 9, "cat": -1}
    table = frame(images)
    table["label"] = [numbers[name] for name in table["label"]]
    table.to_parquet(images / "a.parquet")
    assert open_folder(images / "a.parquet").class_names == ("-1", "9", "10")
    table["label"] = table["label"].astype(str).replace("9", "09")
    table.to_csv(images / "a.csv", index=False)
    assert open_folder(images / "a.csv").class_names == ("-1", "09", "10")


def test_a_table_is_used_without_labels_where_asked(images: Path) -> None:
    frame(images).drop(columns="label").to_csv(images / "a.csv", index=False)
    with refused("a.csv", "'path'", "the classes", "--data.labels false"):
        open_folder(images / "a.csv")
    source = open_folder(images / "a.csv", labels=False)
    assert (source.classes, source.splits[0].images) == (None, 12)
    with refused("no labels to evaluate with"):
        open_validation(Data(str(images / "a.csv"), labels=False))


def test_missing_files_are_counted_and_the_first_named_with_their_lines(images: Path) -> None:
    frame(images).to_csv(images / "a.csv", index=False)
    for number in (1, 3):
        (images / "bee" / f"{number}.png").unlink()
    with refused("2 of the 12 files", "'bee/1.png' (line 7)", "'bee/3.png' (line 9)"):
        open_folder(images / "a.csv")
    frame(images).to_parquet(images / "a.parquet")
    with refused("2 of the 12 files", "'bee/1.png' (row 6)"):
        open_folder(images / "a.parquet")


def test_missing_and_doubtful_columns_are_refused_with_the_columns_there(images: Path) -> None:
    table, file = frame(images), images / "a.csv"
    table.rename(columns={"path": "where"}).to_csv(file, index=False)
    with refused(str(file), "'where', 'label'", "the image files", "path"):
        open_folder(file)
    table.to_csv(file, index=False, header=False)
    with refused("'ant/0.png', 'ant'"):
        open_folder(file)
    frame(images, target=0).to_csv(file, index=False)
    with refused("'label' and 'target'", "rename or remove"):
        open_folder(file)


def test_an_image_that_is_named_twice_is_refused_with_both_lines(images: Path) -> None:
    table = frame(images)
    table.loc[5, "path"] = "./ant/../ant/0.png"
    table.to_csv(images / "a.csv", index=False)
    with refused("line 7", "line 2", "once"):
        open_folder(images / "a.csv")


def test_splits_without_a_purpose_are_refused(images: Path) -> None:
    file = images / "a.csv"
    frame(images, split=["train"] * 11 + ["extra"]).to_csv(file, index=False)
    with refused("line 13", "'extra'", "validation"):
        open_folder(file)
    frame(images, split="train").to_csv(file, index=False)
    with refused("none to validate on", "--data.val_share"):
        open_folder(file)
    with refused("none to evaluate on"):
        open_validation(Data(str(file)))
    assert open_folder(file, val_share=0.3).splits[1].name == "held-out part"
    frame(images, split="test").to_csv(file, index=False)
    with refused("none to train on"):
        open_folder(file)
    frame(images, split=SPLITS).to_csv(file, index=False)
    with refused("data.val_share is 0.3", "val"):
        open_folder(file, val_share=0.3)


def test_one_class_and_no_rows_are_refused(images: Path) -> None:
    frame(images)[:4].to_csv(images / "a.csv", index=False)
    with refused("one class"):
        open_folder(images / "a.csv")
    frame(images)[:0].to_csv(images / "a.csv", index=False)
    with refused("no rows"):
        open_folder(images / "a.csv")


def test_a_table_that_is_missing_is_named(tmp_path: Path) -> None:
    with refused(str(tmp_path / "a.csv"), "missing"):
        open_source(Data(str(tmp_path / "a.csv")))
    assert is_table_name("x.TSV")
    assert not is_table_name("x.txt")


def test_a_folder_with_the_name_of_a_table_is_a_folder(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "set.csv")
    assert open_folder(root).class_names == CLASSES
