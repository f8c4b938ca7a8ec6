"""The examples and the page about modules of one's own: what they show runs."""

import re
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from helpers.warned import warned
from torch import nn
from torchvision.models import resnet18, resnet50, swin_t, vit_b_16
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from scalekd import HookedFeatures, InputConfig

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "own-modules.md").read_text()

NAMED: dict[str, list[Callable[[], nn.Module]]] = {
    "transformers ViT": [lambda: ViTForImageClassification(ViTConfig())],
    "transformers Swin": [lambda: SwinForImageClassification(SwinConfig())],
    "transformers DINOv2": [
        lambda: Dinov2Model(Dinov2Config()),
        lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig()),
    ],
    "torchvision `vit_b_16`": [vit_b_16],
    "torchvision `swin_t`": [swin_t],
    "torchvision `resnet18`": [resnet18, resnet50],
}
"""The networks of the page's table, by how its rows begin."""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In an empty folder, and with random numbers of its own."""
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def run(name: str, capsys: pytest.CaptureFixture[str]) -> str:
    """In this process: a new one would import for longer than the example runs."""
    runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
    assert not list(Path.cwd().iterdir())
    return capsys.readouterr().out


def test_the_example_of_a_module_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    said = run("own_module.py", capsys)
    assert "the teacher's tail: last\n" in said
    right = re.search(r"teacher ([\d.]+)%, student ([\d.]+)%", said)
    assert right, said
    assert float(right[1]) > 70  # a tenth is chance
    assert float(right[2]) > 40


def test_the_example_with_transformers(capsys: pytest.CaptureFixture[str]) -> None:
    with warned("looks UNTRAINED"):
        said = run("transformers_teacher.py", capsys)
    assert "the teacher's tail: model.vit.layers.5, model.vit.layernorm\n" in said
    losses = re.findall(r"'final_original': ([\d.]+)", said)
    assert len(losses) == 3
    assert float(losses[-1]) < float(losses[0])


def small_vit(name: str) -> ViTForImageClassification:
    """In place of the pretrained ViT-B/16: as deep, narrow, and random."""
    assert name == "google/vit-base-patch16-224"
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
    return ViTForImageClassification(ViTConfig(**sizes, num_labels=1000))


@pytest.mark.filterwarnings("ignore:the teacher .* looks UNTRAINED")
def test_what_the_page_shows_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ViTForImageClassification, "from_pretrained", small_vit)
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 3
    names: dict[str, object] = {"__name__": "page"}
    with warned("looks UNTRAINED"):
        for block in blocks:
            exec(compile(block, "docs/own-modules.md", "exec"), names)
    tail = "['model.vit.layers.10', 'model.vit.layers.11', 'model.vit.layernorm']"
    assert tail in capsys.readouterr().out


@pytest.mark.parametrize("network", NAMED)
def test_the_names_that_the_page_gives_are_there(network: str) -> None:
    row = re.search(rf"^\| {re.escape(network)}.* \| `(.*)` \| `(.*)` \|$", PAGE, re.MULTILINE)
    assert row, network
    given = InputConfig(3, (224, 224), (0.5,) * 3, (0.5,) * 3)
    for make in NAMED[network]:
        with torch.device("meta"):
            model = HookedFeatures(make().eval(), row[1], row[2], given)
            seen = model.features(torch.empty(2, 3, 224, 224))
        assert seen.penultimate.shape[2] in (14, 16)
        assert seen.final.shape[2] in (7, 14, 16)
