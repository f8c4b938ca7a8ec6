"""Detectors on backbones of every family: pyramids, anchors, what is frozen, and folders."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.refusals import refused
from torch import Tensor

from scalekd.training.performance import autocast
from scalekd.transfer.backbone import open_backbone
from scalekd.transfer.detection.detector import (
    DetectionLearner,
    Detector,
    DetectorSpec,
    load_detector,
)
from scalekd.transfer.network_folder import save_network

SWIN = {"embed_dim": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 3, 4]}
BACKBONES: list[tuple[str, dict[str, Any]]] = [
    ("test_resnet", {}),
    ("test_convnext", {}),
    ("test_vit", {}),
    ("swin_tiny_patch4_window7_224", SWIN),
]
TERMS = {
    "mask_rcnn": ["boxes", "classes", "masks", "objectness", "proposals"],
    "faster_rcnn": ["boxes", "classes", "objectness", "proposals"],
    "linear": ["boxes", "classes"],
}


def build(
    name: str = "test_resnet", arguments: dict[str, Any] | None = None, **changes: Any
) -> tuple[Detector, DetectorSpec]:
    opened = open_backbone(f"timm:{name}", "random", arguments or {}, (64, 64))
    spec = DetectorSpec(
        backbone=opened.spec,
        head="mask_rcnn",
        head_channels=8,
        anchor_scale=4.0,
        frozen=False,
        frozen_stages=0,
        frozen_batchnorm=False,
        short_sides=(64,),
        long_side=128,
        class_names=("a", "b"),
    )
    spec = replace(spec, **changes)
    return spec.build(opened.model), spec


def example() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Two images of different sizes, one with two objects and one without any."""
    torch.manual_seed(0)
    masks = torch.zeros(2, 64, 90, dtype=torch.uint8)
    masks[0, 4:30, 5:40] = 1
    masks[1, 20:60, 50:80] = 1
    objects = {
        "boxes": torch.tensor([[5.0, 4, 40, 30], [50, 20, 80, 60]]),
        "labels": torch.tensor([1, 2]),
        "masks": masks,
    }
    nothing = {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        "masks": torch.zeros(0, 50, 50, dtype=torch.uint8),
    }
    return [torch.rand(3, 64, 90), torch.rand(3, 50, 50)], [objects, nothing]


@pytest.mark.parametrize("head", sorted(TERMS))
@pytest.mark.parametrize(("name", "arguments"), BACKBONES, ids=[name for name, _ in BACKBONES])
def test_every_parameter_of_every_family_gets_a_gradient(
    name: str, arguments: dict[str, Any], head: str
) -> None:
    detector, _ = build(name, arguments, head=head)
    step = DetectionLearner(detector).train()(*example())
    assert sorted(step.terms) == TERMS[head]
    total = sum(term.detach() for term in step.terms.values())
    assert torch.allclose(step.loss.detach(), torch.as_tensor(total))
    step.loss.backward()
    missing = [n for n, p in detector.named_parameters() if p.grad is None]
    assert missing == []
    assert all(p.grad.isfinite().all() for p in detector.parameters() if p.grad is not None)


def test_objects_are_given_at_the_images_own_size() -> None:
    detector, _ = build(short_sides=(96,), long_side=192)
    images, _ = example()
    found = detector.eval()(images)
    assert len(found) == 2
    for image, objects in zip(images, found, strict=True):
        height, width = image.shape[1:]
        assert objects["masks"].shape == (len(objects["boxes"]), 1, height, width)
        assert objects["boxes"].min() >= 0
        assert objects["boxes"][:, 2].max() <= width
        assert objects["boxes"][:, 3].max() <= height
        assert set(objects["labels"].tolist()) <= {1, 2}


@pytest.mark.parametrize("head", sorted(TERMS))
def test_boxes_and_anchors_are_float32_in_every_precision(head: str) -> None:
    detector, _ = build(head=head, short_sides=(300,), long_side=700)
    network = detector.network
    anchors = []
    generator = network.anchor_generator if head == "linear" else network.rpn.anchor_generator
    generator.register_forward_hook(lambda module, inputs, output: anchors.extend(output))
    with torch.no_grad(), autocast("bf16-mixed", torch.device("cpu")):
        if head == "linear":  # which finds nothing before it is trained
            network.score_thresh = 0.0
        (found,) = detector.eval()([torch.rand(3, 300, 640)])
    assert anchors[0].dtype == found["boxes"].dtype == torch.float32
    assert len(found["boxes"])
    assert (found["boxes"] != found["boxes"].bfloat16()).any()
    images, targets = example()
    with autocast("bf16-mixed", torch.device("cpu")):
        step = DetectionLearner(detector).train()(images, targets)
    step.loss.backward()
    assert all(p.grad.isfinite().all() for p in detector.parameters() if p.grad is not None)


def test_a_probe_does_not_take_the_background_for_an_object() -> None:
    detector, _ = build(head="linear")
    logits = detector.network.head.classification_head.cls_logits
    with torch.no_grad():
        logits.bias.view(-1, 3)[:, 0] = 5.0
        logits.bias.view(-1, 3)[:, 2] = 1.0
        found = detector.eval()(example()[0])
    assert all(set(objects["labels"].tolist()) == {2} for objects in found)


def test_anchors_are_multiples_of_the_strides() -> None:
    detector, _ = build("resnet18", anchor_scale=8.0)
    assert detector.network.rpn.anchor_generator.sizes == ((32,), (64,), (128,), (256,), (512,))
    vit, _ = build("test_vit", anchor_scale=8.0)
    assert vit.network.rpn.anchor_generator.sizes == ((32,), (64,), (128,), (256,), (512,))
    for name in ("resnet18", "test_vit"):  # a probe has all sizes at each place
        probe, _ = build(name, anchor_scale=8.0, head="linear")
        assert probe.network.anchor_generator.sizes == ((32, 64, 128, 256, 512),)
    maps = vit.network.backbone(torch.zeros(1, 3, 64, 64))
    assert [tuple(level.shape[2:]) for level in maps.values()] == [
        (16, 16),
        (8, 8),
        (4, 4),
        (2, 2),
        (1, 1),
    ]


def test_images_are_normalised_by_the_backbones_own_statistics() -> None:
    detector, spec = build("test_vit")
    assert spec.backbone.mean
    assert detector.network.transform.image_mean == list(spec.backbone.mean)
    assert detector.network.transform.image_std == list(spec.backbone.std)


def test_a_frozen_backbone_is_not_trained_and_keeps_its_statistics() -> None:
    detector, _ = build(head="linear", frozen=True)
    before = {n: t.clone() for n, t in detector.backbone.levels.state_dict().items()}
    DetectionLearner(detector).train()(*example()).loss.backward()
    trained = [n for n, p in detector.named_parameters() if p.grad is not None]
    assert trained
    assert all("head." in name for name in trained)
    for name, tensor in detector.backbone.levels.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_first_stages_are_frozen_with_what_precedes_them() -> None:
    detector, _ = build("resnet18", frozen_stages=1)
    names = {n for n, p in detector.backbone.levels.named_parameters() if not p.requires_grad}
    assert {n.split(".")[1] for n in names} == {"conv1", "bn1", "layer1"}
    swin, _ = build("swin_tiny_patch4_window7_224", SWIN, frozen_stages=1)
    names = {n for n, p in swin.backbone.levels.named_parameters() if not p.requires_grad}
    assert {".".join(n.split(".")[1:3]) for n in names} == {
        "patch_embed.proj",
        "patch_embed.norm",
        "layers.0",
    }
    vgg, _ = build("vgg11_bn", frozen_stages=2)  # whose levels are made by ReLUs
    names = {n for n, p in vgg.backbone.levels.named_parameters() if not p.requires_grad}
    assert {n.removeprefix("model.features.").split(".")[0] for n in names} == {
        str(n) for n in (0, 1, 4, 5, 8, 9, 11, 12, 15, 16, 18, 19)
    }
    with refused("frozen_stages is 4", "4 levels"):
        build("resnet18", frozen_stages=4)


def test_frozen_batchnorm_keeps_its_statistics_in_training() -> None:
    detector, _ = build(frozen_batchnorm=True)
    before = {n: t.clone() for n, t in detector.backbone.levels.state_dict().items()}
    DetectionLearner(detector).train()(*example()).loss.backward()
    after = detector.backbone.levels.state_dict()
    statistics = [name for name in before if name.endswith("running_mean")]
    assert statistics
    assert all(torch.equal(before[name], after[name]) for name in statistics)
    trained = [n for n, p in detector.backbone.levels.named_parameters() if p.grad is not None]
    assert trained
    assert not [name for name in trained if ".bn" in name]


def test_levels_that_are_no_powers_of_two_are_refused() -> None:
    with refused("[14]", "patch_size: 16"):
        build("test_vit", {"patch_size": 14, "img_size": 56})


def test_a_folder_gives_the_same_detector_again(tmp_path: Path) -> None:
    detector, spec = build("test_convnext")
    save_network(detector.state_dict(), spec, tmp_path / "detector")
    again, read = load_detector(tmp_path / "detector")
    assert read == spec
    images, _ = example()
    one, other = detector.eval()(images), again(images)
    for mine, theirs in zip(one, other, strict=True):
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    with refused("no folder of a detector"):
        (tmp_path / "detector/config.json").write_text("{}")
        load_detector(tmp_path / "detector")


def test_positions_and_what_a_network_exempts_have_no_weight_decay() -> None:
    detector, _ = build("test_vit")
    exempt = DetectionLearner(detector).no_weight_decay()
    names = {name for name, _ in DetectionLearner(detector).named_parameters()}
    assert exempt
    assert exempt <= names
    assert any(name.endswith("pos_embed") for name in exempt)
