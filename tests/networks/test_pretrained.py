"""Weights from files: what is read, what is refused, and how it is described."""

import hashlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers.refusals import refused
from helpers.small_models import CLASSES, SWIN, VIT, convnext, resnet, swin, vit
from helpers.weights import same_weights, save_weights
from safetensors.torch import load_file, save_file
from timm.layers import RmsNorm
from torch import Tensor, nn

from scalekd import ScaleKD
from scalekd.networks import build_model
from scalekd.networks.pretrained import (
    FileRead,
    LoadedWeights,
    RecordedLoad,
    looks_untrained,
    record_loads,
)

Save = Callable[[dict[str, Tensor], Path], None]


def as_torch(state: dict[str, Tensor], file: Path) -> None:
    torch.save(state, file)


def as_old_torch(state: dict[str, Tensor], file: Path) -> None:
    torch.save(state, file, _use_new_zipfile_serialization=False)


FORMATS: dict[str, tuple[str, Save]] = {
    "safetensors": ("w.safetensors", save_file),
    "torch": ("w.pth", as_torch),
    "torch before 1.6": ("w.pt", as_old_torch),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_weights_come_from_a_file(kind: str, tmp_path: Path) -> None:
    name, save = FORMATS[kind]
    model = resnet()
    save(model.state_dict(), tmp_path / name)
    assert same_weights(build_model("test_resnet", tmp_path / name)[0], model)
    assert same_weights(build_model("test_resnet", str(tmp_path / name))[0], model)


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_the_state_dict_in_a_checkpoint_is_used(key: str, tmp_path: Path) -> None:
    model = resnet()
    torch.save({key: model.state_dict(), "epoch": 3}, tmp_path / "c.pth")
    assert same_weights(build_model("test_resnet", tmp_path / "c.pth")[0], model)


@pytest.mark.parametrize(
    ("name", "made", "arguments"),
    [
        ("test_resnet", resnet, {}),
        ("test_convnext", convnext, {}),
        ("swin_tiny_patch4_window7_224", swin, SWIN),
        ("vit_tiny_patch16_224", vit, VIT),
    ],
)
def test_a_file_of_other_classes_rebuilds_the_head(
    name: str, made: Callable[..., nn.Module], arguments: dict[str, Any], tmp_path: Path
) -> None:
    model = made(num_classes=7)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    loaded, _ = build_model(name, tmp_path / "w.safetensors", **arguments)
    assert loaded.num_classes == 7
    assert same_weights(loaded, model)


def test_a_file_of_other_classes_rebuilds_both_heads_of_a_distilled_deit(tmp_path: Path) -> None:
    name = "deit_tiny_distilled_patch16_224"
    model = timm.create_model(name, num_classes=7, **VIT)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    loaded, _ = build_model(name, tmp_path / "w.safetensors", **VIT)
    assert loaded.num_classes == 7
    assert same_weights(loaded, model)


def test_a_teacher_by_name_takes_a_file_of_weights(tmp_path: Path) -> None:
    trained = timm.create_model("scalekd_digits_swin", pretrained=True)
    save_file(trained.state_dict(), tmp_path / "w.safetensors")
    overlay = {"layers": (1, 1), "channels": (16, 32), "stem_chs": 8, "stem_type": "deep"}
    student = timm.create_model("resnetv2_18", in_chans=1, num_classes=10, **overlay)
    distiller = ScaleKD(
        "scalekd_digits_swin",
        student,
        teacher_weights=str(tmp_path / "w.safetensors"),
        size=(32, 32),
    )
    assert same_weights(distiller.teacher.model, trained)
    assert not any(note.level == "warning" or "RANDOM" in note.text for note in distiller.notes)


class WritesAFile:
    """Unpickling it leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("old", [False, True])
def test_a_pickle_that_is_not_plain_tensors_is_refused_and_not_run(
    inside: bool, old: bool, tmp_path: Path
) -> None:
    bad = WritesAFile(tmp_path / "trace")
    state = {**resnet().state_dict(), "extra": bad} if inside else bad
    torch.save(state, tmp_path / "w.pth", _use_new_zipfile_serialization=not old)
    with refused("w.pth", "plain tensors"):
        build_model("test_resnet", tmp_path / "w.pth")
    assert not (tmp_path / "trace").exists()


def test_a_bare_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(pickle.dumps(WritesAFile(tmp_path / "trace")))
    with refused("w.pth"):
        build_model("test_resnet", tmp_path / "w.pth")
    assert not (tmp_path / "trace").exists()


def test_a_pickled_model_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "w.pth")
    with refused("w.pth"):
        build_model("test_resnet", tmp_path / "w.pth")


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("part", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(kind: str, part: float, tmp_path: Path) -> None:
    name, save = FORMATS[kind]
    file = tmp_path / name
    save(resnet().state_dict(), file)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(part * len(whole))])
    with refused(name):
        build_model("test_resnet", file)


@pytest.mark.parametrize(("kind", "cut"), [("torch", 20547), ("torch", 51783)])
def test_a_torch_file_cut_anywhere_is_refused(kind: str, cut: int, tmp_path: Path) -> None:
    name, save = FORMATS[kind]
    file = tmp_path / name
    save(resnet().state_dict(), file)
    file.write_bytes(file.read_bytes()[:cut])
    with refused(name):
        build_model("test_resnet", file)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize(
    "content",
    [
        b"hello world",
        b"<html>404 not found</html>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        b"\x80\x02.",
        b"PK\x03\x04",
        b"\x80\x02X\x05\x00\x00\x00\xff\xfe\xfa\xfb\xfcq\x01.",
    ],
    ids=["text", "html", "git-lfs", "empty pickle", "zip head", "not utf-8"],
)
def test_a_file_of_something_else_is_refused(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with refused(name):
        build_model("test_resnet", tmp_path / name)


@pytest.mark.parametrize("content", [[1, 2], {"a": 3}, {"model": {"a": "b"}}])
def test_a_torch_file_without_tensors_is_refused(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    with refused("w.pth", "state dict"):
        build_model("test_resnet", tmp_path / "w.pth")


@pytest.mark.parametrize("name", ["nowhere.safetensors", "Pretrained"])
def test_a_missing_file_is_refused_with_the_alternatives(name: str) -> None:
    with refused(repr(name), "'pretrained'", "'random'"):
        build_model("test_resnet", name)


def test_names_and_shapes_that_do_not_fit_are_listed_in_one_line(tmp_path: Path) -> None:
    state = resnet().state_dict()
    state["stray"] = state.pop("conv1.0.weight" if "conv1.0.weight" in state else "conv1.weight")
    state["layer1.0.conv1.weight"] = torch.zeros(2, 3)
    save_file(state, tmp_path / "w.safetensors")
    said = ("w.safetensors", "test_resnet", "missing: conv1", "unexpected: stray")
    with refused(*said, "layer1.0.conv1.weight (2, 3) for ("):
        build_model("test_resnet", tmp_path / "w.safetensors")


def test_another_models_file_is_refused_in_a_line_that_stays_short(tmp_path: Path) -> None:
    save_file(convnext().state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="more") as caught:
        build_model("test_resnet", tmp_path / "w.safetensors")
    assert len(str(caught.value)) < 1500


def test_what_a_file_provided_is_reported(tmp_path: Path) -> None:
    file = save_weights(resnet().state_dict(), tmp_path)
    model, loaded = build_model("test_resnet", file)
    total = len(model.state_dict())
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    remark = f"{CLASSES} classes as in the file"
    assert loaded == LoadedWeights(
        "test_resnet", str(file), str(file), digest, total, total, remarks=(remark,)
    )
    assert str(loaded) == (
        f"weights of test_resnet: {file} (sha256 {digest[:12]}…), {total} of {total} tensors; "
        f"{remark}"
    )


def test_other_classes_than_requested_are_remarked_on(tmp_path: Path) -> None:
    file = save_weights(resnet().state_dict(), tmp_path)
    model, loaded = build_model("test_resnet", file, num_classes=9)
    assert model.num_classes == CLASSES
    assert loaded.remarks == (f"{CLASSES} classes as in the file, not the 9 requested",)
    assert build_model("test_resnet", file, num_classes=CLASSES)[1].remarks == ()


def test_the_description_lists_a_few_missing_and_skipped_tensors() -> None:
    missing = tuple(f"head.{i}" for i in range(9))
    loaded = LoadedWeights(
        "net", "pretrained", "a/w.pth", "0123456789abcdef", 3, 12, missing, ("stray",)
    )
    assert str(loaded) == (
        "weights of net: pretrained, w.pth (sha256 0123456789ab…), 3 of 12 tensors; RANDOM, "
        "because the file lacks them: head.0, head.1, head.2, head.3, head.4, head.5 and 3 more; "
        "skipped in the file: stray"
    )


def test_loads_are_recorded_with_the_file_and_the_missing_names(tmp_path: Path) -> None:
    file = save_weights({"weight": torch.ones(2, 2), "stray": torch.ones(1)}, tmp_path)
    before = nn.Module.load_state_dict, torch.load
    with record_loads() as loads:
        layer = nn.Linear(2, 2)
        layer.load_state_dict(load_file(file), strict=False)
        torch.save({"weight": torch.ones(2, 2), "bias": torch.ones(2)}, tmp_path / "w.pth")
        layer.load_state_dict(torch.load(f=tmp_path / "w.pth", weights_only=True))
    assert loads == [
        RecordedLoad(layer, ("bias",), ("stray",), FileRead(str(file))),
        RecordedLoad(layer, (), (), FileRead(str(tmp_path / "w.pth"))),
    ]
    assert (nn.Module.load_state_dict, torch.load) == before


def test_a_load_that_fails_leaves_no_patched_function() -> None:
    before = nn.Module.load_state_dict
    with pytest.raises(RuntimeError), record_loads() as loads:
        nn.Linear(2, 2).load_state_dict({})
    assert nn.Module.load_state_dict is before
    assert loads == []


@pytest.mark.parametrize(
    "name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet_gn"]
)
def test_a_freshly_initialised_network_looks_untrained(name: str) -> None:
    model = timm.create_model(name)
    assert looks_untrained(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(torch.randn(2, 3, 160, 160)).square().sum().backward()
    optimizer.step()
    assert not looks_untrained(model)


@pytest.mark.parametrize("norm", [nn.LayerNorm(3), RmsNorm(3), nn.BatchNorm2d(3)])
def test_one_trained_norm_makes_a_network_look_trained(norm: nn.Module) -> None:
    model = nn.Sequential(nn.LayerNorm(3), norm)
    assert looks_untrained(model)
    with torch.no_grad():
        norm.weight[1] = 2
    assert not looks_untrained(model)


def test_a_constant_norm_weight_looks_untrained_and_a_nonzero_bias_does_not() -> None:
    norm = nn.GroupNorm(1, 3)
    nn.init.zeros_(norm.weight)
    assert looks_untrained(norm)
    nn.init.ones_(norm.bias)
    assert not looks_untrained(norm)


@pytest.mark.parametrize("model", [nn.Linear(3, 3), nn.LayerNorm(3, elementwise_affine=False)])
def test_a_network_without_affine_norms_does_not_look_untrained(model: nn.Module) -> None:
    assert not looks_untrained(model)


def test_the_digits_teacher_looks_trained() -> None:
    assert not looks_untrained(build_model("scalekd_digits_swin", "pretrained")[0])
