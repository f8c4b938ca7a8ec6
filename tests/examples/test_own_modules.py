"""The examples and the code blocks of the page on custom modules run."""

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

TABLE: dict[str, list[Callable[[], nn.Module]]] = {
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
"""Networks by the first words of their row in the page's table."""


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test runs in an empty folder, with random numbers of its own."""
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def run(name: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Run an example in this process; a new process would import for longer than it runs."""
    runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
    assert not list(Path.cwd().iterdir())
    return capsys.readouterr().out


def test_the_example_of_a_custom_module_runs(capsys: pytest.CaptureFixture[str]) -> None:
    output = run("own_module.py", capsys)
    assert "the teacher's tail: last\n" in output
    accuracies = re.search(r"teacher ([\d.]+)%, student ([\d.]+)%", output)
    assert accuracies, output
    assert float(accuracies[1]) > 70  # 10 % is chance
    assert float(accuracies[2]) > 40


def test_the_example_with_a_transformers_teacher_runs(capsys: pytest.CaptureFixture[str]) -> None:
    with warned("looks UNTRAINED"):
        output = run("transformers_teacher.py", capsys)
    assert "the teacher's tail: model.vit.layers.5, model.vit.layernorm\n" in output
    losses = re.findall(r"'final_original': ([\d.]+)", output)
    assert len(losses) == 3
    assert float(losses[-1]) < float(losses[0])


def small_vit(name: str) -> ViTForImageClassification:
    """A stand-in for the pretrained ViT-B/16: as deep, narrower, and random."""
    assert name == "google/vit-base-patch16-224"
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
    return ViTForImageClassification(ViTConfig(**sizes, num_labels=1000))


def test_the_code_blocks_of_the_page_on_custom_modules_run(
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


@pytest.mark.parametrize("network", TABLE)
def test_module_names_in_the_pages_table_exist(network: str) -> None:
    row = re.search(rf"^\| {re.escape(network)}.* \| `(.*)` \| `(.*)` \|$", PAGE, re.MULTILINE)
    assert row, network
    config = InputConfig(3, (224, 224), (0.5,) * 3, (0.5,) * 3)
    for make in TABLE[network]:
        with torch.device("meta"):
            model = HookedFeatures(make().eval(), row[1], row[2], config)
            features = model.features(torch.empty(2, 3, 224, 224))
        assert features.penultimate.shape[2] in (14, 16)
        assert features.final.shape[2] in (7, 14, 16)
