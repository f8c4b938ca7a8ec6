import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.refusals import refused

from scalekd.cache import store
from scalekd.cache.encoding import encode
from scalekd.cache.store import Cache, Contents, described, pixel_fingerprint
from scalekd.networks import CachedOutputs, InputConfig

ROWS, IN_A_SHARD = 10, 4
CONTENTS = Contents(
    of={"teacher": "a"},
    images=5,
    views=2,
    seed=0,
    input=InputConfig(3, (8, 8), (0.5,) * 3, (0.5,) * 3),
    precision="float32",
    shard_rows=IN_A_SHARD,
    made_with={"timm": "1"},
)


def kept(rows: range) -> CachedOutputs:
    numbers = torch.tensor(rows).float()
    final = numbers.view(-1, 1, 1, 1) + torch.arange(12.0).view(1, 3, 2, 2)
    return CachedOutputs(final, numbers.view(-1, 1) * torch.ones(5), [-numbers.view(-1, 1)])


def written(folder: Path, contents: Contents = CONTENTS) -> Cache:
    folder.mkdir(exist_ok=True)
    described(folder).write_text(json.dumps(contents, default=vars))
    cache = Cache(folder, contents)
    for shard in range(contents.shards):
        rows = contents.rows_of(shard)
        glimpses = torch.tensor(rows).float().view(-1, 1) * torch.ones(8)
        cache.write(shard, encode(kept(rows), contents.precision), glimpses)
    return Cache.whole(folder)


def test_each_row_is_what_was_written(tmp_path: Path) -> None:
    cache = written(tmp_path)
    assert [len(CONTENTS.rows_of(n)) for n in range(CONTENTS.shards)] == [4, 4, 2]
    for row in (0, 3, 4, 9, 1):
        there, seen = cache[row]
        expected = kept(range(row, row + 1))
        assert torch.equal(there.final, expected.final)
        assert torch.equal(there.logits, expected.logits)
        assert torch.equal(there.tail_inputs[0], expected.tail_inputs[0])
        assert seen.tolist() == [[float(row)] * 8]


def test_another_process_opens_its_own_files(tmp_path: Path) -> None:
    cache = written(tmp_path)
    _ = cache[0]
    assert cache.open
    twin = pickle.loads(pickle.dumps(cache))
    assert not twin.open
    assert torch.equal(twin[9][0].final, cache[9][0].final)


def test_few_files_are_open_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "OPEN", 2)
    cache = written(tmp_path, replace(CONTENTS, shard_rows=1))
    for row in range(ROWS):
        _ = cache[row]
    assert list(cache.open) == [8, 9]


@pytest.mark.parametrize("where", [0.02, 0.3, 0.5, 0.7, 0.9, 0.999])
def test_a_flipped_bit_anywhere_is_found_and_its_shard_named(tmp_path: Path, where: float) -> None:
    cache = written(tmp_path)
    file = cache.file(1)
    content = bytearray(file.read_bytes())
    content[int(where * len(content))] ^= 1
    file.write_bytes(content)
    with refused("000001.safetensors", "--resume makes it anew"):
        for row in CONTENTS.rows_of(1):
            _ = Cache.whole(tmp_path)[row]
    assert [Cache.whole(tmp_path).verify(n) for n in range(3)] == [True, False, True]


@pytest.mark.parametrize("left", [0, 7, 100, -1])
def test_a_shard_that_was_cut_off_is_found(tmp_path: Path, left: int) -> None:
    cache = written(tmp_path)
    cache.file(2).write_bytes(cache.file(2).read_bytes()[:left])
    with refused("000002.safetensors", "is damaged"):
        _ = Cache.whole(tmp_path)[9]


def test_a_shard_of_another_cache_or_place_is_refused(tmp_path: Path) -> None:
    cache = written(tmp_path / "one")
    other = written(tmp_path / "other", replace(CONTENTS, seed=1))
    cache.file(0).write_bytes(other.file(0).read_bytes())
    cache.file(1).write_bytes(cache.file(2).read_bytes())
    for row in (0, 4):
        with refused("belongs to another cache", "remove it"):
            _ = Cache.whole(tmp_path / "one")[row]


def test_a_shard_that_is_missing_is_named_at_once(tmp_path: Path) -> None:
    written(tmp_path).file(1).unlink()
    with refused("not finished: 1 of its 3 shards are missing, first 000001.safetensors"):
        Cache.whole(tmp_path)


def test_a_folder_that_is_no_cache_is_refused(tmp_path: Path) -> None:
    with refused("is no cache: it has no cache.json", "`scalekd cache` makes one"):
        Cache.whole(tmp_path)


def test_a_cache_of_another_format_is_refused(tmp_path: Path) -> None:
    written(tmp_path)
    plain = json.loads(described(tmp_path).read_text())
    described(tmp_path).write_text(json.dumps({**plain, "format": 99}))
    with refused("is of format 99, and this scalekd reads format 1"):
        Cache.whole(tmp_path)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 1}', '{"format": 1, "input": 3}'])
def test_a_damaged_description_is_refused(tmp_path: Path, text: str) -> None:
    described(tmp_path).write_text(text)
    with refused("cache.json", "is damaged", "make the cache anew"):
        Cache.whole(tmp_path)


def test_a_shard_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    cache = Cache(tmp_path, CONTENTS)
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        cache.write(0, encode(kept(range(4)), "float32"), torch.zeros(4, 8))
    assert not list(tmp_path.iterdir())


def test_a_glimpse_tells_other_crops_apart() -> None:
    image = torch.randn(3, 20, 20, generator=torch.Generator().manual_seed(0))
    assert pixel_fingerprint(image).shape == (8,)
    assert torch.equal(pixel_fingerprint(image), pixel_fingerprint(image.clone()))
    for other in (image.roll(1, 2), image.flip(2), image * 1.1):
        assert (pixel_fingerprint(other) - pixel_fingerprint(image)).abs().max() > store.SAME
