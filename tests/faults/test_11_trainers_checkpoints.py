"""Trainers' own checkpoints were refused because of harmless objects beside the weights."""

import argparse
import datetime
import functools
import pathlib
import types
from collections import OrderedDict, defaultdict, deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.refusals import refused
from helpers.small_models import resnet
from helpers.weights import same_weights
from lightning.fabric.utilities.data import AttributeDict
from torch import nn

from scalekd.networks import build_model

HARMLESS: dict[str, Any] = {
    "argparse": argparse.Namespace(lr=0.1, output=pathlib.Path("out"), layers=[1, 2]),
    "numpy float": np.float64(0.8),
    "numpy int": np.int64(3),
    "numpy array": np.arange(6.0).reshape(2, 3),
    "path": pathlib.PurePosixPath("a/b"),
    "Windows path": pathlib.PureWindowsPath("a/b"),
    "datetime": datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC),
    "timedelta": datetime.timedelta(1),
    "namespace": types.SimpleNamespace(a=1),
    "ordered": OrderedDict(a=1, b=[(1, 2), {3}]),
    "defaultdict": defaultdict(list, a=[1.0]),
    "deque": deque([1, 2], maxlen=3),
    "attributes": AttributeDict(lr=0.1),
    "types": (float, int),
    "torch version": torch.__version__,
    "dtype": torch.float16,
    "device": torch.device("cpu"),
    "size": torch.Size([1, 2]),
}


@functools.cache
def trained() -> tuple[nn.Module, dict[str, Any]]:
    """A network after a step, and the checkpoint of its training."""
    model = resnet()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, 3, 64, 64)).sum().backward()
    optimizer.step()
    optimizer_state = optimizer.state_dict()
    return model, {"epoch": 3, "optimizer": optimizer_state, "model": model.state_dict()}


@pytest.mark.parametrize("old_format", [False, True])
@pytest.mark.parametrize("kind", HARMLESS)
def test_harmless_objects_beside_the_weights_are_no_obstacle(
    kind: str, old_format: bool, tmp_path: Path
) -> None:
    model, checkpoint = trained()
    checkpoint = {**checkpoint, "extra": HARMLESS[kind]}
    torch.save(checkpoint, tmp_path / "c.pth.tar", _use_new_zipfile_serialization=not old_format)
    assert same_weights(build_model("test_resnet", tmp_path / "c.pth.tar")[0], model)


def test_weights_within_a_defaultdict_are_found(tmp_path: Path) -> None:
    model = resnet()
    torch.save(defaultdict(dict, model=model.state_dict()), tmp_path / "c.pth")
    assert same_weights(build_model("test_resnet", tmp_path / "c.pth")[0], model)


class Config:
    """A class of somebody's own."""


def test_another_class_is_refused_by_its_name_with_the_remedy(tmp_path: Path) -> None:
    torch.save({"model": resnet().state_dict(), "config": Config()}, tmp_path / "c.pth")
    with refused("c.pth", f"{Config.__module__}.Config", "save only the weights", "torch.save"):
        build_model("test_resnet", tmp_path / "c.pth")


def test_a_pickled_model_is_refused_by_its_class(tmp_path: Path) -> None:
    torch.save(resnet(), tmp_path / "c.pth")
    with refused("c.pth", "ResNet", "model.state_dict()"):
        build_model("test_resnet", tmp_path / "c.pth")


def test_harmless_classes_are_allowed_only_while_a_file_is_read(tmp_path: Path) -> None:
    before = set(torch.serialization.get_safe_globals())
    torch.save({"model": resnet().state_dict()}, tmp_path / "c.pth")
    build_model("test_resnet", tmp_path / "c.pth")
    assert set(torch.serialization.get_safe_globals()) == before


def test_lightnings_checkpoint_is_loaded(tmp_path: Path) -> None:
    model, by_a_script = trained()
    checkpoint = {
        "epoch": 1,
        "pytorch-lightning_version": "2.6.0",
        "state_dict": {f"model.{name}": tensor for name, tensor in model.state_dict().items()},
        "optimizer_states": [by_a_script["optimizer"]],
        "callbacks": {"ModelCheckpoint{'monitor': 'acc'}": {"best_model_score": torch.tensor(0.7)}},
        "hparams_name": "kwargs",
        "hyper_parameters": AttributeDict(root=pathlib.Path("x"), args=argparse.Namespace(a=1)),
    }
    torch.save(checkpoint, tmp_path / "last.ckpt")
    built, loaded = build_model("test_resnet", tmp_path / "last.ckpt")
    assert same_weights(built, model)
    assert "prefix 'model.' removed" in loaded.remarks
