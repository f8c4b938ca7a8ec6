import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.refusals import refused

from scalekd.cache import store
from scalekd.cache.encoding import encode
from scalekd.cache.store import Cache, Manifest, manifest_file, pixel_fingerprint
from scalekd.networks import CachedOutputs, InputConfig

ROWS, ROWS_PER_PART = 10, 4
MANIFEST = Manifest(
    identity={"teacher": "a"},
    images_per_view=5,
    augmented_views=2,
    seed=0,
    input=InputConfig(3, (8, 8), (0.5,) * 3, (0.5,) * 3),
    precision="float32",
    rows_per_part=ROWS_PER_PART,
    library_versions={"timm": "1"},
)


def outputs(rows: range) -> CachedOutputs:
    numbers = torch.tensor(rows).float()
    final = numbers.view(-1, 1, 1, 1) + torch.arange(12.0).view(1, 3, 2, 2)
    return CachedOutputs(final, numbers.view(-1, 1) * torch.ones(5), [-numbers.view(-1, 1)])


def write_cache(folder: Path, manifest: Manifest = MANIFEST) -> Cache:
    folder.mkdir(exist_ok=True)
    manifest_file(folder).write_text(json.dumps(manifest, default=vars))
    cache = Cache(folder, manifest)
    for part in range(manifest.parts):
        rows = manifest.part_rows(part)
        fingerprints = torch.tensor(rows).float().view(-1, 1) * torch.ones(8)
        cache.write_part(part, encode(outputs(rows), manifest.precision), fingerprints)
    return Cache.open_complete(folder)


def test_each_row_is_read_as_it_was_written(tmp_path: Path) -> None:
    cache = write_cache(tmp_path)
    assert [len(MANIFEST.part_rows(n)) for n in range(MANIFEST.parts)] == [4, 4, 2]
    for row in (0, 3, 4, 9, 1):
        cached, fingerprint = cache[row]
        expected = outputs(range(row, row + 1))
        assert torch.equal(cached.final, expected.final)
        assert torch.equal(cached.logits, expected.logits)
        assert torch.equal(cached.tail_inputs[0], expected.tail_inputs[0])
        assert fingerprint.tolist() == [[float(row)] * 8]


def test_another_process_opens_the_parts_of_a_cache_itself(tmp_path: Path) -> None:
    cache = write_cache(tmp_path)
    _ = cache[0]
    assert cache._open_parts
    twin = pickle.loads(pickle.dumps(cache))
    assert not twin._open_parts
    assert torch.equal(twin[9][0].final, cache[9][0].final)


def test_few_parts_of_a_cache_are_open_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "MAX_OPEN_PARTS", 2)
    cache = write_cache(tmp_path, replace(MANIFEST, rows_per_part=1))
    for row in range(ROWS):
        _ = cache[row]
    assert list(cache._open_parts) == [8, 9]


@pytest.mark.parametrize("where", [0.02, 0.3, 0.5, 0.7, 0.9, 0.999])
def test_a_flipped_bit_anywhere_is_found_and_its_part_named(tmp_path: Path, where: float) -> None:
    cache = write_cache(tmp_path)
    file = cache.part_file(1)
    content = bytearray(file.read_bytes())
    content[int(where * len(content))] ^= 1
    file.write_bytes(content)
    with refused("000001.safetensors", "--resume makes it again"):
        for row in MANIFEST.part_rows(1):
            _ = Cache.open_complete(tmp_path)[row]
    assert [Cache.open_complete(tmp_path).is_intact(n) for n in range(3)] == [True, False, True]


@pytest.mark.parametrize("name", ["pixel_fingerprint", "final", "logits", "tail_inputs.0"])
def test_a_tensor_under_another_name_is_found(tmp_path: Path, name: str) -> None:
    cache = write_cache(tmp_path)
    file = cache.part_file(1)
    content = file.read_bytes()
    quoted = f'"{name}"'.encode()
    assert content.count(quoted) == 1
    file.write_bytes(content.replace(quoted, quoted.replace(b"i", b"j").replace(b"o", b"p")))
    with refused("000001.safetensors", "--resume makes it again"):
        _ = Cache.open_complete(tmp_path)[MANIFEST.part_rows(1)[0]]


@pytest.mark.parametrize("left", [0, 7, 100, -1])
def test_a_part_that_was_cut_off_is_found(tmp_path: Path, left: int) -> None:
    cache = write_cache(tmp_path)
    cache.part_file(2).write_bytes(cache.part_file(2).read_bytes()[:left])
    with refused("000002.safetensors", "is damaged"):
        _ = Cache.open_complete(tmp_path)[9]


def test_a_part_of_another_cache_or_position_is_refused(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "one")
    other = write_cache(tmp_path / "other", replace(MANIFEST, seed=1))
    cache.part_file(0).write_bytes(other.part_file(0).read_bytes())
    cache.part_file(1).write_bytes(cache.part_file(2).read_bytes())
    for row in (0, 4):
        with refused("belongs to another cache", "remove it"):
            _ = Cache.open_complete(tmp_path / "one")[row]


def test_a_missing_part_is_named_when_a_cache_is_opened(tmp_path: Path) -> None:
    write_cache(tmp_path).part_file(1).unlink()
    with refused("not complete: 1 of its 3 parts are missing, first 000001.safetensors"):
        Cache.open_complete(tmp_path)


def test_a_folder_that_is_no_cache_is_refused(tmp_path: Path) -> None:
    with refused("is no cache: it has no cache.json", "`scalekd cache` makes one"):
        Cache.open_complete(tmp_path)


def test_a_cache_of_another_format_is_refused(tmp_path: Path) -> None:
    write_cache(tmp_path)
    plain = json.loads(manifest_file(tmp_path).read_text())
    manifest_file(tmp_path).write_text(json.dumps({**plain, "format": 99}))
    with refused("is of format 99, and this scalekd reads format 3"):
        Cache.open_complete(tmp_path)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 3}', '{"format": 3, "input": 3}'])
def test_a_damaged_manifest_is_refused(tmp_path: Path, text: str) -> None:
    manifest_file(tmp_path).write_text(text)
    with refused("cache.json", "is damaged", "build the cache again"):
        Cache.open_complete(tmp_path)


def test_a_part_is_written_completely_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    cache = Cache(tmp_path, MANIFEST)
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        cache.write_part(0, encode(outputs(range(4)), "float32"), torch.zeros(4, 8))
    assert not list(tmp_path.iterdir())


def test_a_pixel_fingerprint_tells_other_crops_apart() -> None:
    image = torch.randn(3, 20, 20, generator=torch.Generator().manual_seed(0))
    assert pixel_fingerprint(image).shape == (8,)
    assert torch.equal(pixel_fingerprint(image), pixel_fingerprint(image.clone()))
    for other in (image.roll(1, 2), image.flip(2), image * 1.1):
        difference = pixel_fingerprint(other) - pixel_fingerprint(image)
        assert difference.abs().max() > store.FINGERPRINT_TOLERANCE
