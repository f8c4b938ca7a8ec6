"""A teacher with NaN in its classifier passed all checks, and `evaluate` measured NaN weights."""

import math
from pathlib import Path

import pytest
import timm
import torch
from helpers.refusals import refused
from helpers.small_models import SIZE, resnet, vit
from helpers.weights import save_weights
from timm.models import save_for_hf
from torch import nn

from scalekd import FrozenTeacher, ScaleKD
from scalekd.networks import build_model


def spoiled(name: str, value: float, model: nn.Module | None = None) -> nn.Module:
    """A network with one bad value in the tensor of this name."""
    model = model or resnet()
    with torch.no_grad():
        model.state_dict()[name].view(-1)[0] = value
    return model


TENSORS = ["fc.weight", "fc.bias", "conv1.0.weight", "bn1.running_mean"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", TENSORS)
def test_a_file_and_a_folder_of_non_finite_weights_are_refused(
    name: str, value: float, tmp_path: Path
) -> None:
    model = spoiled(name, value)
    file = save_weights(model.state_dict(), tmp_path)
    with refused(str(file), name, "non-finite (NaN or Inf)"):
        build_model("test_resnet", file)
    save_for_hf(model, str(tmp_path / "f"), safe_serialization=True)
    with refused(f"{tmp_path}/f", name, "non-finite (NaN or Inf)"):
        build_model(f"local-dir:{tmp_path}/f", "pretrained")


def test_a_teacher_module_of_non_finite_weights_is_refused() -> None:
    with refused("teacher", "head.bias", "non-finite"):
        FrozenTeacher(spoiled("head.bias", math.nan, vit()))
    with refused("teacher", "head.bias", "non-finite"):
        ScaleKD(spoiled("head.bias", math.nan, vit()), resnet(), size=SIZE)


def test_a_student_module_of_non_finite_weights_is_refused() -> None:
    with refused("student", "fc.bias", "non-finite"):
        ScaleKD(vit(), spoiled("fc.bias", math.inf), size=SIZE)


def test_finite_weights_are_accepted(tmp_path: Path) -> None:
    model = timm.create_model("test_resnet")
    file = save_weights(model.state_dict(), tmp_path)
    assert build_model("test_resnet", file)[1].matched
