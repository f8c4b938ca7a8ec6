"""`check_pair` reports what the built networks are, and leaves nothing behind."""

import json
import random
import socket
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers.refusals import refused
from helpers.warned import warned
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from scalekd import (
    FeatureExtractor,
    FeatureSelection,
    FrozenTeacher,
    InputError,
    LossWeights,
    ScaleKD,
)
from scalekd.compatibility.check import PairReport, check_pair
from scalekd.networks import paper
from scalekd.networks.build import build_without_weights
from scalekd.networks.input_config import DEFAULT_CROP

SWIN = {"img_size": 64, "window_size": 4, "embed_dim": 24, "depths": (2, 6), "num_heads": (1, 2)}
VIT = {"img_size": 64, "embed_dim": 32, "depth": 12, "num_heads": 2}
MEAN = {**VIT, "depth": 4, "class_token": False, "global_pool": "avg"}
DINO = {"img_size": 56, "embed_dim": 48, "depth": 4, "num_heads": 2}


@dataclass(frozen=True)
class Pair:
    """Small members of real families."""

    teacher: str
    student: str
    prefix_tokens: int = 0
    teacher_args: dict[str, Any] = field(default_factory=dict)
    student_args: dict[str, Any] = field(default_factory=dict)

    def checked(self, **options: Any) -> PairReport:
        arguments = {"teacher_args": self.teacher_args, "student_args": self.student_args}
        return check_pair(self.teacher, self.student, **arguments, **options)

    def built_teacher(self, **options: Any) -> FrozenTeacher:
        """The real teacher."""
        return FrozenTeacher(build_without_weights(self.teacher, **self.teacher_args), **options)

    def built_student(self) -> nn.Module:
        """The real student."""
        return build_without_weights(self.student, **self.student_args)


PAIRS = {
    "Swin": Pair("swin_small_patch4_window7_224", "test_resnet", 0, SWIN),
    "ViT": Pair("vit_tiny_patch16_224", "test_convnext", 1, VIT),
    "DINOv2": Pair("vit_small_patch14_reg4_dinov2", "vit_tiny_patch16_224", 5, DINO, MEAN),
}
SMALL = Pair("test_vit", "test_resnet")


@cache
def plain(family: str) -> PairReport:
    return PAIRS[family].checked()


@cache
def small(**options: Any) -> PairReport:
    return SMALL.checked(**options)


@pytest.fixture(params=PAIRS)
def checked_pair(request: pytest.FixtureRequest) -> tuple[Pair, PairReport]:
    return PAIRS[request.param], plain(request.param)


def gflop(run: Callable[[], Any], images: int = 2) -> float:
    """An image. With attention as two matrix products, which is what any kernel is told to be."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / images / 1e9


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_a_report_describes_teacher_and_student_as_the_built_models_are(
    checked_pair: tuple[Pair, PairReport],
) -> None:
    pair, report = checked_pair
    teacher, student = pair.built_teacher(), pair.built_student()
    extractor = FeatureExtractor(student)
    assert (report.teacher.name, report.student.name) == (pair.teacher, pair.student)
    assert report.teacher.input == teacher.input
    assert report.teacher.shapes == teacher.shapes
    assert report.teacher.selection == teacher.extractor.selection
    assert report.teacher.parameters == count(teacher.model)
    trained = replace(extractor.input, crop=DEFAULT_CROP, interpolation="bilinear")
    assert report.student.input == trained
    assert report.student.shapes == extractor.shapes
    assert report.student.selection == extractor.selection
    assert report.student.parameters == count(student)


def test_the_reported_tail_is_the_built_teachers(checked_pair: tuple[Pair, PairReport]) -> None:
    pair, report = checked_pair
    teacher = pair.built_teacher()
    assert report.tail == teacher.tail_modules
    assert report.prefix_tokens == teacher.prefix_tokens == pair.prefix_tokens
    assert report.verified
    assert 0 <= report.difference <= 1e-4
    assert report.verified_on.startswith("a copy of ")
    assert "random weights" in report.verified_on


def test_reported_projectors_heads_weights_and_notes_are_those_of_the_built_pair(
    checked_pair: tuple[Pair, PairReport],
) -> None:
    pair, report = checked_pair
    real = ScaleKD(pair.built_teacher(), pair.built_student())
    projectors = real.criterion.projectors
    assert report.projector_parameters == sum(count(p) for p in projectors) > 0
    assert report.projector_parameters == count(real.criterion)
    assert report.heads == real.heads
    assert report.weights == real.criterion.weights
    assert report.notes == real.notes


def test_reported_gflop_are_those_counted_on_the_built_models(
    checked_pair: tuple[Pair, PairReport],
) -> None:
    pair, report = checked_pair
    real = ScaleKD(pair.built_teacher(), pair.built_student()).train()
    teacher_images = torch.randn(2, 3, *report.teacher.input.size)
    student_images = torch.randn(2, 3, *report.student.input.size)
    with torch.no_grad():
        assert report.teacher.gflop == pytest.approx(
            gflop(lambda: real.teacher.model(teacher_images))
        )
        forward = gflop(lambda: real.student(student_images))
        first = next(m for m in real.student.modules() if isinstance(m, nn.Conv2d))
        entry = gflop(lambda: first(student_images))
    # Backwards twice as much, less the gradient of the images. To count that of a convolution
    # with groups, as ConvNeXt's are, is where torch's counter errs.
    assert report.student.gflop == pytest.approx(3 * forward - entry)
    learn = gflop(lambda: real.student(student_images).sum().backward())
    if "convnext" not in pair.student:
        assert report.student.gflop == pytest.approx(learn)
    step = gflop(lambda: real(student_images, torch.tensor([3, 1])).loss.backward())
    assert report.teacher.gflop + report.rest_gflop == pytest.approx(step - learn)
    parts = report.teacher.gflop + report.student.gflop + report.rest_gflop
    assert report.step_gflop == pytest.approx(parts)
    assert min(report.teacher.gflop, report.student.gflop, report.rest_gflop) > 0


def test_logits_are_skipped_with_a_note_for_a_teacher_without_classifier() -> None:
    without = check_pair("test_vit", "test_resnet", teacher_args={"num_classes": 0})
    assert without.teacher.shapes.classes is None
    assert without.weights == LossWeights(logits=0.0)
    assert [n for n in without.notes if "logit distillation is skipped" in n.text]
    assert without.teacher.parameters == count(timm.create_model("test_vit", num_classes=0))
    assert "--teacher_args.num_classes 0" in without.command


def test_a_student_without_classifier_learns_only_features() -> None:
    without = check_pair("test_vit", "test_resnet", student_args={"num_classes": 0})
    assert without.student.shapes.classes is None
    assert without.weights.logits == 0
    assert [n for n in without.notes if "only features" in n.text]


def test_requested_logits_are_refused_for_a_teacher_without_classifier() -> None:
    with refused("no classifier", "logits is 0.5"):
        check_pair(
            "test_vit", "test_resnet", teacher_args={"num_classes": 0}, weights=LossWeights()
        )


@pytest.mark.parametrize("size", [64, (64, 128)])
def test_the_student_is_checked_at_the_size_of_its_images(size: Any) -> None:
    report = small(image_size=size)
    height, width = size if isinstance(size, tuple) else (size, size)
    real = FeatureExtractor(SMALL.built_student(), (height, width))
    assert report.student.input.size == (height, width)
    assert report.student.shapes == real.shapes
    images = torch.randn(2, 3, height, width)
    learn = gflop(lambda: SMALL.built_student().train()(images).sum().backward())
    assert report.student.gflop == pytest.approx(learn)
    assert report.teacher.input.size == (160, 160)
    quoted = str(size) if isinstance(size, int) else f"'{list(size)}'"
    assert f"--data.image_size {quoted}" in report.command


def test_twice_the_pixels_are_twice_the_convolutions() -> None:
    low, high = (small(image_size=size) for size in (64, (64, 128)))
    assert high.student.gflop / low.student.gflop == pytest.approx(2, rel=0.05)
    assert high.teacher.gflop == low.teacher.gflop


def test_the_teacher_is_checked_at_the_requested_teacher_size() -> None:
    report = small(teacher_size=(96, 128))
    model = build_without_weights("test_vit")
    model.set_input_size(img_size=(96, 128))
    real = FrozenTeacher(model)
    assert report.teacher.input.size == real.input.size == (96, 128)
    assert report.teacher.shapes == real.shapes
    assert report.teacher.shapes.final == (64, 6, 8)
    with torch.no_grad():
        cost = gflop(lambda: model(torch.randn(2, 3, 96, 128)))
    assert report.teacher.gflop == pytest.approx(cost)


@pytest.mark.parametrize(
    "settings",
    [
        FeatureSelection(penultimate=-4, final=-2),
        FeatureSelection(penultimate=1, norm="none"),
    ],
    ids=["features amid the model", "without the norm"],
)
def test_the_teachers_features_are_the_requested_ones(settings: FeatureSelection) -> None:
    report, real = small(teacher_features=settings), SMALL.built_teacher(features=settings)
    assert report.tail == real.tail_modules
    assert report.teacher.selection == real.extractor.selection
    assert report.teacher.shapes == real.shapes
    assert report.difference <= 1e-4


def test_the_students_features_are_the_requested_ones() -> None:
    settings = FeatureSelection(penultimate=-3, norm="none")
    report = small(student_features=settings)
    real = FeatureExtractor(SMALL.built_student(), features=settings)
    assert report.student.selection == real.selection
    assert report.student.shapes == real.shapes
    assert report.student.shapes != FeatureExtractor(SMALL.built_student()).shapes


def test_prefix_tokens_can_be_switched_off() -> None:
    own, none = small(), small(teacher_prefix="none")
    assert (own.prefix_tokens, none.prefix_tokens) == (1, 0)
    assert none.rest_gflop < own.rest_gflop
    assert "--teacher_prefix none" in none.command


def test_terms_of_one_token_grids_are_dropped_on_request() -> None:
    with warned("the term final_alternative is dropped"):
        report = small(image_size=32, one_token="drop")
    assert report.student.shapes.final[1:] == (1, 1)
    assert report.weights == LossWeights(final_alternative=0.0)
    assert "--one_token drop" in report.command


def test_projectors_without_a_weight_are_not_built() -> None:
    view = LossWeights(tpp_alternative=0.0, final_alternative=0.0)
    half, complete = small(weights=view), small()
    assert half.weights == view
    # Without queries of its own the second view's projectors are as many.
    assert half.projector_parameters == complete.projector_parameters / 2
    assert half.rest_gflop == pytest.approx(complete.rest_gflop / 2)


def test_heads_are_the_requested_ones_and_the_papers_by_default() -> None:
    assert small(heads=(4, 8)).heads == (4, 8)
    assert small().heads == (1, 1)
    assert plain("Swin").heads == paper.TEACHER_HEADS[paper.SWIN_S]
    with refused("5 heads", "64", "take one of 1, 2, 4"):
        small(heads=(5, 8))


def test_a_deep_teacher_is_verified_on_a_shorter_copy() -> None:
    report = plain("ViT")
    modules = len(list(build_without_weights("vit_tiny_patch16_224", **VIT).modules()))
    copy = f"a copy of {(report.verified_on.split()[3])} of its {modules} modules"
    assert report.verified_on.startswith(copy)
    assert int(report.verified_on.split()[3]) < modules / 2
    assert report.tail == ["blocks.10", "blocks.11", "norm"]  # the complete model's names


class _CountsItsBlocks(VisionTransformer):
    def forward_intermediates(self, *arguments: Any, **options: Any) -> Any:
        assert len(self.blocks) == 6
        return super().forward_intermediates(*arguments, **options)


@register_model
def scalekd_test_counts_its_blocks(pretrained: bool = False, **arguments: Any) -> nn.Module:
    return _CountsItsBlocks(img_size=64, patch_size=16, embed_dim=32, depth=6, num_heads=2)


def test_a_teacher_that_cannot_be_shortened_is_verified_itself() -> None:
    report = check_pair("scalekd_test_counts_its_blocks", "test_resnet")
    assert report.verified_on == "the model itself, with random weights, at 64x64 pixels"
    assert report.tail == ["blocks.5", "norm"]
    assert report.difference <= 1e-4


def test_a_folder_needs_no_weights_to_be_checked(tmp_path: Path) -> None:
    config = {
        "architecture": "test_vit",
        "num_classes": 5,
        "pretrained_cfg": {"input_size": [3, 160, 160], "num_classes": 5, "classifier": "head"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    report = check_pair(f"local-dir:{tmp_path}", "test_resnet", student_args={"num_classes": 5})
    assert report.teacher.name == f"local-dir:{tmp_path}"
    assert report.teacher.shapes.classes == 5
    assert report.tail == ["blocks.5", "norm"]
    assert report.weights.logits == 0.5
    assert f"--teacher local-dir:{tmp_path}" in report.command
    # The images may have the teacher's classes, and then the student has them, too.
    report = check_pair(f"local-dir:{tmp_path}", "test_resnet")
    assert (report.student.shapes.classes, report.weights.logits) == (5, 0.5)


def test_the_packaged_digits_pair_fits() -> None:
    report = check_pair(
        "scalekd_digits_swin",
        "resnetv2_18",
        student_args={
            "layers": [1, 1],
            "channels": [48, 96],
            "stem_chs": 64,
            "stem_type": "deep",
            "in_chans": 1,
            "num_classes": 10,
        },
        image_size=32,
    )
    assert report.notes == []
    assert report.teacher.parameters == pytest.approx(0.59e6, rel=0.01)
    assert all(asdict(report.weights).values())


@pytest.mark.parametrize(
    ("options", "pieces"),
    [
        ({"student_args": {"in_chans": 1}}, ["student takes images of 1 channel", "in_chans=3"]),
        ({"image_size": 0}, ["image_size is 0", "more than 0"]),
        ({"image_size": 32}, ["student's final grid is 1x1", "final_alternative"]),
        ({"teacher_size": (100, 100)}, ["test_vit", "100x100"]),
        ({"teacher_features": FeatureSelection(penultimate=9)}, ["test_vit", "number 9"]),
        ({"student_features": FeatureSelection(final=9)}, ["test_resnet", "number 9"]),
        (
            {"teacher_features": FeatureSelection(norm="pooled")},
            ["test_vit", "no norm after its pooling"],
        ),
        ({"teacher_args": {"fo": 1}}, ["test_vit", "fo"]),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
def test_options_that_do_not_fit_are_refused_by_name(
    options: dict[str, Any], pieces: list[str]
) -> None:
    with refused(*pieces):
        check_pair("test_vit", "test_resnet", **options)


@pytest.mark.parametrize("student", ["vit_tiny_patch16_224", "crossvit_tiny_240"])
def test_a_check_changes_no_device_and_no_random_state(student: str) -> None:
    arguments = {"depth": 2, "drop_path_rate": 0.5} if "vit_tiny_patch" in student else {}
    before = torch.get_rng_state(), random.getstate()
    try:
        check_pair("test_vit", student, student_args=arguments)
    except InputError:
        assert student == "crossvit_tiny_240"
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert torch.get_default_device() == torch.device("cpu")
    assert torch.empty(1).device.type == "cpu"
    assert torch.is_grad_enabled()


@pytest.fixture(scope="module")
def network_calls() -> list[str]:
    """The network calls of a check, none of which succeeds."""
    calls: list[str] = []

    def absent(*arguments: Any, **_: Any) -> None:
        calls.append(str(arguments))
        raise OSError("no network")

    with pytest.MonkeyPatch.context() as patch:
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            patch.delenv(name, raising=False)
            patch.delenv(name.upper(), raising=False)
        patch.setattr(socket.socket, "connect", lambda _, *a: absent("connect", *a))
        patch.setattr(socket, "getaddrinfo", lambda *a, **_: absent("look up", *a))
        assert check_pair("test_vit.r160_in1k", "test_resnet").verified
    return calls


def test_a_pair_is_checked_without_a_network_connection(network_calls: list[str]) -> None:
    assert [call for call in network_calls if "connect" in call] == []


def test_a_check_makes_no_network_calls_at_all(network_calls: list[str]) -> None:
    assert network_calls == []


PAPERS_HEADS = {
    (paper.SWIN_S, "resnet50"): (3, 6),
    (paper.SWIN_B, "resnet50"): (8, 16),
    (paper.SWIN_L, "resnet50"): (16, 24),
    (paper.SWIN_L, "mobilenetv1_100"): (16, 24),
    (paper.SWIN_L, "vit_base_patch16_224"): (8, 8),
}
"""Heads that the paper or its code gives; those of other pairs are open."""


@pytest.mark.slow
@pytest.mark.parametrize("pair", paper.PAIRS + paper.ABLATION_PAIRS, ids=str)
def test_the_papers_pairs_fit(pair: paper.PublishedPair) -> None:
    report = check_pair(
        pair.teacher,
        pair.student,
        teacher_args=pair.teacher_args,
        student_args=pair.student_args,
    )
    assert report.verified
    assert report.difference <= 1e-4
    assert report.student.parameters / 1e6 == pytest.approx(pair.parameters, rel=0.02)
    # Of which the forward pass is a third, and a multiply-add counts 2.
    assert report.student.gflop / 6 == pytest.approx(pair.gmac, rel=0.1)
    assert report.heads == PAPERS_HEADS.get((pair.teacher, pair.student), report.heads)
    last_blocks = ["blocks.22", "blocks.23"]
    assert report.tail == (last_blocks if pair.teacher == paper.EVA_L else ["layers.3", "norm"])
    assert [note for note in report.notes if "skipped" in note.text] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "teacher",
    [
        "vit_base_patch16_dinov3",
        "eva02_base_patch14_448",
        "beitv2_base_patch16_224",
        "vit_base_patch16_siglip_224",
        "davit_base",
        "focalnet_base_lrf",
        "caformer_b36",
        "vit_base_patch14_reg4_dinov2",
    ],
)
def test_teachers_of_other_families_fit(teacher: str) -> None:
    report = check_pair(teacher, "resnet50")
    assert report.verified
    assert report.difference <= 1e-4
    assert report.tail
    assert report.verified_on.startswith("a copy of ")
    assert report.step_gflop > report.teacher.gflop > 0
