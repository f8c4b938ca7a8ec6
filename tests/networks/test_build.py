import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from refusals import refused
from safetensors.torch import save_file
from small_models import (
    CLASSES,
    SIZE,
    SWIN,
    VIT,
    convnext,
    images,
    resnet,
    swin,
    vit,
)
from torch import Tensor, nn

from scalekd import FrozenTeacher, ScaleKD
from scalekd.networks import build
from scalekd.networks.build import read_weights

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


def same(a: nn.Module, b: nn.Module) -> bool:
    mine, theirs = a.state_dict(), b.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[n], theirs[n]) for n in mine)


def test_random_weights_are_random() -> None:
    first, second = (build("test_resnet", "random", num_classes=CLASSES) for _ in range(2))
    assert not same(first, second)
    assert first.num_classes == CLASSES


@pytest.mark.parametrize("kind", FORMATS)
def test_weights_come_from_a_file(kind: str, tmp_path: Path) -> None:
    name, save = FORMATS[kind]
    model = resnet()
    save(model.state_dict(), tmp_path / name)
    assert same(build("test_resnet", tmp_path / name), model)
    assert same(build("test_resnet", str(tmp_path / name)), model)


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_a_checkpoint_that_holds_a_state_dict_is_looked_into(key: str, tmp_path: Path) -> None:
    model = resnet()
    torch.save({key: model.state_dict(), "epoch": 3}, tmp_path / "c.pth")
    assert same(build("test_resnet", tmp_path / "c.pth"), model)


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
    loaded = build(name, tmp_path / "w.safetensors", **arguments)
    assert loaded.num_classes == 7
    assert same(loaded, model)


def test_a_file_of_other_classes_rebuilds_both_heads_of_a_distilled_deit(tmp_path: Path) -> None:
    name = "deit_tiny_distilled_patch16_224"
    model = timm.create_model(name, num_classes=7, **VIT)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    loaded = build(name, tmp_path / "w.safetensors", **VIT)
    assert loaded.num_classes == 7
    assert same(loaded, model)


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
    assert same(distiller.teacher.model, trained)
    assert not any("RANDOM" in note for note in distiller.notes)


@pytest.mark.parametrize(
    ("name", "near"),
    [("resnet5O", "resnet50"), ("swin_large_patch4_window7", "swin_large_patch4_window7_224")],
)
def test_an_unknown_name_offers_the_nearest(name: str, near: str) -> None:
    with refused(repr(name), near):
        build(name, "random")


@pytest.mark.parametrize("name", ["", "@@@@@@"])
def test_a_name_near_none_is_refused_too(name: str) -> None:
    with refused(repr(name), "list_models"):
        build(name, "random")


def test_an_unknown_tag_is_refused() -> None:
    with refused("nope"):
        build("resnet18.nope", "random")


def test_an_argument_that_the_model_does_not_take_is_refused() -> None:
    with refused("test_resnet", "img_seize"):
        build("test_resnet", "random", img_seize=64)


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
        build("test_resnet", tmp_path / "w.pth")
    assert not (tmp_path / "trace").exists()


def test_a_bare_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(pickle.dumps(WritesAFile(tmp_path / "trace")))
    with refused("w.pth"):
        build("test_resnet", tmp_path / "w.pth")
    assert not (tmp_path / "trace").exists()


def test_a_whole_pickled_model_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "w.pth")
    with refused("w.pth"):
        build("test_resnet", tmp_path / "w.pth")


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("part", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(kind: str, part: float, tmp_path: Path) -> None:
    name, save = FORMATS[kind]
    file = tmp_path / name
    save(resnet().state_dict(), file)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(part * len(whole))])
    with refused(name):
        build("test_resnet", file)


@pytest.mark.parametrize(("kind", "cut"), [("torch", 20547), ("torch", 51783)])
def test_a_torch_file_cut_anywhere_is_refused(kind: str, cut: int, tmp_path: Path) -> None:
    name, save = FORMATS[kind]
    file = tmp_path / name
    save(resnet().state_dict(), file)
    file.write_bytes(file.read_bytes()[:cut])
    with refused(name):
        build("test_resnet", file)


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
        build("test_resnet", tmp_path / name)


@pytest.mark.parametrize("content", [[1, 2], {"a": 3}, {"model": {"a": "b"}}])
def test_a_torch_file_without_tensors_is_refused(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    with refused("w.pth", "state dict"):
        read_weights(tmp_path / "w.pth")


@pytest.mark.parametrize("name", ["nowhere.safetensors", "Pretrained", "."])
def test_a_missing_file_is_refused_with_the_other_ways(name: str) -> None:
    with refused(repr(name), "'pretrained'", "'random'"):
        build("test_resnet", name)


def test_names_and_shapes_that_do_not_fit_are_listed_in_one_line(tmp_path: Path) -> None:
    state = resnet().state_dict()
    state["stray"] = state.pop("conv1.0.weight" if "conv1.0.weight" in state else "conv1.weight")
    state["layer1.0.conv1.weight"] = torch.zeros(2, 3)
    save_file(state, tmp_path / "w.safetensors")
    said = ("w.safetensors", "ResNet", "missing: conv1", "unexpected: stray")
    with refused(*said, "layer1.0.conv1.weight (2, 3) for ("):
        build("test_resnet", tmp_path / "w.safetensors")


def test_another_models_file_is_refused_in_a_line_that_stays_short(tmp_path: Path) -> None:
    save_file(convnext().state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="more") as caught:
        build("test_resnet", tmp_path / "w.safetensors")
    assert len(str(caught.value)) < 1500


def test_pretrained_weights_without_a_network_are_refused_with_both_ways_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No proxy and a name that resolves nowhere: the network that nobody has.
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://hub.invalid")
    with refused("resnet18", "--teacher_weights FILE", "--teacher_weights random"):
        build("resnet18.a1_in1k", "pretrained", cache_dir=tmp_path)


def test_a_local_folder_without_its_configuration_is_refused(tmp_path: Path) -> None:
    with refused("config.json", str(tmp_path)):
        build(f"local-dir:{tmp_path}", "pretrained")


def test_a_local_folder_gives_the_model_that_it_holds(tmp_path: Path) -> None:
    model = resnet()
    config = {
        "architecture": "test_resnet",
        "num_classes": CLASSES,
        "pretrained_cfg": {"input_size": [3, *SIZE], "num_classes": CLASSES, "classifier": "fc"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    loaded = build(f"local-dir:{tmp_path}", "pretrained").eval()
    assert torch.equal(loaded(images()), model(images()))
    teacher = FrozenTeacher(loaded)
    assert teacher.input.size == SIZE
    assert not same(build(f"local-dir:{tmp_path}", "random"), model)


def test_a_local_folder_of_a_broken_configuration_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with refused(str(tmp_path)):
        build(f"local-dir:{tmp_path}", "pretrained")
