"""Fashion-MNIST as Debian and torchvision store it: read, and refused where it is damaged."""

import functools
import gzip
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from helpers.pictures import PLAIN, SMALL, open_folder
from helpers.refusals import refused
from torchvision.datasets import FashionMNIST

from scalekd.data import fashion_mnist
from scalekd.data.loader import build_loaders
from scalekd.data.open import find_layout, open_validation
from scalekd.networks import InputConfig
from scalekd.recipe import Data

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
GREY = InputConfig(1, (28, 28), (0.0,), (1.0,), crop=1.0)
ROOT = "fashion-mnist"


def idx(array: np.ndarray) -> bytes:
    """An array of bytes in the IDX format."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def write_tiny(folder: Path, packed: bool = True) -> Path:
    """The four files with 20 images to train on and 10 to test on; image i has value i."""
    folder.mkdir(parents=True)
    for prefix, count in (("train", 20), ("t10k", 10)):
        values = np.arange(count, dtype=np.uint8)
        images = np.broadcast_to(values[:, None, None], (count, 28, 28))
        for kind, array in (("images-idx3", images), ("labels-idx1", values % 10)):
            content = idx(array)
            file = folder / f"{prefix}-{kind}-ubyte{'.gz' if packed else ''}"
            file.write_bytes(gzip.compress(content) if packed else content)
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch's empty hub folder, on a machine without Debian's package."""
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "nowhere")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.mark.parametrize("packed", [True, False])
def test_the_files_that_torchvision_stores_are_read(packed: bool, hub: Path) -> None:
    folder = write_tiny(hub / "datasets" / "FashionMNIST" / "raw", packed)
    source = open_folder(ROOT)
    assert find_layout(Data(ROOT)) == "fashion_mnist"
    assert [(split.name, split.images) for split in source.splits] == [("train", 20), ("test", 10)]
    assert source.class_names == tuple(FashionMNIST.classes)
    assert str(folder) in str(source.notes[0])
    validation = source.validation_set(GREY)  # type: ignore[misc]
    for index in range(10):
        image, target = validation[index]
        assert image.shape == (1, 28, 28)
        assert (image == index).all()
        assert target == index
    assert source.training_set(SMALL, 0)[3][0].shape == (3, 32, 32)
    assert open_validation(Data(ROOT)).splits == source.splits[1:]


def test_loading_processes_read_the_files_themselves(hub: Path) -> None:
    write_tiny(hub / "datasets" / "FashionMNIST" / "raw")
    data = Data(ROOT, workers=1)
    source = open_folder(ROOT, workers=1)
    batches, _ = build_loaders(source, data, PLAIN, batch_size=5, seed=0)
    seen = torch.cat([images[:, 0, 0, 0] for images, _ in batches])
    assert sorted(seen.tolist()) == list(range(20))


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("train-images-idx3-ubyte.gz", b"no gzip", ("cannot be read",)),
        ("train-images-idx3-ubyte.gz", gzip.compress(b"\0\0\x08"), ("IDX",)),
        ("train-labels-idx1-ubyte.gz", gzip.compress(idx(np.zeros(3, np.uint8))), ("damaged",)),
        ("t10k-labels-idx1-ubyte.gz", gzip.compress(idx(np.full(10, 10, np.uint8))), ("label 10",)),
        (
            "t10k-images-idx3-ubyte.gz",
            gzip.compress(idx(np.zeros((10, 28, 28), np.uint8))[:-1]),
            ("no complete file",),
        ),
    ],
    ids=["no gzip", "short", "other count", "other class", "cut"],
)
def test_damaged_files_are_refused_by_name(
    name: str, content: bytes, parts: tuple[str, ...], hub: Path
) -> None:
    folder = write_tiny(hub / "datasets" / "FashionMNIST" / "raw")
    (folder / name).write_bytes(content)
    with refused(str(folder), "get ", *parts):
        open_folder(ROOT)


def test_a_share_or_no_labels_are_refused(hub: Path) -> None:
    for options in ({"val_share": 0.2}, {"labels": False}):
        with refused(f"data.{next(iter(options))}", ROOT):
            open_folder(ROOT, **options)


def test_without_the_files_and_a_network_one_line_says_what_to_do(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FashionMNIST, "mirrors", ["http://127.0.0.1:1/"])
    with refused(ROOT, "cannot be downloaded", "dataset-fashion-mnist", str(hub)):
        open_folder(ROOT)
    assert not list((hub / "datasets").iterdir())


def test_what_is_downloaded_is_complete_and_read_again(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = write_tiny(tmp_path / "mirror")
    resources = [
        (file.name, torchvision.datasets.utils.calculate_md5(file))
        for file in sorted(mirror.iterdir())
    ]
    monkeypatch.setattr(FashionMNIST, "resources", resources)
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(mirror))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}/"
        monkeypatch.setattr(FashionMNIST, "mirrors", [address])
        assert [split.images for split in open_folder(ROOT).splits] == [20, 10]
        server.shutdown()
    monkeypatch.setattr(FashionMNIST, "mirrors", ["http://127.0.0.1:1/"])
    assert [split.images for split in open_folder(ROOT).splits] == [20, 10]
    assert [folder.name for folder in (hub / "datasets").iterdir()] == ["FashionMNIST"]


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_debians_package_has_the_images_that_everybody_knows() -> None:
    source = open_folder(ROOT)
    assert [split.images for split in source.splits] == [60_000, 10_000]
    assert torch.bincount(source.targets).tolist() == [6_000] * 10  # type: ignore[arg-type]
    validation = source.validation_set(GREY)  # type: ignore[misc]
    assert [validation[i][1] for i in range(4)] == [9, 2, 1, 1]  # a boot, a pullover, two trousers
    mean = torch.stack([validation[i][0] for i in range(0, 10_000, 20)]).float().mean()
    assert mean.item() / 255 == pytest.approx(0.287, abs=0.01)


def test_two_parts_share_their_training_images_and_only_one_has_the_test_images(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny(hub / "datasets" / "FashionMNIST" / "raw")
    monkeypatch.setattr(fashion_mnist, "HELD_OUT", 6)
    sources = [open_folder(f"{ROOT}:{part}") for part in ("choosing", "final")]
    held_out, test = (
        [int(source.validation_set(GREY)[i][0].max()) for i in range(split.images)]
        for source in sources
        for split in source.splits[1:]
    )
    for source in sources:
        assert source.splits[0].images == 14
        assert source.targets is not None
        assert source.targets.tolist() == [i % 10 for i in range(14)]
        assert source.unaugmented_set is not None
        assert [int(source.unaugmented_set(GREY)[i][0].max()) for i in range(14)] == list(range(14))
    assert held_out == list(range(14, 20))
    assert test == list(range(10))
    whole = open_folder(ROOT)
    assert len({whole.identity, sources[0].identity}) == 2
    assert sources[0].identity == sources[1].identity
    assert sources[0].validation_identity != sources[1].validation_identity


def test_a_part_of_too_few_images_is_refused(hub: Path) -> None:
    write_tiny(hub / "datasets" / "FashionMNIST" / "raw")
    with refused("have 20 images", "holds 5000 out"):
        open_folder(f"{ROOT}:final")


def test_crops_keep_the_share_of_the_area_that_is_asked_for(hub: Path) -> None:
    folder = hub / "datasets" / "FashionMNIST" / "raw"
    write_tiny(folder)
    ramp = np.broadcast_to(np.arange(28, dtype=np.uint8) * 9, (20, 28, 28))  # from left to right
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(ramp)))

    def narrowest(**options: Any) -> int:
        images = open_folder(ROOT, **options).training_set(GREY, 0)
        return min(int(images[key][0].max() - images[key][0].min()) for key in range(200))

    assert narrowest(crop_area=0.9) > 0.8 * 27 * 9
    assert narrowest() < 0.5 * 27 * 9
    with refused("data.crop_area is 0", "more than 0"):
        Data(ROOT, crop_area=0.0)
