"""Models built without random initialisation: cheap, but fit to look at their structure."""

from typing import Any

import pytest
import torch
from helpers.refusals import refused
from helpers.small_models import CLASSES, SWIN, images
from helpers.weights import same_weights

from scalekd.networks import build_model
from scalekd.networks.build import build_without_weights

MODELS = [
    ("test_resnet", {}),
    ("test_convnext", {}),
    ("test_efficientnet", {}),
    ("test_maxvit", {}),
    ("test_vit", {}),
    ("swin_tiny_patch4_window7_224", {**SWIN, "img_size": 160}),
    ("beit_base_patch16_224", {"img_size": 160, "embed_dim": 32, "depth": 2, "num_heads": 2}),
    ("eva02_tiny_patch14_224", {"img_size": 168, "depth": 2}),
    ("regnetx_002", {}),
    ("mobilenetv1_100", {}),
]


@pytest.mark.parametrize(("name", "arguments"), MODELS)
def test_a_cheaply_initialised_network_has_the_structure_and_finite_outputs_of_a_random_one(
    name: str, arguments: dict[str, Any]
) -> None:
    model = build_without_weights(name, num_classes=CLASSES, **arguments).eval()
    random, _ = build_model(name, "random", num_classes=CLASSES, **arguments)
    state, buffers = model.state_dict(), dict(random.named_buffers())
    assert {n: t.shape for n, t in state.items()} == {
        n: t.shape for n, t in random.state_dict().items()
    }
    assert all(torch.equal(t, buffers[n]) for n, t in model.named_buffers())
    assert all(p.isfinite().all() and p.abs().max() < 20 for p in model.parameters())
    assert all(p.std() > 0 for p in model.parameters() if p.numel() > 1)
    assert [p.requires_grad for p in model.parameters()] == [
        p.requires_grad for p in random.parameters()
    ]
    x = images(size=(168, 168) if "eva" in name else (160, 160))
    with torch.no_grad():
        final = model.forward_intermediates(x, intermediates_only=True, output_fmt="NCHW")[-1]
        logits = model(x)
    assert final.isfinite().all()
    assert final.std((2, 3)).mean() > 1e-3 * final.abs().mean()
    assert logits.isfinite().all()
    assert not torch.equal(logits[0], logits[1])


def test_cheap_initialisation_is_repeatable_and_leaves_random_generators_unchanged() -> None:
    before = torch.get_rng_state()
    first, second = (build_without_weights("test_vit") for _ in range(2))
    assert same_weights(first, second)
    assert torch.equal(torch.get_rng_state(), before)
    weights = [block.attn.qkv.weight for block in first.blocks]
    assert not torch.equal(weights[0], weights[1])
    assert weights[0].std().item() == pytest.approx(weights[0].shape[1] ** -0.5, rel=0.1)


def test_a_network_that_cannot_be_built_is_refused_and_torchs_fills_are_restored() -> None:
    with refused("resnet5O", "resnet50"):
        build_without_weights("resnet5O")
    with refused("test_resnet", "img_seize"):
        build_without_weights("test_resnet", img_seize=64)
    assert torch.nn.init.normal_(torch.empty(100)).std() > 0
