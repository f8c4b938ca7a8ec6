"""Weights that could not be read were called corrupt, or ended in a traceback."""

import encodings.idna  # noqa: F401 that nobody cannot import later
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.refusals import refused
from helpers.small_models import resnet
from safetensors.torch import save_file
from timm.models import save_for_hf

from scalekd.networks import build_model

NOBODY = 65534


@contextmanager
def as_nobody() -> Iterator[None]:
    """Without root's right to read everything."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.fixture
def open_path(tmp_path: Path) -> Path:
    """A folder that everybody can reach."""
    for folder in (tmp_path, *tmp_path.parents):
        if folder != Path("/tmp") and Path("/tmp") in folder.parents:
            folder.chmod(0o755)
    return tmp_path


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_file_without_read_permission_is_said_to_be_one(name: str, open_path: Path) -> None:
    file = open_path / name
    torch.save(resnet().state_dict(), file)
    file.chmod(0)
    with as_nobody(), refused(str(file), "you have no permission to read it"):
        build_model("test_resnet", file)


def test_a_file_in_a_folder_that_cannot_be_entered_is_said_to_be_one(open_path: Path) -> None:
    folder = open_path / "closed"
    folder.mkdir()
    torch.save(resnet().state_dict(), folder / "w.pth")
    folder.chmod(0)
    with as_nobody(), refused(str(folder), "no permission"):
        build_model("test_resnet", folder / "w.pth")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_folder_without_read_permission_is_said_to_be_one(name: str, open_path: Path) -> None:
    save_for_hf(resnet(), str(open_path / "f"), safe_serialization=True)
    (open_path / "f").chmod(0o755)
    for file in (open_path / "f").iterdir():
        file.chmod(0o644)
    (open_path / "f" / name).chmod(0)
    with as_nobody(), refused(str(open_path / "f"), "no permission to read it"):
        build_model(f"local-dir:{open_path}/f", "pretrained")


def test_a_folder_in_place_of_a_file_is_said_to_be_one(tmp_path: Path) -> None:
    with refused(str(tmp_path), "is a folder", "local-dir:"):
        build_model("test_resnet", tmp_path)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "w.pth")
    with refused("w.pth", "no regular file"):
        build_model("test_resnet", tmp_path / "w.pth")


@pytest.mark.parametrize("name", ["a\x00b", "x" * 300 + ".pth", "a.pth/b"])
def test_a_name_that_no_file_can_have_is_refused(name: str) -> None:
    with refused(name[:3].replace("\x00", "\\x00")):
        build_model("test_resnet", name)


@pytest.mark.parametrize("part", [0.01, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["torch", "old torch", "safetensors"])
def test_a_truncated_file_is_said_to_be_one(kind: str, part: float, tmp_path: Path) -> None:
    file = tmp_path / "w.any"
    if kind == "safetensors":
        save_file(resnet().state_dict(), file)
    else:
        torch.save(resnet().state_dict(), file, _use_new_zipfile_serialization=kind == "torch")
    content = file.read_bytes()
    file.write_bytes(content[: int(part * len(content))])
    with refused("w.any", "damaged or truncated"):
        build_model("test_resnet", file)


def test_an_empty_file_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "w.pth").touch()
    with refused("w.pth", "empty"):
        build_model("test_resnet", tmp_path / "w.pth")


def test_a_pointer_in_place_of_the_file_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n")
    with refused("w.pth", "Git LFS"):
        build_model("test_resnet", tmp_path / "w.pth")


def test_a_numpy_file_is_said_to_be_one(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", a=np.zeros(3))
    with refused("w.npz", "numpy"):
        build_model("test_resnet", tmp_path / "w.npz")


@pytest.mark.parametrize("suffix", ["pth", "safetensors", "bin"])
def test_the_content_of_a_file_decides_and_not_its_name(suffix: str, tmp_path: Path) -> None:
    save_file(resnet().state_dict(), tmp_path / f"a.{suffix}")
    torch.save(resnet().state_dict(), tmp_path / f"b.{suffix}")
    for name in ("a", "b"):
        assert build_model("test_resnet", tmp_path / f"{name}.{suffix}")[1].matched
