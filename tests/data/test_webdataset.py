"""WebDataset shards: what they give, in which order, and what they refuse."""

import json
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.pictures import png, tar, tar_folder
from helpers.refusals import refused
from helpers.tiny import tiny
from torch import Generator

from scalekd.cli.logs import shown_logs
from scalekd.data import webdataset as module
from scalekd.data.loader import build_loaders
from scalekd.data.open import open_source
from scalekd.data.sampler import ResumableBatchSampler
from scalekd.data.source import Source
from scalekd.data.webdataset import TarSamples, find_tars, shuffle_in_blocks
from scalekd.evaluation.evaluate import evaluate
from scalekd.jobs.distill import distill
from scalekd.jobs.preflight import run_preflight
from scalekd.networks import InputConfig
from scalekd.recipe import Data, Recipe

PLAIN = InputConfig(3, (8, 8), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tar_folder(tmp_path / "shards")


def source(root: Path, **options: int) -> Source:
    return open_source(Data(str(root), workers=0, **options))  # type: ignore[arg-type]


def order(shard: torch.Tensor, seed: int = 0) -> torch.Tensor:
    return shuffle_in_blocks(shard, Generator().manual_seed(seed))


def test_samples_are_the_images_and_the_classes_of_all_shards(root: Path) -> None:
    opened = source(root)
    assert (opened.classes, opened.input, opened.notes) == (3, None, [])
    train, validation = opened.training_set(PLAIN, 0), opened.validation_set(PLAIN)
    for split in (train, validation):
        items = [split[i] for i in range(len(split))]  # type: ignore[arg-type]
        assert [target for _, target in items] == [i % 3 for i in range(12)]
        values = [round(255 * image.mean().item()) for image, _ in items]
        assert values == list(range(12))


def test_names_of_files_may_say_the_split(tmp_path: Path) -> None:
    root = tar_folder(tmp_path / "shards")
    for folder, name in (("train", "imagenet1k-train"), ("val", "imagenet1k-validation")):
        for file in (root / folder).iterdir():
            file.rename(root / f"{name}-{file.name}")
        (root / folder).rmdir()
    tar(root / "imagenet1k-test-0000.tar", {"a.png": png(1)})
    opened = source(root)
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
    train = source(tmp_path).training_set(PLAIN, 0)
    assert [train[i][1] for i in range(4)] == [0, 1, 0, 1]


def test_shards_without_labels_are_learnt_from_without(tmp_path: Path) -> None:
    for shard in range(2):
        captions = {f"{i}.json": b'{"caption": "grey"}' for i in range(3)}
        images = {f"{i}.png": png(i) for i in range(3)}
        tar(tmp_path / f"{shard}.tar", dict(sorted({**captions, **images}.items())))
    opened = source(tmp_path)
    assert (opened.classes, opened.validation_set) == (None, None)
    batches, validation = build_loaders(
        opened, Data(str(tmp_path), workers=0), PLAIN, batch_size=3, seed=0
    )
    assert validation is None
    assert [images.shape for (images,) in batches] == [(3, 3, 8, 8)] * 2


def test_an_epochs_order_has_every_sample_once_and_is_another_for_each_seed() -> None:
    shard = torch.arange(40_000) // 100
    assert order(shard).sort().values.equal(torch.arange(40_000))
    assert order(shard).equal(order(shard))
    assert not order(shard).equal(order(shard, 1))


@pytest.mark.parametrize(("each", "near"), [(100, 82), (5000, 8)])
def test_what_is_read_together_is_of_few_shards_and_well_mixed(each: int, near: int) -> None:
    shard = torch.arange(400 * each) // each
    read = shard[order(shard)]
    block = max(8_192, 8 * each)
    of_block = read[:block].unique()
    assert near <= len(of_block) <= near + 1
    assert of_block.diff().float().mean() > 2, "neighbours are not taken together"
    assert len(read[:64].unique()) >= min(near, 30) * 0.9, "a batch is of all shards of a block"


def test_shards_of_different_sizes_are_all_read() -> None:
    sizes = torch.tensor([1, 30_000, 5, 0, 700, 20_000])
    shard = torch.repeat_interleave(torch.arange(6), sizes)
    assert order(shard).sort().values.equal(torch.arange(int(sizes.sum())))


def test_a_run_takes_its_batches_in_that_order(root: Path) -> None:
    opened = source(root)
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


def test_batches_are_the_same_with_any_number_of_workers_and_after_a_resume(root: Path) -> None:
    given = []
    for workers, start in ((0, 0), (2, 0), (1, 3)):
        data = Data(str(root), workers=workers, auto_augment="rand-m9-n2-mstd0.5")
        train, _ = build_loaders(
            open_source(data), data, PLAIN, batch_size=4, seed=5, epochs=2, start_step=start
        )
        given.append([images for images, _ in train])
    assert all(torch.equal(a, b) for a, b in zip(given[0], given[1], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(given[0][3:], given[2], strict=True))


def test_a_part_of_the_images_is_as_many_of_each_class(root: Path) -> None:
    train = source(root, train_images=6).training_set(PLAIN, 1)
    assert sorted(train[i][1] for i in range(6)) == [0, 0, 1, 1, 2, 2]
    with refused("data.train_images is 13", "12", str(root)):
        source(root, train_images=13)


def test_headers_are_read_once_until_a_shard_changes(
    root: Path, own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with shown_logs():
        assert source(root).classes == 3
        assert "3 tar files" in capsys.readouterr().err
        assert source(root).classes == 3
        assert capsys.readouterr().err == ""
    tar(root / "train" / "0003.tar", {"a.png": png(1), "a.cls": b"1"})
    assert len(source(root).training_set(PLAIN, 0)) == 13  # type: ignore[arg-type]
    for kept in own_cache.iterdir():
        kept.write_bytes(kept.read_bytes()[:100])
    assert len(source(root).training_set(PLAIN, 0)) == 13  # type: ignore[arg-type]


def test_a_cache_that_cannot_be_written_is_done_without(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert source(root).classes == 3


def test_few_shards_are_open_at_a_time(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_OPEN_TARS", 2)
    shards = TarSamples(find_tars(root))
    before = len(os.listdir("/proc/self/fd"))
    values = [image.getpixel((0, 0))[0] for image, _ in (shards[i] for i in range(24))]  # type: ignore[index,misc]
    assert values == [*range(12), *range(12)]
    assert len(os.listdir("/proc/self/fd")) == before + 2
    again = pickle.loads(pickle.dumps(shards))
    assert again[3][1] == 0
    del shards, again
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_sample_costs_twenty_bytes(root: Path) -> None:
    index = TarSamples(find_tars(root)).index
    columns = (index.tar, index.offset, index.size, index.target)
    assert sum(column.nbytes for column in columns) == 20 * 24


def test_long_names_are_no_harm(tmp_path: Path) -> None:
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
)
def test_a_shard_that_is_damaged_is_named(harm: Callable[[Path], None], root: Path) -> None:
    harm(root / "train" / "0001.tar")
    with refused(str(root / "train" / "0001.tar"), "cut off or damaged"):
        source(root)


@pytest.mark.parametrize(
    ("members", "said"),
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
)
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_sample_that_is_not_as_the_others_is_named(
    split: str, members: dict[str, bytes], said: list[str], root: Path
) -> None:
    tar(root / split / "0003.tar", members)
    with refused(*said, str(root)):
        source(root)


def test_labels_to_train_with_and_none_to_validate_with_are_refused(tmp_path: Path) -> None:
    tar(tmp_path / "train" / "0.tar", {"a.png": png(1), "a.cls": b"1"})
    with refused(str(tmp_path), "none to validate on", "val/"):
        source(tmp_path)
    tar(tmp_path / "val" / "0.tar", {"a.png": png(1)})
    with refused("'a.png'", str(tmp_path / "val" / "0.tar"), "no label"):
        source(tmp_path)


def test_shards_to_validate_on_alone_are_refused(root: Path) -> None:
    for file in (root / "train").iterdir():
        file.unlink()
    with refused(str(root), "none to train on", "train/"):
        source(root)


def test_shards_without_samples_and_of_one_class_are_refused(tmp_path: Path) -> None:
    tar(tmp_path / "train" / "0.tar", {})
    with refused("no sample", str(tmp_path / "train" / "0.tar")):
        source(tmp_path)
    for split in ("train", "val"):
        tar(tmp_path / split / "0.tar", {"a.png": png(1), "a.cls": b"0"})
    with refused("at least 2 classes", str(tmp_path)):
        source(tmp_path)


def test_classes_without_an_image_are_remarked_on(tmp_path: Path) -> None:
    for split in ("train", "val"):
        tar(
            tmp_path / split / "0.tar",
            {"a.png": png(1), "a.cls": b"1\n", "b.png": png(1), "b.cls": b"4"},
        )
    opened = source(tmp_path)
    assert opened.classes == 5
    assert [note.text for note in opened.notes] == [
        "of 5 classes, 0 to 4, 3 have no image, for example 0"
    ]


@pytest.mark.parametrize(
    "address", ["https://here/{0..9}.tar", "s3://bucket/shards", "pipe:curl https://here/0.tar"]
)
def test_shards_elsewhere_are_refused(address: str) -> None:
    with refused(address, "not on this machine", "--data.root"):
        open_source(Data(address))


def test_a_shard_that_vanishes_during_training_is_named(root: Path) -> None:
    train = source(root).training_set(PLAIN, 0)
    (root / "train" / "0002.tar").unlink()
    fresh = pickle.loads(pickle.dumps(train))  # what a loading process has not opened yet
    with refused(str(root / "train" / "0002.tar"), "No such file"):
        fresh[11]


@pytest.fixture
def recipe(root: Path) -> Recipe:
    return tiny(root)


def test_a_student_is_trained_and_measured_on_shards(recipe: Recipe, tmp_path: Path) -> None:
    out = distill(recipe, tmp_path / "out", parallel=1)
    said = json.loads((out / "summary.json").read_text())
    assert said["steps"] == 3
    assert evaluate(str(out), recipe.data) == said["student_top1"]


def test_what_needs_labels_is_refused_where_shards_have_none(
    recipe: Recipe, tmp_path: Path
) -> None:
    tar(tmp_path / "more" / "0.tar", {f"{i}.png": png(i) for i in range(4)})
    data = Data(str(tmp_path / "more"), 64, workers=0)
    with refused("supervised", "no labels"):
        run_preflight(replace(recipe, data=data, compare=["supervised"]))
    with refused("no labels", str(tmp_path / "more")):
        evaluate("test_resnet", data, "random")


def resident(pid: int) -> int:
    """Bytes of a process, without libraries; what several share is split among them."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    found = {line.partition(":")[0]: int(line.split()[1]) for line in lines[1:]}
    return 1024 * (found["Pss_Anon"] + found["Pss_Shmem"])


@pytest.mark.slow
def test_memory_stays_flat_over_a_thousand_shards(tmp_path: Path) -> None:
    image = png(3)
    for split, shards in (("train", 1_000), ("val", 1)):
        for shard in range(shards):
            members = {}
            for i in range(20):
                members |= {f"{shard}_{i}.png": image, f"{shard}_{i}.cls": b"%d" % (i % 2)}
            tar(tmp_path / split / f"{shard:04}.tar", members)
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
    said = ", ".join(f"{mib:.1f}" for mib in resident_at)
    print(f"MiB of one main and two loading processes, every 60 steps: {said}")
    half = len(resident_at) // 2
    assert np.mean(resident_at[-3:]) - np.mean(resident_at[half - 3 : half]) < 3, said
