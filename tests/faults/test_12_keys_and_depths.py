"""Weights under another key, or deeper in the file, were said to be no weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.refusals import refused
from helpers.small_models import convnext, resnet
from helpers.weights import same_weights

from scalekd.networks import build_model


def nested(value: Any, key: str) -> Any:
    for part in reversed(key.split(".")):
        value = {"epoch": 1, part: value}
    return value


KEYS = ["model_state_dict", "net", "weights", "teacher", "model.state_dict", "a.b.c.d", "params"]


@pytest.mark.parametrize("key", KEYS)
def test_the_one_dict_of_tensors_is_found_at_any_depth(key: str, tmp_path: Path) -> None:
    model = resnet()
    torch.save(nested(model.state_dict(), key), tmp_path / "c.pth")
    built, loaded = build_model("test_resnet", tmp_path / "c.pth")
    assert same_weights(built, model)
    assert f"of the key {key!r}" in loaded.remarks
    chosen, _ = build_model("test_resnet", tmp_path / "c.pth", weights_key=key)
    assert same_weights(chosen, model)


def test_of_several_networks_the_keys_are_named_and_one_is_chosen(tmp_path: Path) -> None:
    first, second = resnet(), resnet(num_classes=7)
    states = {"student": first.state_dict(), "nets": {"teacher": second.state_dict()}}
    torch.save(states, tmp_path / "c.pth")
    with refused("'student'", "'nets.teacher'", "teacher_weights_key"):
        build_model("test_resnet", tmp_path / "c.pth")
    for key, model in ("student", first), ("nets.teacher", second), ("nets", second):
        built, loaded = build_model("test_resnet", tmp_path / "c.pth", weights_key=key)
        assert same_weights(built, model)
        assert f"of the key {key!r}" in loaded.remarks


def test_a_key_with_a_prefix_chooses_one_of_several_networks(tmp_path: Path) -> None:
    both = {"a": resnet(), "b": resnet(num_classes=7)}
    state = {f"{k}.net.{n}": t for k, m in both.items() for n, t in m.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "c.pth")
    with refused("a.net.", "b.net.", "several", "teacher_weights_key"):
        build_model("test_resnet", tmp_path / "c.pth")
    for key in ("state_dict.b", "state_dict.b.net"):
        built, _ = build_model("test_resnet", tmp_path / "c.pth", weights_key=key)
        assert same_weights(built, both["b"])


def test_a_key_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    torch.save({"model": resnet().state_dict()}, tmp_path / "c.pth")
    with refused("'ema'", "'model'", "teacher_weights_key"):
        build_model("test_resnet", tmp_path / "c.pth", weights_key="ema")


def test_a_larger_network_beside_it_is_named_where_it_does_not_fit(tmp_path: Path) -> None:
    states = {"student": resnet().state_dict(), "teacher": convnext().state_dict()}
    torch.save(states, tmp_path / "c.pth")
    with refused("'student'", "'teacher'"):
        build_model("test_resnet", tmp_path / "c.pth")


def test_values_that_are_no_tensors_are_skipped(tmp_path: Path) -> None:
    model = resnet()
    state = {**model.state_dict(), "version": 3, "_metadata": {"a": {"version": 1}}}
    torch.save(state, tmp_path / "c.pth")
    assert same_weights(build_model("test_resnet", tmp_path / "c.pth")[0], model)


def test_other_tensors_in_the_file_are_named(tmp_path: Path) -> None:
    model = resnet()
    checkpoint = {"teacher": model.state_dict(), "dino_loss": {"center": torch.zeros(1, 8)}}
    torch.save(checkpoint, tmp_path / "c.pth")
    built, loaded = build_model("test_resnet", tmp_path / "c.pth")
    assert same_weights(built, model)
    assert "not read in the file: 'dino_loss'" in loaded.remarks


def test_a_file_that_contains_itself_is_no_endless_search(tmp_path: Path) -> None:
    model = resnet()
    checkpoint: dict[str, Any] = {"net": model.state_dict()}
    checkpoint["self"] = checkpoint
    torch.save(checkpoint, tmp_path / "c.pth")
    assert same_weights(build_model("test_resnet", tmp_path / "c.pth")[0], model)
