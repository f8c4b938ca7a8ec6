"""Datasets of Hugging Face, made by its own library and read from folders."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from helpers.evaluating import top1_of
from helpers.pictures import PLAIN, image_folder, mean_byte, png
from helpers.refusals import refused
from helpers.tiny import tiny
from helpers.warned import warned

from scalekd.data import source as sources
from scalekd.data.loader import build_loaders
from scalekd.data.open import find_layout, open_source
from scalekd.data.source import Source
from scalekd.jobs.distill import distill
from scalekd.jobs.preflight import run_preflight
from scalekd.recipe import Data
from scalekd.training.prepare import prepare

NAMES = ["ant", "bee", "cat"]


def features(**more: Any) -> datasets.Features:
    plain = {"picture": datasets.Image(), "kind": datasets.ClassLabel(names=NAMES)}
    return datasets.Features({**plain, **more})


def rows(count: int, kinds: Any = None, **more: Any) -> datasets.Dataset:
    """Grey images, number i of value and class i % 3."""
    content = {
        "picture": [{"bytes": png(i), "path": None} for i in range(count)],
        "kind": [i % 3 for i in range(count)] if kinds is None else kinds,
    }
    return datasets.Dataset.from_dict(
        {**content, **{n: [0] * count for n in more}}, features(**more)
    )


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def saved(root: Path, **splits: datasets.Dataset) -> Path:
    datasets.DatasetDict(splits).save_to_disk(root)
    return root


def parquet(root: Path, **splits: int) -> Path:
    root.mkdir()
    for split, count in splits.items():
        rows(count).to_parquet(root / f"{split}-00000-of-00001.parquet")
    return root


def source(root: Path | str, **options: Any) -> Source:
    return open_source(Data(f"hf:{root}", **{"workers": 0, **options}))


def values(split: Any) -> list[tuple[int, int]]:
    return [(mean_byte(image), kind) for image, kind in map(split.__getitem__, range(len(split)))]


def test_a_saved_dataset_gives_its_images_and_classes(tmp_path: Path) -> None:
    opened = source(saved(tmp_path / "set", train=rows(9), validation=rows(4)))
    assert (opened.classes, opened.input) == (3, None)
    assert [note.text for note in opened.notes] == [
        f"accuracy is measured on the split validation of hf:{tmp_path / 'set'}"
    ]
    assert opened.validation_set is not None
    assert values(opened.training_set(PLAIN, 0)) == [(i, i % 3) for i in range(9)]
    assert values(opened.validation_set(PLAIN)) == [(i, i % 3) for i in range(4)]


@pytest.mark.parametrize("name", ["val", "valid", "test"])
def test_a_note_names_the_split_that_accuracy_is_measured_on(name: str, tmp_path: Path) -> None:
    more = {"test": rows(5)} if name != "test" else {}
    opened = source(saved(tmp_path / "set", train=rows(9), **{name: rows(4)}, **more))
    assert f"split {name} of" in opened.notes[0].text
    assert opened.validation_set is not None
    assert len(opened.validation_set(PLAIN)) == 4  # type: ignore[arg-type]


@pytest.mark.usefixtures("cached")
def test_a_folder_of_parquet_files_is_a_dataset(tmp_path: Path) -> None:
    opened = source(parquet(tmp_path / "set", train=9, test=4))
    assert opened.classes == 3
    assert values(opened.training_set(PLAIN, 0)) == [(i, i % 3) for i in range(9)]


@pytest.mark.usefixtures("cached")
def test_a_folder_of_images_is_a_dataset(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "images", each=2)
    opened = source(root)
    assert opened.classes == 3
    theirs, ours = (
        open_source(Data(name, workers=0)).training_set(PLAIN, 3)
        for name in (f"hf:{root}", str(root))
    )
    assert sorted(values(theirs)) == sorted(values(ours))


def test_a_dataset_without_a_class_label_gives_images_without_labels(tmp_path: Path) -> None:
    rows(6).remove_columns("kind").save_to_disk(tmp_path / "set")
    opened = source(tmp_path / "set")
    assert (opened.classes, opened.validation_set) == (None, None)
    (note,) = opened.notes
    assert "picture: Image" in note.text
    assert len(opened.training_set(PLAIN, 0)[0]) == 1


def test_batches_from_a_dataset_are_the_same_with_any_number_of_workers(tmp_path: Path) -> None:
    root = saved(tmp_path / "set", train=rows(12), test=rows(4))
    batches = []
    for workers in (0, 2):
        data = Data(f"hf:{root}", workers=workers, auto_augment="rand-m9-n2-mstd0.5")
        train, _ = build_loaders(open_source(data), data, PLAIN, batch_size=4, seed=5, epochs=2)
        batches.append([images for images, _ in train])
    assert all(torch.equal(a, b) for a, b in zip(*batches, strict=True))


def test_a_corrupt_image_of_a_dataset_is_named_by_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corrupt = {"picture": [{"bytes": b"nothing", "path": None}, None], "kind": [1, 1]}
    more = datasets.Dataset.from_dict(corrupt, features())
    train = datasets.concatenate_datasets([rows(4), more])
    root = saved(tmp_path / "set", train=train, test=rows(3))
    with refused("number 4 of the split train", str(root), "repair or remove"):
        source(root)
    monkeypatch.setattr(sources, "MAX_DECODED_BEFOREHAND", 0)
    opened = source(root, corrupt_images="skip")
    with warned("number [45] of"):
        assert values(opened.training_set(PLAIN, 0)) == [(i, i % 3) for i in (0, 1, 2, 3, 0, 0)]
    assert opened.corrupt_count() == 2


def test_features_are_listed_where_the_image_or_the_label_is_ambiguous(tmp_path: Path) -> None:
    two = saved(tmp_path / "two", train=rows(3, coarse=datasets.ClassLabel(names=["a"])))
    with refused("picture: Image, kind: ClassLabel, coarse: ClassLabel", "remove_columns"):
        source(two)
    none = saved(tmp_path / "none", train=rows(3).remove_columns("picture"))
    with refused("kind: ClassLabel", "one Image", str(none)):
        source(none)


@pytest.mark.usefixtures("cached")
def test_a_missing_split_is_refused_with_those_that_there_are(tmp_path: Path) -> None:
    with refused("test", "none is train"):
        source(saved(tmp_path / "one", test=rows(3)))
    with refused("the splits train, extra", "validation, val, valid, test"):
        source(saved(tmp_path / "two", train=rows(3), extra=rows(3)))
    with refused("cannot be loaded", "no data"):
        source(parquet(tmp_path / "three", train=3, test=0))


def test_validation_classes_that_differ_from_the_training_classes_are_refused(
    tmp_path: Path,
) -> None:
    other = rows(3).cast_column("kind", datasets.ClassLabel(names=["ant", "bee", "cow"]))
    with refused("different classes", "cat, cow"):
        source(saved(tmp_path / "set", train=rows(3), test=other))


def test_validation_classes_in_another_order_are_brought_into_that_of_the_training_classes(
    tmp_path: Path,
) -> None:
    other = rows(3).cast_column("kind", datasets.ClassLabel(names=["bee", "ant", "cat"]))
    opened = source(saved(tmp_path / "set", train=rows(3), test=other))
    assert opened.validation_set is not None
    assert values(opened.validation_set(PLAIN)) == [(0, 1), (1, 0), (2, 2)]


def test_a_dataset_of_one_class_is_refused(tmp_path: Path) -> None:
    one = rows(2, [0, 0]).cast_column("kind", datasets.ClassLabel(names=["ant"]))
    with refused("one class", "at least 2"):
        source(saved(tmp_path / "set", train=one, test=one))


@pytest.mark.parametrize("kind", [-1, None])
def test_images_without_a_class_among_labelled_ones_are_refused(kind: Any, tmp_path: Path) -> None:
    with refused("1 of the 3 images of the split test", "number 2"):
        source(saved(tmp_path / "set", train=rows(3), test=rows(3, [0, 1, kind])))


def test_a_dataset_of_too_few_images_is_refused(tmp_path: Path) -> None:
    root = saved(tmp_path / "set", train=rows(3), test=rows(3))
    with refused("data.train_images is 9", "3"):
        source(root, train_images=9)
    with refused("3 images", "batch_size is 4"):
        build_loaders(source(root), Data(f"hf:{root}", workers=0), PLAIN, batch_size=4, seed=0)


def test_an_empty_dataset_name_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    with refused("hf:NAME", "hf:FOLDER"):
        source("")
    (tmp_path / "empty").mkdir()
    with refused(str(tmp_path / "empty"), "cannot be loaded"):
        source(tmp_path / "empty")


def test_a_name_on_an_unreachable_hub_is_refused_in_one_line() -> None:
    code = (
        "from scalekd.cli.main import main; "
        "main(['evaluate', 'test_vit', '--data.root', 'hf:nobody/nothing'])"
    )
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=offline, capture_output=True, text=True)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("scalekd: error:")]
    assert "'nobody/nothing' cannot be loaded" in line
    assert "Traceback" not in done.stderr


def test_a_missing_datasets_library_is_refused_with_the_extra_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert find_layout(Data("hf:mnist")) == "hugging_face"
    with refused("hf:mnist", "scalekd[hub]"):
        source("mnist")


def test_a_student_is_trained_and_evaluated_on_a_dataset(tmp_path: Path) -> None:
    root = saved(tmp_path / "set", train=rows(9), test=rows(6))
    recipe = tiny(f"hf:{root}")
    out = distill(recipe, tmp_path / "out", parallel=1)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["notes"][0]["text"] == f"accuracy is measured on the split test of hf:{root}"
    assert top1_of(str(out), recipe.data) == summary["student_top1"]
    assert run_preflight(prepare(recipe)).labels
