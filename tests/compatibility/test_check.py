"""`check_pair` reports what the built networks are, and leaves nothing behind."""

import json
import random
import socket
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
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

    def frozen(self, **options: Any) -> FrozenTeacher:
        """The real teacher."""
        return FrozenTeacher(build_without_weights(self.teacher, **self.teacher_args), **options)

    def learner(self) -> nn.Module:
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
def known(request: pytest.FixtureRequest) -> tuple[Pair, PairReport]:
    return PAIRS[request.param], plain(request.param)


def gflop(run: Callable[[], Any], images: int = 2) -> float:
    """An image. With attention as two matrix products, which is what any kernel is told to be."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / images / 1e9


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_what_is_said_of_both_sides_is_what_the_real_models_are(
    known: tuple[Pair, PairReport],
) -> None:
    pair, said = known
    teacher, student = pair.frozen(), pair.learner()
    mine = FeatureExtractor(student)
    assert (said.teacher.name, said.student.name) == (pair.teacher, pair.student)
    assert said.teacher.input == teacher.input
    assert said.teacher.shapes == teacher.shapes
    assert said.teacher.plan == teacher.extractor.selection
    assert said.teacher.parameters == count(teacher.model)
    assert said.student.input == mine.input
    assert said.student.shapes == mine.shapes
    assert said.student.plan == mine.selection
    assert said.student.parameters == count(student)


def test_the_tail_is_the_real_teachers(known: tuple[Pair, PairReport]) -> None:
    pair, said = known
    teacher = pair.frozen()
    assert said.tail == teacher.tail_modules
    assert said.prefix_tokens == teacher.prefix_tokens == pair.prefix_tokens
    assert said.verified
    assert 0 <= said.difference <= 1e-4
    assert said.verified_on.startswith("a copy of ")
    assert "random weights" in said.verified_on


def test_projectors_heads_weights_and_notes_are_those_of_the_real_pair(
    known: tuple[Pair, PairReport],
) -> None:
    pair, said = known
    real = ScaleKD(pair.frozen(), pair.learner())
    projectors = [*real.criterion.penultimate.values(), *real.method.final.values()]
    assert said.projector_parameters == sum(count(p) for p in projectors) > 0
    assert said.projector_parameters == count(real.criterion)
    assert said.heads == real.heads
    assert said.weights == real.criterion.weights
    assert said.notes == real.notes


def test_gflop_are_those_counted_on_the_real_models(known: tuple[Pair, PairReport]) -> None:
    pair, said = known
    real = ScaleKD(pair.frozen(), pair.learner()).train()
    theirs = torch.randn(2, 3, *said.teacher.input.size)
    mine = torch.randn(2, 3, *said.student.input.size)
    with torch.no_grad():
        assert said.teacher.gflop == pytest.approx(gflop(lambda: real.teacher.model(theirs)))
        forward = gflop(lambda: real.student(mine))
        first = next(m for m in real.student.modules() if isinstance(m, nn.Conv2d))
        entry = gflop(lambda: first(mine))
    # Backwards twice as much, less the gradient of the images. To count that of a convolution
    # with groups, as ConvNeXt's are, is where torch's counter errs.
    assert said.student.gflop == pytest.approx(3 * forward - entry)
    learn = gflop(lambda: real.student(mine).sum().backward())
    if "convnext" not in pair.student:
        assert said.student.gflop == pytest.approx(learn)
    step = gflop(lambda: real(mine, torch.tensor([3, 1])).loss.backward())
    assert said.teacher.gflop + said.rest_gflop == pytest.approx(step - learn)
    parts = said.teacher.gflop + said.student.gflop + said.rest_gflop
    assert said.step_gflop == pytest.approx(parts)
    assert min(said.teacher.gflop, said.student.gflop, said.rest_gflop) > 0


def test_a_teacher_without_classifier_leaves_logits_out_and_it_is_noted() -> None:
    without = check_pair("test_vit", "test_resnet", teacher_args={"num_classes": 0})
    assert without.teacher.shapes.classes is None
    assert without.weights == LossWeights(logits=0.0)
    assert [n for n in without.notes if "logit distillation is skipped" in n.text]
    assert without.teacher.parameters == count(timm.create_model("test_vit", num_classes=0))
    assert "--teacher_args.num_classes 0" in without.command


def test_a_student_without_classifier_learns_features_alone() -> None:
    without = check_pair("test_vit", "test_resnet", student_args={"num_classes": 0})
    assert without.student.shapes.classes is None
    assert without.weights.logits == 0
    assert [n for n in without.notes if "only features" in n.text]


def test_logits_that_are_asked_for_and_cannot_be_given_are_refused() -> None:
    with refused("no classifier", "logits is 0.5"):
        check_pair(
            "test_vit", "test_resnet", teacher_args={"num_classes": 0}, weights=LossWeights()
        )


@pytest.mark.parametrize("size", [64, (64, 128)])
def test_the_student_is_checked_at_the_size_of_its_images(size: Any) -> None:
    said = small(image_size=size)
    height, width = size if isinstance(size, tuple) else (size, size)
    real = FeatureExtractor(SMALL.learner(), (height, width))
    assert said.student.input.size == (height, width)
    assert said.student.shapes == real.shapes
    images = torch.randn(2, 3, height, width)
    learn = gflop(lambda: SMALL.learner().train()(images).sum().backward())
    assert said.student.gflop == pytest.approx(learn)
    assert said.teacher.input.size == (160, 160)
    quoted = str(size) if isinstance(size, int) else f"'{list(size)}'"
    assert f"--data.image_size {quoted}" in said.command


def test_twice_the_pixels_are_twice_the_convolutions() -> None:
    low, high = (small(image_size=size) for size in (64, (64, 128)))
    assert high.student.gflop / low.student.gflop == pytest.approx(2, rel=0.05)
    assert high.teacher.gflop == low.teacher.gflop


def test_the_teacher_is_checked_at_the_size_that_it_is_to_work_at() -> None:
    said = small(teacher_size=(96, 128))
    model = build_without_weights("test_vit")
    model.set_input_size(img_size=(96, 128))
    real = FrozenTeacher(model)
    assert said.teacher.input.size == real.input.size == (96, 128)
    assert said.teacher.shapes == real.shapes
    assert said.teacher.shapes.final == (64, 6, 8)
    with torch.no_grad():
        cost = gflop(lambda: model(torch.randn(2, 3, 96, 128)))
    assert said.teacher.gflop == pytest.approx(cost)


@pytest.mark.parametrize(
    "settings",
    [
        FeatureSelection(penultimate=-4, final=-2),
        FeatureSelection(penultimate=1, norm="none"),
    ],
    ids=["amid", "without the norm"],
)
def test_the_teachers_taps_are_those_asked_for(settings: FeatureSelection) -> None:
    said, real = small(teacher_features=settings), SMALL.frozen(features=settings)
    assert said.tail == real.tail_modules
    assert said.teacher.plan == real.extractor.selection
    assert said.teacher.shapes == real.shapes
    assert said.difference <= 1e-4


def test_the_students_taps_are_those_asked_for() -> None:
    settings = FeatureSelection(penultimate=-3, norm="none")
    said = small(student_features=settings)
    real = FeatureExtractor(SMALL.learner(), features=settings)
    assert said.student.plan == real.selection
    assert said.student.shapes == real.shapes
    assert said.student.shapes != FeatureExtractor(SMALL.learner()).shapes


def test_the_prefix_tokens_can_be_left_out() -> None:
    own, none = small(), small(teacher_prefix="none")
    assert (own.prefix_tokens, none.prefix_tokens) == (1, 0)
    assert none.rest_gflop < own.rest_gflop
    assert "--teacher_prefix none" in none.command


def test_one_token_grids_are_dropped_where_that_is_asked_for() -> None:
    with warned("the term final_alternative is dropped"):
        said = small(image_size=32, one_token="drop")
    assert said.student.shapes.final[1:] == (1, 1)
    assert said.weights == LossWeights(final_alternative=0.0)
    assert "--one_token drop" in said.command


def test_weights_decide_which_projectors_there_are() -> None:
    view = LossWeights(tpp_alternative=0.0, final_alternative=0.0)
    half, whole = small(weights=view), small()
    assert half.weights == view
    # Without queries of its own the second view's projectors are as many.
    assert half.projector_parameters == whole.projector_parameters / 2
    assert half.rest_gflop == pytest.approx(whole.rest_gflop / 2)


def test_heads_are_those_asked_for_and_the_papers_by_default() -> None:
    assert small(heads=(4, 8)).heads == (4, 8)
    assert small().heads == (1, 1)
    assert plain("Swin").heads == paper.TEACHER_HEADS[paper.SWIN_S]
    with refused("5 heads", "64", "take one of 1, 2, 4"):
        small(heads=(5, 8))


def test_of_a_deep_teacher_a_short_copy_is_verified() -> None:
    said = plain("ViT")
    modules = len(list(build_without_weights("vit_tiny_patch16_224", **VIT).modules()))
    copy = f"a copy of {(said.verified_on.split()[3])} of its {modules} modules"
    assert said.verified_on.startswith(copy)
    assert int(said.verified_on.split()[3]) < modules / 2
    assert said.tail == ["blocks.10", "blocks.11", "norm"]  # the whole model's names


class _CountsItsBlocks(VisionTransformer):
    def forward_intermediates(self, *arguments: Any, **options: Any) -> Any:
        assert len(self.blocks) == 6
        return super().forward_intermediates(*arguments, **options)


@register_model
def scalekd_test_counts_its_blocks(pretrained: bool = False, **arguments: Any) -> nn.Module:
    return _CountsItsBlocks(img_size=64, patch_size=16, embed_dim=32, depth=6, num_heads=2)


def test_a_teacher_of_which_no_copy_can_be_made_is_verified_itself() -> None:
    said = check_pair("scalekd_test_counts_its_blocks", "test_resnet")
    assert said.verified_on == "the model itself, with random weights, at 64x64 pixels"
    assert said.tail == ["blocks.5", "norm"]
    assert said.difference <= 1e-4


def test_a_folder_needs_no_weights_to_be_checked(tmp_path: Path) -> None:
    config = {
        "architecture": "test_vit",
        "num_classes": 5,
        "pretrained_cfg": {"input_size": [3, 160, 160], "num_classes": 5, "classifier": "head"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    said = check_pair(f"local-dir:{tmp_path}", "test_resnet", student_args={"num_classes": 5})
    assert said.teacher.name == f"local-dir:{tmp_path}"
    assert said.teacher.shapes.classes == 5
    assert said.tail == ["blocks.5", "norm"]
    assert said.weights.logits == 0.5
    assert f"--teacher local-dir:{tmp_path}" in said.command


def test_the_packaged_digits_pair_fits() -> None:
    said = check_pair(
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
    assert said.notes == []
    assert said.teacher.parameters == pytest.approx(0.59e6, rel=0.01)
    assert all(asdict(said.weights).values())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"student_args": {"in_chans": 1}}, ["student takes images of 1 channel", "in_chans=3"]),
        ({"image_size": 0}, ["test_resnet", "0x0"]),
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
def test_what_does_not_fit_is_refused_by_name(options: dict[str, Any], said: list[str]) -> None:
    with refused(*said):
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
def asked() -> list[str]:
    """What a check asks of a network that is not there."""
    seen: list[str] = []

    def absent(*arguments: Any, **_: Any) -> None:
        seen.append(str(arguments))
        raise OSError("no network")

    with pytest.MonkeyPatch.context() as patch:
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            patch.delenv(name, raising=False)
            patch.delenv(name.upper(), raising=False)
        patch.setattr(socket.socket, "connect", lambda _, *a: absent("connect", *a))
        patch.setattr(socket, "getaddrinfo", lambda *a, **_: absent("look up", *a))
        assert check_pair("test_vit.r160_in1k", "test_resnet").verified
    return seen


def test_without_a_network_a_pair_is_checked_and_nobody_is_connected_to(asked: list[str]) -> None:
    assert [call for call in asked if "connect" in call] == []


def test_nothing_is_asked_of_the_network(asked: list[str]) -> None:
    assert asked == []


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
def test_the_papers_pairs_are_answered(pair: paper.PublishedPair) -> None:
    said = check_pair(
        pair.teacher,
        pair.student,
        teacher_args=pair.teacher_args,
        student_args=pair.student_args,
    )
    assert said.verified
    assert said.difference <= 1e-4
    assert said.student.parameters / 1e6 == pytest.approx(pair.parameters, rel=0.02)
    # Of which the forward pass is a third, and a multiply-add counts 2.
    assert said.student.gflop / 6 == pytest.approx(pair.gmac, rel=0.1)
    assert said.heads == PAPERS_HEADS.get((pair.teacher, pair.student), said.heads)
    last_blocks = ["blocks.22", "blocks.23"]
    assert said.tail == (last_blocks if pair.teacher == paper.EVA_L else ["layers.3", "norm"])
    assert [note for note in said.notes if "left out" in note.text] == []


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
def test_other_teachers_are_answered(teacher: str) -> None:
    said = check_pair(teacher, "resnet50")
    assert said.verified
    assert said.difference <= 1e-4
    assert said.tail
    assert said.verified_on.startswith("a copy of ")
    assert said.step_gflop > said.teacher.gflop > 0
