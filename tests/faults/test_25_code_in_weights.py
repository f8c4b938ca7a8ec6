"""Some versions of timm unpickled, and so ran, what a folder had as weights."""

import os
import pickle
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import timm
import torch
from helpers.refusals import refused
from helpers.small_models import resnet
from timm.models import _builder, _helpers, _hub, register_model, save_for_hf
from torch import nn

from scalekd.errors import InputError
from scalekd.networks import build_model


class RunsCode:
    """Unpickling it makes a folder."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


def unsafe_load(file: Any, *args: Any, **kwargs: Any) -> Any:
    """As a version of timm that unpickles anything."""
    return torch.load(file, map_location="cpu", weights_only=False)


def write(file: Path, content: Any, kind: str) -> None:
    if kind == "pickle":
        file.write_bytes(pickle.dumps(content))
    elif kind == "numpy":
        np.save(file.open("wb"), np.array(content, dtype=object), allow_pickle=True)
    else:
        torch.save(content, file, _use_new_zipfile_serialization=kind == "torch")


KINDS = ["torch", "old torch", "pickle", "numpy"]
FILES = ["pytorch_model.bin", "model.pth", "pytorch_model.pth", "x.pth.tar", "x.bin", "w.npz"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("old_timm", [False, True])
def test_code_in_a_folder_of_weights_is_never_run(
    old_timm: bool, name: str, kind: str, tmp_path: Path
) -> None:
    folder, trace = tmp_path / "folder", tmp_path / "trace"
    save_for_hf(resnet(), str(folder), safe_serialization=True)
    (folder / "model.safetensors").unlink()
    write(folder / name, {**resnet().state_dict(), "x": RunsCode(trace)}, kind)
    loaders = [_helpers, _hub] if old_timm else []
    with refused(str(folder)):
        for module in loaders:
            module._torch_load, before = unsafe_load, module._torch_load
        try:
            build_model(f"local-dir:{folder}", "pretrained")
        finally:
            for module in loaders:
                module._torch_load = before
    assert not trace.exists()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["w.pth", "w.bin", "w.safetensors", "w.npz", "w.npy", "w.pkl"])
def test_code_in_a_file_is_never_run(name: str, kind: str, tmp_path: Path) -> None:
    write(tmp_path / name, RunsCode(tmp_path / "trace"), kind)
    with refused(name):
        build_model("test_resnet", tmp_path / name)
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("route", ["url", "file", "hf_hub_id"])
def test_code_in_a_file_that_timm_fetches_is_never_run(
    route: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "net.pth"
    torch.save({**resnet().state_dict(), "x": RunsCode(tmp_path / "trace")}, file)
    monkeypatch.setattr(_hub, "hf_hub_download", lambda *_, **__: str(file))
    monkeypatch.setattr(_hub, "_get_safe_alternatives", lambda _: [])
    places = {"url": "https://nowhere.invalid/net.pth", "file": str(file), "hf_hub_id": "timm/x"}
    overlay = {"url": None, "hf_hub_id": None, "file": None, route: places[route]}
    with refused("posix.mkdir" if route != "url" else "test_resnet"):
        build_model("test_resnet", "pretrained", pretrained_cfg_overlay=overlay, cache_dir=tmp_path)
    assert not (tmp_path / "trace").exists()


@register_model
def scalekd_test_unpickles(pretrained: bool = False, **arguments: Any) -> nn.Module:
    """A model whose own function unpickles its file."""
    model: nn.Module = timm.create_model("test_resnet")
    if pretrained:
        model.load_state_dict(torch.load(os.environ["WEIGHTS"], weights_only=False))
    return model


def test_code_in_the_file_of_a_models_own_function_is_never_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"x": RunsCode(tmp_path / "trace")}, tmp_path / "w.pth")
    monkeypatch.setenv("WEIGHTS", str(tmp_path / "w.pth"))
    with refused("scalekd_test_unpickles"):
        build_model("scalekd_test_unpickles", "pretrained")
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    "code", ["os.system", "builtins.eval", "builtins.getattr", "runpy.run_path"]
)
def test_no_harmless_class_lets_a_function_through(code: str, tmp_path: Path) -> None:
    module, _, name = code.rpartition(".")
    program = f"c{module}\n{name}\n(S'touch {tmp_path}/trace'\ntR.".encode()
    (tmp_path / "w.pth").write_bytes(b"\x80\x02" + program)
    with pytest.raises(InputError):
        build_model("test_resnet", tmp_path / "w.pth")
    assert not (tmp_path / "trace").exists()


def test_torch_load_is_as_before_afterwards(tmp_path: Path) -> None:
    before = torch.load, np.load, _helpers._torch_load, _builder.load_state_dict
    with patch.object(_hub, "load_state_dict", side_effect=RuntimeError), refused("test_resnet"):
        save_for_hf(timm.create_model("test_resnet"), str(tmp_path / "f"), safe_serialization=True)
        build_model(f"local-dir:{tmp_path}/test_resnet/../f", "pretrained")
    assert before == (torch.load, np.load, _helpers._torch_load, _builder.load_state_dict)
