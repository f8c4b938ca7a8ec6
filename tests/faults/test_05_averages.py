"""A file had a network's weights and their average (EMA), and the raw ones were taken silently."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers.refusals import refused
from helpers.small_models import resnet
from helpers.weights import same_weights, save_weights
from timm.models import save_for_hf
from torch import nn

from scalekd.networks import build_model


def averaged() -> tuple[nn.Module, nn.Module]:
    """A network and its average."""
    network, average = resnet(), resnet()
    with torch.no_grad():
        for parameter in average.parameters():
            parameter.mul_(0.5)
    return network, average


def wrapped(network: nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize(
    ("raw_key", "average_key"),
    [
        ("state_dict", "state_dict_ema"),
        ("model", "model_ema"),
        ("net", "ema"),
        ("model", "EMA"),
        ("model", "swa_model"),
        ("current_model_state", "state_dict"),
    ],
)
def test_the_average_is_taken_and_the_other_named(
    raw_key: str, average_key: str, tmp_path: Path
) -> None:
    network, average = averaged()
    file = tmp_path / "c.pth"
    torch.save({raw_key: network.state_dict(), average_key: average.state_dict()}, file)
    built, loaded = build_model("test_resnet", file)
    assert same_weights(built, average)
    assert f"the average {average_key!r} was taken, not {raw_key!r}" in str(loaded)
    assert same_weights(build_model("test_resnet", file, weights_key=raw_key)[0], network)


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "_orig_mod.module."])
def test_an_average_in_a_wrapper_is_taken(wrapper: str, tmp_path: Path) -> None:
    network, average = averaged()
    ema = wrapped(average, wrapper) | {"n_averaged": torch.tensor(7)}
    torch.save({"model": wrapped(network, wrapper), "model_ema": ema}, tmp_path / "c.pth")
    assert same_weights(build_model("test_resnet", tmp_path / "c.pth")[0], average)


@pytest.mark.parametrize("average_prefix", ["model_ema.", "ema_model.module.", "ema."])
def test_an_average_beside_the_network_in_one_state_dict_is_taken(
    average_prefix: str, tmp_path: Path
) -> None:
    network, average = averaged()
    file = save_weights(wrapped(network, "model.") | wrapped(average, average_prefix), tmp_path)
    built, loaded = build_model("test_resnet", file)
    assert same_weights(built, average)
    assert "'model.'" in str(loaded)
    assert same_weights(build_model("test_resnet", file, weights_key="model")[0], network)


def test_an_average_that_lacks_the_buffers_is_refused_with_the_way_out(tmp_path: Path) -> None:
    network, average = averaged()
    file = tmp_path / "c.pth"
    parameters = {name: tensor.detach() for name, tensor in average.named_parameters()}
    torch.save({"model": network.state_dict(), "ema": parameters}, file)
    with refused("ema", "running_mean"):
        build_model("test_resnet", file)
    assert same_weights(build_model("test_resnet", file, weights_key="model")[0], network)


def test_the_average_in_a_folder_is_taken_and_the_other_named(tmp_path: Path) -> None:
    network, average = averaged()
    folder = tmp_path / "folder"
    save_for_hf(network, str(folder), safe_serialization=True)
    (folder / "model.safetensors").unlink()
    both: dict[str, Any] = {"state_dict": network.state_dict(), "state_dict_ema": None}
    both["state_dict_ema"] = average.state_dict()
    torch.save(both, folder / "pytorch_model.bin")
    built, loaded = build_model(f"local-dir:{folder}", "pretrained")
    assert same_weights(built, average)
    assert "the average 'state_dict_ema' was taken, not 'state_dict'" in str(loaded)
    chosen, _ = build_model(f"local-dir:{folder}", "pretrained", weights_key="state_dict")
    assert same_weights(chosen, network)


def test_an_average_that_is_none_is_ignored(tmp_path: Path) -> None:
    model = timm.create_model("test_resnet")
    torch.save({"model": model.state_dict(), "model_ema": None}, tmp_path / "c.pth")
    assert same_weights(build_model("test_resnet", tmp_path / "c.pth")[0], model)
