"""Corrupt images: how they are skipped and counted, and when they end a run."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.evaluating import top1_of
from helpers.pictures import PLAIN, flat_folder, image_folder, mean_byte, png, tar, tar_folder
from helpers.refusals import refused
from helpers.tiny import tiny
from helpers.warned import warned
from PIL import Image

from scalekd.cli.logs import shown_logs
from scalekd.data import corrupt, loader
from scalekd.data import source as sources
from scalekd.data.corrupt import CheckedSamples, CorruptImageError
from scalekd.data.decoding import decode_image
from scalekd.data.loader import build_loaders
from scalekd.data.open import open_source
from scalekd.data.source import IGNORED, Source
from scalekd.jobs.distill import distill
from scalekd.recipe import Data, Recipe
from scalekd.training.validation import top1


@pytest.fixture(autouse=True)
def decode_nothing_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat few images as many, of which none is decoded before training."""
    monkeypatch.setattr(sources, "MAX_DECODED_BEFOREHAND", 0)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Twelve training images, 3 and 4 of them cut off, and twelve validation images, 11 cut off."""
    root = tar_folder(tmp_path / "tars")
    for split, indices in (("train", (3, 4)), ("val", (11,))):
        for i in indices:
            file = root / split / f"{i // 4:04}.tar"
            content = file.read_bytes()
            file.write_bytes(content.replace(png(i), png(i)[:40].ljust(len(png(i)), b"\0")))
    return root


def source(root: Path, **options: Any) -> Source:
    return open_source(Data(str(root), **{"workers": 0, "corrupt_images": "skip", **options}))


def test_the_next_image_replaces_a_corrupt_one_and_each_is_named_once(root: Path) -> None:
    opened = source(root)
    train = opened.training_set(PLAIN, 0)
    with warned("skipped") as messages:
        samples = [train[key] for key in range(24)]
    assert [mean_byte(image) for image, _ in samples[:12]] == [0, 1, 2, 5, 5, 5, 6, 7, 8, 9, 10, 11]
    assert [target for _, target in samples[:12]] == [0, 1, 2, 2, 2, 2, 0, 1, 2, 0, 1, 2]
    assert torch.equal(samples[3][0], train[3][0])
    assert len(messages) == 2
    assert "'000003.png'" in messages[0]
    assert str(root / "train" / "0000.tar") in messages[0]
    assert messages[0].endswith("skipped")
    assert opened.corrupt_count() == 2


def test_the_first_image_replaces_a_corrupt_last_one(tmp_path: Path) -> None:
    root = flat_folder(tmp_path / "flat", 4)
    files = sorted(str(file) for file in root.rglob("*.jpg"))
    Path(files[-1]).write_bytes(b"no picture")
    train = source(root).training_set(PLAIN, 0)
    with warned(r"skipped"):
        train[3]
    first = decode_image(Path(files[0]).read_bytes(), "it")
    assert train.samples.read_next(range(4), 3) == (first,)  # type: ignore[attr-defined]


def test_a_corrupt_image_of_a_subset_is_replaced_by_another_of_the_subset(root: Path) -> None:
    train = source(root, train_images=6).training_set(PLAIN, 0)
    subset = train.subset  # type: ignore[attr-defined]
    assert len({3, 4} & set(subset)) == 1
    position = next(i for i, index in enumerate(subset) if index in (3, 4))
    with warned("skipped"):
        assert mean_byte(train[position][0]) == subset[(position + 1) % 6]


def test_a_corrupt_validation_image_does_not_count_for_accuracy(root: Path) -> None:
    opened = source(root)
    _, validation = build_loaders(opened, Data(str(root), workers=0), PLAIN, batch_size=4, seed=0)
    assert validation is not None

    def classify(images: torch.Tensor) -> torch.Tensor:
        values = (255 * images.mean((1, 2, 3))).round().long()
        right = values % 3
        return torch.nn.functional.one_hot(
            torch.where(values < 6, right, (right + 1) % 3), 3
        ).float()

    with warned("'000011.png'"):
        assert top1(classify, validation, 3, input=PLAIN) == pytest.approx(6 / 11)
    assert opened.corrupt_count() == 1
    assert [int(target) for _, targets in validation for target in targets][11] == IGNORED


def test_corrupt_images_are_counted_over_all_worker_processes(
    root: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "EXAMPLES", 1)  # so that this process reads no corrupt one
    opened = source(root)
    data = Data(str(root), workers=2)
    plain = Data(str(root), workers=0)
    train, _ = build_loaders(opened, data, PLAIN, batch_size=4, seed=0, epochs=3)
    with shown_logs():
        batches = [images for images, _ in train]
    assert opened.corrupt_count() == 2
    skipped = [line for line in capfd.readouterr().err.splitlines() if line.endswith("skipped")]
    assert len(set(skipped)) == 2
    assert len(skipped) < 5, "three epochs would name them six times"
    with warned("skipped"):
        again = [
            images
            for images, _ in build_loaders(
                source(root), plain, PLAIN, batch_size=4, seed=0, epochs=3
            )[0]
        ]
    assert all(torch.equal(a, b) for a, b in zip(batches, again, strict=True))


def test_a_corrupt_image_stops_a_run_by_default_also_in_a_worker_process(root: Path) -> None:
    for workers in (0, 1):
        data = Data(str(root), workers=workers)
        with refused("cannot read the image '00000", str(root), "--data.corrupt_images skip"):
            list(build_loaders(open_source(data), data, PLAIN, batch_size=4, seed=0)[0])


def test_few_images_are_decoded_before_training(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "MAX_DECODED_BEFOREHAND", 24)
    with refused("'000003.png'", "repair or remove"):
        source(root, corrupt_images="stop")
    with warned("skipped") as messages:
        opened = source(root)
    assert len(messages) == 3
    assert opened.corrupt_count() == 3


def test_nothing_but_corrupt_images_is_refused(tmp_path: Path) -> None:
    for split in ("train", "val"):
        members = {f"{i}.png": b"nothing" for i in range(3)}
        members |= {f"{i}.cls": b"%d" % (i % 2) for i in range(3)}
        tar(tmp_path / split / "0.tar", dict(sorted(members.items())))
    opened = source(tmp_path)
    with warned("skipped"), refused("not one of the 3 images"):
        opened.training_set(PLAIN, 0)[1]
    validation = opened.validation_set
    assert validation is not None
    with warned("skipped"), refused("not one of the 3 images"):
        list(validation(PLAIN))  # type: ignore[call-overload]


def test_very_many_corrupt_images_in_a_row_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(corrupt, "MAX_CORRUPT_IN_A_ROW", 5)
    root = flat_folder(tmp_path / "flat", 12)
    for file in sorted(root.rglob("*.jpg"))[2:9]:
        file.write_bytes(b"nothing")
    train = source(root).training_set(PLAIN, 0)
    files = train.samples.samples.files  # type: ignore[attr-defined]
    first = next(i for i, file in enumerate(files) if Path(file).read_bytes() == b"nothing")
    with (
        warned("skipped"),
        refused("5 images in a row", f"number {first}"),
    ):
        train[first]


def test_a_file_that_cannot_be_read_now_is_not_corrupt(tmp_path: Path) -> None:
    root = flat_folder(tmp_path / "flat", 4)
    train = source(root).training_set(PLAIN, 0)
    file = Path(train.samples.samples.files[1])  # type: ignore[attr-defined]
    file.rename(tmp_path / "elsewhere.jpg")
    with refused(str(file), "No such file", "bring it back"):
        train[1]


@pytest.mark.parametrize(
    "content",
    [b"", b"text", png(1)[:50], png(1)[:30] + b"\0" * 40, b"GIF89a" + b"\xff" * 20],
    ids=["empty", "text", "cut off", "zeros within", "header only"],
)
def test_an_image_that_is_damaged_in_any_way_is_corrupt(content: bytes) -> None:
    with pytest.raises(CorruptImageError, match="cannot read the image it"):
        decode_image(content, "it")


def test_no_image_of_a_readable_split_is_replaced(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "images", each=1)
    files = sorted(str(f) for f in root.glob("train/*/*"))
    readable = CheckedSamples([(Image.open(f),) for f in files], "stop")
    assert [readable.read_next(range(3), i) for i in range(3)] == [
        readable.samples[i] for i in range(3)
    ]
    assert readable.corrupt_count() == 0


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    root = image_folder(tmp_path / "images")
    (root / "train" / "bee" / "1.png").write_bytes(b"nothing")
    (root / "val" / "cat" / "2.jpg").write_bytes(b"nothing")
    return tiny(root, data=Data(str(root), 64, workers=0, corrupt_images="skip"), batch_size=6)


def test_a_run_skips_corrupt_images_and_counts_them_in_its_summary(
    recipe: Recipe, tmp_path: Path
) -> None:
    with warned("skipped"):
        out = distill(recipe, tmp_path / "out", parallel=1)
    summary = json.loads((out / "summary.json").read_text())
    top1_of_run = summary["student_top1"]
    assert summary["corrupt_images"] == 2
    assert 11 * top1_of_run == pytest.approx(round(11 * top1_of_run))
    with warned("skipped"):
        assert top1_of(str(out), recipe.data) == top1_of_run
    stopping = replace(recipe, data=replace(recipe.data, corrupt_images="stop"))
    with refused(os.path.join("bee", "1.png"), "--data.corrupt_images skip"):
        distill(stopping, tmp_path / "other", parallel=1)
