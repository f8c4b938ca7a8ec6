"""Validation images that changed between stop and resume were not noticed."""

from pathlib import Path

import datasets
import pytest
from helpers.pictures import image_folder, open_folder, png, tar, tar_folder
from helpers.refusals import refused
from helpers.tiny import tiny

from scalekd.data import source as sources
from scalekd.jobs.distill import distill


def identity(root: Path | str) -> str:
    return open_folder(root).validation_identity


def test_other_content_names_and_numbers_of_validation_images_are_noticed(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "images")
    file = root / "val" / "ant" / "1.png"
    before, training = identity(root), open_folder(root).identity
    content = file.read_bytes()
    file.write_bytes(png(1))
    assert identity(root) != before
    file.rename(file.with_name("2nd.png"))
    file.with_name("2nd.png").write_bytes(content)
    assert identity(root) != before
    file.with_name("2nd.png").unlink()
    assert identity(root) != before
    file.write_bytes(content)
    assert identity(root) == before
    assert open_folder(root).identity == training


def test_a_copy_of_the_images_elsewhere_is_the_same(tmp_path: Path) -> None:
    assert identity(image_folder(tmp_path / "a")) == identity(image_folder(tmp_path / "b"))
    assert identity(tar_folder(tmp_path / "c")) == identity(tar_folder(tmp_path / "d"))


def test_the_names_of_very_many_validation_images_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "MAX_DECODED_BEFOREHAND", 0)
    root = image_folder(tmp_path / "images")
    before = identity(root)
    (root / "val" / "ant" / "1.png").rename(root / "val" / "ant" / "2.png")
    assert identity(root) != before


def test_other_content_of_tar_files_and_datasets_is_noticed(tmp_path: Path) -> None:
    root = tar_folder(tmp_path / "tars")
    before = identity(root)
    file = root / "val" / "0000.tar"
    members = {f"{i:06}.png": png(9 - i) for i in range(4)}
    tar(file, dict(sorted((members | {f"{i:06}.cls": b"%d" % (i % 3) for i in range(4)}).items())))
    assert identity(root) != before

    def saved(name: str, value: int) -> str:
        rows = {"image": [{"bytes": png(value), "path": None}] * 2, "label": [0, 1]}
        features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}
        split = datasets.Dataset.from_dict(rows, datasets.Features(features))
        datasets.DatasetDict(train=split, test=split).save_to_disk(tmp_path / name)
        return f"hf:{tmp_path / name}"

    assert identity(saved("a", 1)) == identity(saved("b", 1)) != identity(saved("c", 2))


def test_a_run_whose_validation_images_changed_does_not_resume(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "images")
    out = distill(tiny(root), tmp_path / "out", parallel=1)
    distill(tiny(root), out, parallel=1, resume=True)
    (root / "val" / "ant" / "1.png").write_bytes(png(1))
    with refused("another set of validation images"):
        distill(tiny(root), out, parallel=1, resume=True)
