"""Backbones of every family, and the heads on top of them."""

import json
from pathlib import Path

import pytest
import timm
import torch
from helpers.refusals import refused
from timm.models import save_for_hf
from torch import nn

from scalekd.networks.student import StudentSpec
from scalekd.transfer.backbone import Backbone, choose_levels, open_backbone
from scalekd.transfer.network_folder import save_network
from scalekd.transfer.segmentation.segmenter import (
    SegmentationLearner,
    SegmenterSpec,
    load_segmenter,
)

SWIN = {"embed_dim": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 3, 4]}
SIZE = (64, 64)
HEADS = [("linear", False), ("upernet", True)]


def spec_of(name: str, head: str, arguments: dict[str, object] | None = None) -> SegmenterSpec:
    opened = open_backbone(f"timm:{name}", "random", arguments or {}, SIZE)
    return SegmenterSpec(
        backbone=opened.spec,
        head=head,
        head_channels=8,
        has_auxiliary=head == "upernet",
        frozen=False,
        class_names=("a", "b", "c"),
    )


@pytest.mark.parametrize(
    ("reductions", "levels"),
    [
        ([2, 4, 8, 16, 32], [1, 2, 3, 4]),
        ([4, 8, 16, 32], [0, 1, 2, 3]),
        ([16] * 12, [2, 5, 8, 11]),
        ([2, 4, 8, 16, 16], [0, 1, 2, 4]),
        ([8, 16], [0, 1]),
    ],
)
def test_levels_are_the_last_maps_of_resolutions_or_blocks_at_equal_distances(
    reductions: list[int], levels: list[int]
) -> None:
    assert choose_levels(reductions) == levels


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("hrnet_w18_small", {}),
        ("twins_svt_small", {"embed_dims": (8, 8, 16, 16), "num_heads": (1, 1, 2, 2)}),
    ],
)
def test_first_levels_that_are_no_modules_are_not_frozen(
    name: str, arguments: dict[str, object]
) -> None:
    model = timm.create_model(name, **arguments)
    with refused("frozen_stages is 1", type(model).__name__, "--frozen true"):
        Backbone(model, frozen_stages=1)


def test_a_network_that_is_bound_to_its_size_is_built_again_for_the_crops(tmp_path: Path) -> None:
    arguments = {"embed_dims": (8, 8, 16, 16), "num_heads": (1, 1, 2, 2), "in_chans": 1}
    own = {**arguments, "img_size": 224}
    save_for_hf(timm.create_model("twins_svt_small", **arguments), tmp_path / "x", model_args=own)
    opened = open_backbone(str(tmp_path / "x"), "pretrained", {}, SIZE)
    again = opened.spec.build()
    shapes, expected = (
        {name: tuple(value.shape) for name, value in model.state_dict().items()}
        for model in (again, opened.model)
    )
    assert shapes == expected
    again.load_state_dict(opened.model.state_dict())


def test_a_student_of_many_classes_with_long_names_is_a_backbone(tmp_path: Path) -> None:
    save_for_hf(timm.create_model("test_resnet"), tmp_path / "x", model_args={})
    file = tmp_path / "x" / "config.json"
    names = [f"a class of which the name is long, number {n:05}" for n in range(10_000)]
    file.write_text(json.dumps({**json.loads(file.read_text()), "label_names": names}))
    assert open_backbone(str(tmp_path / "x"), "pretrained", {}, SIZE).input.channels == 3


def test_too_few_blocks_are_refused() -> None:
    with refused("3 blocks"):
        choose_levels([16] * 3)


@pytest.mark.parametrize(
    ("name", "arguments", "normed"),
    [
        ("test_resnet", {}, False),
        ("test_convnext", {}, True),
        ("swin_tiny_patch4_window7_224", SWIN, True),
        ("test_vit", {}, True),
    ],
)
@pytest.mark.parametrize(("head", "has_auxiliary"), HEADS)
def test_every_family_is_segmented_at_any_size(
    name: str, arguments: dict[str, object], normed: bool, head: str, has_auxiliary: bool
) -> None:
    """In training on crops, and in eval on an image whose sides nothing divides."""
    learner = SegmentationLearner(spec_of(name, head, arguments).build()).train()
    norms = learner.student.backbone.norms
    assert all(isinstance(norm, nn.Identity) != normed for norm in norms)
    labels = torch.randint(0, 3, (2, *SIZE), dtype=torch.int16)
    step = learner(torch.randn(2, 3, *SIZE), labels)
    assert list(step.terms) == ["task"] + ["auxiliary"] * has_auxiliary
    step.loss.backward()
    assert [n for n, p in learner.named_parameters() if p.grad is None] == []
    with torch.no_grad():
        assert learner.student.eval()(torch.randn(1, 3, 75, 50)).shape == (1, 3, 75, 50)


def test_a_frozen_backbone_stays_as_it_is() -> None:
    backbone = Backbone(timm.create_model("test_resnet"), frozen=True).train()
    before = {name: t.clone() for name, t in backbone.state_dict().items()}
    assert not any(p.requires_grad for p in backbone.parameters())
    assert not backbone(torch.randn(2, 3, 32, 32))[0].requires_grad
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_the_loss_of_a_batch_is_the_mean_of_its_parts_wherever_labels_are_missing() -> None:
    learner = SegmentationLearner(spec_of("test_convnext", "linear").build())
    images = torch.randn(2, 3, *SIZE)
    labels = torch.randint(0, 3, (2, *SIZE), dtype=torch.int16)
    labels[0, :40] = -1
    together = learner(images, labels).loss
    parts = [learner(images[i : i + 1], labels[i : i + 1]).loss for i in range(2)]
    assert together.item() == pytest.approx((parts[0] + parts[1]).item() / 2, rel=1e-5)


def test_position_embeddings_and_the_networks_own_exemptions_have_no_weight_decay() -> None:
    learner = SegmentationLearner(spec_of("test_vit", "linear").build())
    exempt = learner.no_weight_decay()
    assert "student.backbone.levels.model.pos_embed" in exempt
    assert exempt <= dict(learner.named_parameters()).keys()


def exported_student(folder: Path, channels: int = 3) -> nn.Module:
    spec = StudentSpec(
        name="test_resnet",
        arguments={"in_chans": channels},
        classes=5,
        input=None,
        size=(32, 32),
        mean=(0.1,) * channels,
        std=(0.9,) * channels,
    )
    student = spec.build()
    spec.export(student.eval(), folder)
    return student


def test_an_exported_student_keeps_its_weights_and_its_normalisation(tmp_path: Path) -> None:
    student = exported_student(tmp_path / "run/student")
    for folder in ("run", "run/student"):
        opened = open_backbone(str(tmp_path / folder), "pretrained", {}, SIZE)
        assert opened.input.mean == opened.spec.mean == (0.1, 0.1, 0.1)
        assert opened.spec.architecture == "test_resnet"
        for name, tensor in opened.model.state_dict().items():
            assert torch.equal(tensor, student.state_dict()[name]), name


def test_an_exported_vit_is_resized_to_the_crops_and_rebuilt_without_its_folder(
    tmp_path: Path,
) -> None:
    arguments = {"img_size": 48}
    student = StudentSpec(
        name="test_vit", arguments=arguments, classes=5, input=None, size=(48, 48)
    )
    student.export(student.build().eval(), tmp_path / "student")
    opened = open_backbone(str(tmp_path / "student"), "pretrained", {}, SIZE)
    rebuilt = opened.spec.build().state_dict()
    assert {n: t.shape for n, t in opened.model.state_dict().items() if "head" not in n} == {
        n: t.shape for n, t in rebuilt.items() if "head" not in n
    }
    assert rebuilt["pos_embed"].shape[1] == 17


def test_a_student_for_other_channels_is_refused(tmp_path: Path) -> None:
    exported_student(tmp_path / "student", channels=4)
    with refused("4 channels", "RGB"):
        open_backbone(str(tmp_path / "student"), "pretrained", {}, SIZE)


def test_what_is_no_backbone_is_refused(tmp_path: Path) -> None:
    with refused("no folder 'resnet50'", "timm:NAME"):
        open_backbone("resnet50", "random", {}, SIZE)
    with refused("config.json"):
        open_backbone(str(tmp_path), "pretrained", {}, SIZE)
    with refused("resnet5"):
        open_backbone("timm:resnet5", "random", {}, SIZE)


def test_a_saved_segmenter_is_loaded_without_its_backbones_folder(tmp_path: Path) -> None:
    spec = spec_of("test_vit", "upernet")
    segmenter = spec.build().eval()
    save_network(segmenter.state_dict(), spec, tmp_path / "segmenter")
    loaded, again = load_segmenter(tmp_path / "segmenter")
    assert again == spec
    images = torch.randn(1, 3, 40, 72)
    assert torch.equal(loaded(images), segmenter(images))


def test_a_damaged_segmenter_is_refused(tmp_path: Path) -> None:
    spec = spec_of("test_resnet", "linear")
    save_network(spec.build().state_dict(), spec, tmp_path / "segmenter")
    weights = tmp_path / "segmenter/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with refused("model.safetensors", "cannot be read"):
        load_segmenter(tmp_path / "segmenter")
    (tmp_path / "segmenter/config.json").write_text("{}")
    with refused("no folder of a segmenter"):
        load_segmenter(tmp_path / "segmenter")
