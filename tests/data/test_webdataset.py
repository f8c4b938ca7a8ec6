"""WebDataset's tar files: what they give, in which order, and what is refused."""

import json
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.evaluating import top1_of
from helpers.pictures import PLAIN, mean_byte, open_folder, png, tar, tar_folder
from helpers.refusals import refused
from helpers.tiny import tiny
from torch import Generator

from scalekd.cli.logs import shown_logs
from scalekd.data import webdataset as module
from scalekd.data.loader import build_loaders
from scalekd.data.open import open_source
from scalekd.data.sampler import ResumableBatchSampler
from scalekd.data.webdataset import TarSamples, find_tars, shuffle_in_blocks
from scalekd.jobs.distill import distill
from scalekd.jobs.preflight import run_preflight
from scalekd.recipe import Data, Recipe
from scalekd.training.prepare import prepare


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tar_folder(tmp_path / "tars")


def draw_epoch(tar_numbers: torch.Tensor, seed: int = 0) -> torch.Tensor:
    return shuffle_in_blocks(tar_numbers, Generator().manual_seed(seed))


def test_samples_are_the_images_and_classes_of_all_tar_files(root: Path) -> None:
    opened = open_folder(root)
    assert (opened.classes, opened.input, opened.notes) == (3, None, [])
    train, validation = opened.training_set(PLAIN, 0), opened.validation_set(PLAIN)
    for split in (train, validation):
        items = [split[i] for i in range(len(split))]  # type: ignore[arg-type]
        assert [target for _, target in items] == [i % 3 for i in range(12)]
        values = [mean_byte(image) for image, _ in items]
        assert values == list(range(12))


def test_the_split_of_a_tar_file_may_be_part_of_its_name(tmp_path: Path) -> None:
    root = tar_folder(tmp_path / "tars")
    for folder, name in (("train", "imagenet1k-train"), ("val", "imagenet1k-validation")):
        for file in (root / folder).iterdir():
            file.rename(root / f"{name}-{file.name}")
        (root / folder).rmdir()
    tar(root / "imagenet1k-test-0000.tar", {"a.png": png(1)})
    opened = open_folder(root)
    assert opened.classes == 3
    assert len(opened.training_set(PLAIN, 0)) == len(opened.validation_set(PLAIN)) == 12  # type: ignore[arg-type]
    (note,) = opened.notes
    assert "1 of the tar files" in note.text
    assert "imagenet1k-test-0000.tar" in note.text


def test_a_label_may_be_in_json_and_other_members_are_not_read(tmp_path: Path) -> None:
    for split in ("train", "val"):
        members = {}
        for i in range(4):
            members |= {
                f"{i}.txt": b"a caption",
                f"{i}.json": json.dumps({"label": i % 2}).encode(),
            }
            members[f"{i}.JPG"] = png(i)
        members["__meta__.json"] = b"{}"
        tar(tmp_path / split / "0.tar", members)
    train = open_folder(tmp_path).training_set(PLAIN, 0)
    assert [train[i][1] for i in range(4)] == [0, 1, 0, 1]


def test_tar_files_without_labels_give_images_without_labels(tmp_path: Path) -> None:
    for number in range(2):
        captions = {f"{i}.json": b'{"caption": "grey"}' for i in range(3)}
        images = {f"{i}.png": png(i) for i in range(3)}
        tar(tmp_path / f"{number}.tar", dict(sorted({**captions, **images}.items())))
    opened = open_folder(tmp_path)
    assert (opened.classes, opened.validation_set) == (None, None)
    batches, validation = build_loaders(
        opened, Data(str(tmp_path), workers=0), PLAIN, batch_size=3, seed=0
    )
    assert validation is None
    assert [images.shape for (images,) in batches] == [(3, 3, 8, 8)] * 2


def test_an_epoch_has_every_sample_once_in_another_order_for_each_seed() -> None:
    tar_numbers = torch.arange(40_000) // 100
    assert draw_epoch(tar_numbers).sort().values.equal(torch.arange(40_000))
    assert draw_epoch(tar_numbers).equal(draw_epoch(tar_numbers))
    assert not draw_epoch(tar_numbers).equal(draw_epoch(tar_numbers, 1))


@pytest.mark.parametrize(("each", "near"), [(100, 82), (5000, 8)])
def test_a_block_of_samples_comes_from_few_tar_files_and_is_well_mixed(
    each: int, near: int
) -> None:
    tar_numbers = torch.arange(400 * each) // each
    read = tar_numbers[draw_epoch(tar_numbers)]
    block = max(8_192, 8 * each)
    of_block = read[:block].unique()
    assert near <= len(of_block) <= near + 1
    assert of_block.diff().float().mean() > 2, "neighbours are not taken together"
    assert len(read[:64].unique()) >= min(near, 30) * 0.9, (
        "a batch has samples of all tar files of a block"
    )


def test_tar_files_of_different_sizes_are_read_completely() -> None:
    sizes = torch.tensor([1, 30_000, 5, 0, 700, 20_000])
    tar_numbers = torch.repeat_interleave(torch.arange(6), sizes)
    assert draw_epoch(tar_numbers).sort().values.equal(torch.arange(int(sizes.sum())))


def test_a_runs_batches_have_the_order_of_the_sources_epoch_sampler(root: Path) -> None:
    opened = open_folder(root)
    assert opened.epoch_sampler is not None
    batches, _ = build_loaders(
        opened, Data(str(root), workers=0), PLAIN, batch_size=4, seed=5, epochs=2
    )
    sampler = batches.batch_sampler
    assert isinstance(sampler, ResumableBatchSampler)
    expected = opened.epoch_sampler(Generator().manual_seed(5 * 100_003 + 1))
    assert [
        name - 12 for step in (3, 4, 5) for name in sampler.sample_keys(step)
    ] == expected.tolist()


def test_batches_from_tar_files_are_the_same_with_any_number_of_workers_and_after_a_resume(
    root: Path,
) -> None:
    batches = []
    for workers, start in ((0, 0), (2, 0), (1, 3)):
        data = Data(str(root), workers=workers, auto_augment="rand-m9-n2-mstd0.5")
        train, _ = build_loaders(
            open_source(data), data, PLAIN, batch_size=4, seed=5, epochs=2, start_step=start
        )
        batches.append([images for images, _ in train])
    assert all(torch.equal(a, b) for a, b in zip(batches[0], batches[1], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(batches[0][3:], batches[2], strict=True))


def test_a_subset_of_the_samples_has_as_many_of_each_class(root: Path) -> None:
    train = open_folder(root, train_images=6).training_set(PLAIN, 1)
    assert sorted(train[i][1] for i in range(6)) == [0, 0, 1, 1, 2, 2]
    with refused("data.train_images is 13", "12", str(root)):
        open_folder(root, train_images=13)


def test_headers_are_read_once_until_a_tar_file_changes(
    root: Path, index_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with shown_logs():
        assert open_folder(root).classes == 3
        assert "3 tar files" in capsys.readouterr().err
        assert open_folder(root).classes == 3
        assert capsys.readouterr().err == ""
    tar(root / "train" / "0003.tar", {"a.png": png(1), "a.cls": b"1"})
    assert len(open_folder(root).training_set(PLAIN, 0)) == 13  # type: ignore[arg-type]
    for index in index_cache.iterdir():
        index.write_bytes(index.read_bytes()[:100])
    assert len(open_folder(root).training_set(PLAIN, 0)) == 13  # type: ignore[arg-type]


def test_tar_files_are_read_where_their_index_cannot_be_stored(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert open_folder(root).classes == 3


def count_open_files(folder: Path) -> int:
    """How many files below a folder this process has open."""
    links = Path("/proc/self/fd").iterdir()
    return sum(os.path.realpath(link).startswith(str(folder)) for link in links)


def test_few_tar_files_are_open_at_a_time(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_OPEN_TARS", 2)
    samples = TarSamples(find_tars(root))
    assert count_open_files(root) == 0
    values = [image.getpixel((0, 0))[0] for image, _ in (samples[i] for i in range(24))]  # type: ignore[index,misc]
    assert values == [*range(12), *range(12)]
    assert count_open_files(root) == 2
    again = pickle.loads(pickle.dumps(samples))
    assert again[3][1] == 0
    del samples, again
    assert count_open_files(root) == 0


def test_the_index_takes_twenty_bytes_for_each_sample(root: Path) -> None:
    index = TarSamples(find_tars(root)).index
    columns = (index.tar, index.offset, index.size, index.target)
    assert sum(column.nbytes for column in columns) == 20 * 24


def test_members_with_long_names_are_read(tmp_path: Path) -> None:
    key = "folder/" * 20 + "x" * 120
    file = tar(tmp_path / "0.tar", {f"{key}.png": png(7), f"{key}.cls": b"1"})
    (sample,) = TarSamples([file])
    assert sample[1] == 1
    assert sample[0].getpixel((0, 0)) == (7, 7, 7)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:1_700])


def overwrite(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[1024 : 1024 + 512] = b"x" * 512
    file.write_bytes(content)


@pytest.mark.parametrize(
    "harm",
    [cut, overwrite, lambda f: f.write_bytes(b""), lambda f: f.write_bytes(b"\x1f\x8b12345")],
    ids=["cut off", "overwritten", "empty", "compressed"],
)
def test_a_damaged_tar_file_is_named(harm: Callable[[Path], None], root: Path) -> None:
    harm(root / "train" / "0001.tar")
    with refused(str(root / "train" / "0001.tar"), "cut off or damaged"):
        open_folder(root)


@pytest.mark.parametrize(
    ("members", "facts"),
    [
        ({"a.cls": b"1"}, ["sample 'a'", "no images", ".cls"]),
        ({"a.png": png(1), "a.jpg": png(2), "a.cls": b"1"}, ["sample 'a'", "2 images"]),
        ({"x/a.png": png(1)}, ["'x/a.png'", "no label", ".cls"]),
        ({"a.png": png(1), "a.cls": b"cat"}, ["sample 'a'", "'cat'", "from 0 on"]),
        ({"a.png": png(1), "a.cls": b"\xff"}, ["sample 'a'", "from 0 on"]),
        ({"a.png": png(1), "a.json": b'{"label": "cat"}'}, ["'cat'", "from 0 on"]),
        ({"a.png": png(1), "a.json": b"{label}"}, ["sample 'a'", "from 0 on"]),
        ({"a.png": png(1), "a.cls": b"-1"}, ["label -1", "from 0 on"]),
        ({"a.png": png(1), "a.cls": b"3"}, ["different classes", "3"]),
    ],
    ids=[
        "no image",
        "two images",
        "no label",
        "word as class",
        "bytes as class",
        "word in json",
        "damaged json",
        "negative class",
        "extra class",
    ],
)
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_sample_without_one_image_and_a_valid_label_is_named(
    split: str, members: dict[str, bytes], facts: list[str], root: Path
) -> None:
    if split == "train" and facts[0] == "different classes":
        return  # a class of no validation image is trained
    tar(root / split / "0003.tar", members)
    with refused(*facts, str(root)):
        open_folder(root)


def test_a_note_names_a_class_without_validation_image(root: Path) -> None:
    tar(root / "train" / "0003.tar", {"a.png": png(1), "a.cls": b"3"})
    opened = open_folder(root)
    assert (opened.classes, opened.splits[0].images) == (4, 13)
    assert [note.text for note in opened.notes] == [
        "val has no image of 1 of the 4 classes, for example 3"
    ]


def test_training_labels_without_validation_labels_are_refused(tmp_path: Path) -> None:
    tar(tmp_path / "train" / "0.tar", {"a.png": png(1), "a.cls": b"1"})
    with refused(str(tmp_path), "none to validate on", "val/"):
        open_folder(tmp_path)
    tar(tmp_path / "val" / "0.tar", {"a.png": png(1)})
    with refused("'a.png'", str(tmp_path / "val" / "0.tar"), "no label"):
        open_folder(tmp_path)


def test_tar_files_for_validation_only_are_refused(root: Path) -> None:
    for file in (root / "train").iterdir():
        file.unlink()
    with refused(str(root), "none to train on", "train/"):
        open_folder(root)


def test_tar_files_without_samples_or_of_one_class_are_refused(tmp_path: Path) -> None:
    tar(tmp_path / "train" / "0.tar", {})
    with refused("no sample", str(tmp_path / "train" / "0.tar")):
        open_folder(tmp_path)
    for split in ("train", "val"):
        tar(tmp_path / split / "0.tar", {"a.png": png(1), "a.cls": b"0"})
    with refused("at least 2 classes", str(tmp_path)):
        open_folder(tmp_path)


def test_a_note_counts_the_classes_without_an_image(tmp_path: Path) -> None:
    for split in ("train", "val"):
        tar(
            tmp_path / split / "0.tar",
            {"a.png": png(1), "a.cls": b"1\n", "b.png": png(1), "b.cls": b"4"},
        )
    opened = open_folder(tmp_path)
    assert opened.classes == 5
    assert [note.text for note in opened.notes] == [
        "of 5 classes, 0 to 4, 3 have no image, for example 0"
    ]


@pytest.mark.parametrize(
    "address",
    ["https://here/{0..9}.tar", "s3://bucket/tars", "pipe:curl https://here/0.tar"],
    ids=["https", "s3", "pipe"],
)
def test_tar_files_on_another_machine_are_refused(address: str) -> None:
    with refused(address, "not on this machine", "--data.root"):
        open_source(Data(address))


def test_a_tar_file_that_vanishes_during_training_is_named(root: Path) -> None:
    train = open_folder(root).training_set(PLAIN, 0)
    (root / "train" / "0002.tar").unlink()
    fresh = pickle.loads(pickle.dumps(train))  # what a loading process has not opened yet
    with refused(str(root / "train" / "0002.tar"), "No such file"):
        fresh[11]


@pytest.fixture
def recipe(root: Path) -> Recipe:
    return tiny(root)


def test_a_student_is_trained_and_evaluated_on_tar_files(recipe: Recipe, tmp_path: Path) -> None:
    out = distill(recipe, tmp_path / "out", parallel=1)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["steps"] == 3
    assert top1_of(str(out), recipe.data) == summary["student_top1"]


def test_what_needs_labels_is_refused_where_tar_files_have_none(
    recipe: Recipe, tmp_path: Path
) -> None:
    tar(tmp_path / "more" / "0.tar", {f"{i}.png": png(i) for i in range(4)})
    data = Data(str(tmp_path / "more"), 64, workers=0)
    with refused("supervised", "no labels"):
        run_preflight(prepare(replace(recipe, data=data, compare=["supervised"])))
    with refused("no labels", str(tmp_path / "more")):
        top1_of("test_resnet", data, "random")


def resident(pid: int) -> int:
    """Bytes of a process, without libraries; what several share is split among them."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    memory = {line.partition(":")[0]: int(line.split()[1]) for line in lines[1:]}
    return 1024 * (memory["Pss_Anon"] + memory["Pss_Shmem"])


@pytest.mark.slow
def test_memory_stays_flat_over_a_thousand_tar_files(tmp_path: Path) -> None:
    image = png(3)
    for split, count in (("train", 1_000), ("val", 1)):
        for number in range(count):
            members = {}
            for i in range(20):
                members |= {f"{number}_{i}.png": image, f"{number}_{i}.cls": b"%d" % (i % 2)}
            tar(tmp_path / split / f"{number:04}.tar", members)
    data = Data(str(tmp_path), workers=2)
    batches, _ = build_loaders(open_source(data), data, PLAIN, batch_size=50, seed=0, epochs=3)
    sampler = batches.batch_sampler
    assert isinstance(sampler, ResumableBatchSampler)
    assert sampler.steps == 1_200
    resident_at = []
    iterator = iter(batches)
    pids = [os.getpid(), *(worker.pid for worker in iterator._workers)]  # type: ignore[attr-defined]
    for step, (images, _) in enumerate(iterator):
        assert images.shape == (50, 3, 8, 8)
        if step % 60 == 59:
            resident_at.append(sum(map(resident, pids)) / 2**20)
    series = ", ".join(f"{mib:.1f}" for mib in resident_at)
    print(f"MiB of one main and two worker processes, every 60 steps: {series}")
    half = len(resident_at) // 2
    assert np.mean(resident_at[-3:]) - np.mean(resident_at[half - 3 : half]) < 3, series
