"""Modules that offer their features: as teachers and students, and what is refused."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.custom_networks import INPUT, TARGETS, CustomNetwork, check_pair, custom_network
from helpers.refusals import refused
from helpers.small_models import CLASSES, SIZE, images, lively, resnet, swin, tokens
from helpers.teachers import check_tail
from torch import Tensor, nn
from torch.nn import functional as F

from scalekd import Features, FeatureShapes, FrozenTeacher, InputConfig, LossWeights, ScaleKD
from scalekd import FeatureSelection as Settings
from scalekd.networks.feature_extractor import FeatureExtractor, build_feature_extractor
from scalekd.networks.protocol import ProtocolFeatureExtractor


class Attends(CustomNetwork):
    """Its last stage works on tokens, with a class token in front, and is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, 16))
        self.last = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.5)
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, CLASSES)

    def stages(self, x: Tensor) -> tuple[Tensor, Tensor]:
        penultimate = self.first(x)
        sequence = torch.cat([self.token.expand(len(x), -1, -1), tokens(penultimate)], 1)
        sequence = self.norm(self.last(self.last(sequence)))
        return penultimate, sequence[:, 1:].transpose(1, 2).unflatten(2, (8, 8))


class FeaturesCallForward(CustomNetwork):
    """The other way round: `forward` runs the network, `features` asks it for more."""

    def features(self, images: Tensor) -> Features:
        kept: list[Tensor] = []
        hooks = [
            stage.register_forward_hook(lambda m, i, output: kept.append(output))
            for stage in (self.first, self.last)
        ]
        logits = self(images)
        for hook in hooks:
            hook.remove()
        return Features(kept[0], kept[1], logits)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.stages(images)[1].mean((2, 3)))
        return logits


@pytest.mark.parametrize("kind", [CustomNetwork, Attends, FeaturesCallForward])
def test_a_custom_module_teaches_and_learns(kind: type[CustomNetwork]) -> None:
    distiller = check_pair(lively(kind()), lively(kind()))
    assert distiller.teacher.input == INPUT


def test_a_custom_module_teaches_and_learns_from_timm_models() -> None:
    check_pair(swin(), custom_network())
    torch.manual_seed(0)
    distiller = ScaleKD(teacher=custom_network(), student=resnet(), size=SIZE)
    distiller(images(4), TARGETS).loss.backward()
    check_tail(distiller.teacher)


def test_shapes_and_features_of_a_custom_module_are_its_own() -> None:
    model, x = custom_network(), images(3)
    seen = build_feature_extractor(model)
    assert isinstance(seen, ProtocolFeatureExtractor)
    assert seen.shapes == FeatureShapes((16, 8, 8), (24, 4, 4), CLASSES)
    ours, theirs = seen(x), model.features(x)
    assert torch.equal(ours.penultimate, theirs.penultimate)
    assert torch.equal(ours.final, theirs.final)
    assert torch.equal(ours.logits, theirs.logits)
    assert ours.final.requires_grad


def test_a_custom_module_works_at_another_size_than_its_own() -> None:
    seen = build_feature_extractor(custom_network(), (32, 96))
    assert seen.input == replace(INPUT, size=(32, 96))
    assert seen.shapes.penultimate == (16, 4, 12)
    assert FrozenTeacher(custom_network(), (96, 64)).shapes.final == (24, 6, 4)


def test_a_size_may_be_a_list_and_must_be_a_pair() -> None:
    learner, teacher = custom_network(), custom_network()
    for network in (learner, teacher):
        network.input = replace(INPUT, size=[64, 64])  # type: ignore[assignment]
    distiller = ScaleKD(teacher, learner, size=[64, 64])  # type: ignore[arg-type]
    distiller(images(4), TARGETS).loss.backward()
    assert distiller.teacher.input.size == (64, 64)
    with refused("size of the images is 64", "(height, width)"):
        ScaleKD(custom_network(), custom_network(), size=64)  # type: ignore[arg-type]


def test_a_custom_module_without_classifier_gives_only_features() -> None:
    for classes in ((0, CLASSES), (CLASSES, 0)):
        teacher, student = (custom_network(classes=number) for number in classes)
        check_pair(teacher, student, TARGETS if classes[1] else None)
    assert build_feature_extractor(custom_network(classes=0)).shapes.classes is None


def test_the_tail_of_modules_called_twice_runs_both_calls() -> None:
    teacher = FrozenTeacher(lively(Attends()))
    assert teacher.tail_modules == ["last", "last", "norm"]


def test_a_custom_teacher_in_double_precision_stays_in_it() -> None:
    teacher = FrozenTeacher(custom_network().double())
    check_tail(teacher)
    assert teacher(images()).final.dtype == torch.float64


def test_probing_a_module_leaves_it_and_the_random_generators_unchanged() -> None:
    model = custom_network().train()
    model.first[1].eval()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    modes = [m.training for m in model.modules()]
    ProtocolFeatureExtractor(model)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


class Returns(CustomNetwork):
    """What `features` returns is up to the case."""

    def __init__(self, changed: Callable[[Features], Any]) -> None:
        super().__init__()
        self.changed = changed

    def features(self, images: Tensor) -> Any:
        return self.changed(super().features(images))


WRONG: dict[str, tuple[Callable[[Features], Any], list[str]]] = {
    "a tuple": (lambda f: (f.penultimate, f.final, f.logits), ["tuple", "scalekd.Features"]),
    "nothing": (lambda f: None, ["NoneType", "scalekd.Features"]),
    "tokens": (
        lambda f: replace(f, penultimate=tokens(f.penultimate)),
        ["penultimate", "(2, 64, 16)", "(N, channels, height, width)"],
    ),
    "a pooled final feature": (
        lambda f: replace(f, final=f.final.mean((2, 3))),
        ["final", "(2, 24)", "(N, channels, height, width)"],
    ),
    "no final feature": (lambda f: replace(f, final=None), ["final", "NoneType", "be a map"]),
    "a list of maps": (lambda f: replace(f, final=[f.final]), ["final", "list", "be a map"]),
    "half the images": (
        lambda f: replace(f, penultimate=f.penultimate[:1]),
        ["penultimate", "(1, 16, 8, 8)", "2 images"],
    ),
    "images in windows": (
        lambda f: replace(f, final=f.final.reshape(8, 24, 2, 2)),
        ["final", "(8, 24, 2, 2)", "2 images"],
    ),
    "logits as a map": (
        lambda f: replace(f, logits=f.logits[..., None, None]),
        ["logits", "(2, 5, 1, 1)", "(N, classes), or None"],
    ),
    "logits of one image": (
        lambda f: replace(f, logits=f.logits[:1]),
        ["logits", "(1, 5)", "2 images"],
    ),
    "two logits": (lambda f: replace(f, logits=(f.logits,) * 2), ["logits", "tuple"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_features_are_refused_in_one_line(case: str) -> None:
    changed, said = WRONG[case]
    with refused("Returns", *said):
        ScaleKD(teacher=custom_network(), student=Returns(changed))
    with refused("Returns", *said):
        FrozenTeacher(Returns(changed))


INPUTS: dict[str, tuple[Any, list[str]]] = {
    "a tuple": ((3, 64, 64), ["input is tuple", "scalekd.InputConfig"]),
    "none": (None, ["input is missing", "scalekd.InputConfig"]),
    "one mean for three channels": (replace(INPUT, mean=(0.5,)), ["mean=(0.5,)", "each channel"]),
    "a number for a mean": (replace(INPUT, mean=0.5), ["mean=0.5", "each channel"]),
    "a std of 0": (replace(INPUT, std=(0.2, 0.0, 0.2)), ["0.0", "std above 0"]),
    "one side": (replace(INPUT, size=64), ["size=64", "(height, width)"]),
    "no side": (replace(INPUT, size=(64, 0)), ["size=(64, 0)", "(height, width)"]),
    "channels in front": (replace(INPUT, size=(3, 64, 64)), ["(3, 64, 64)", "(height, width)"]),
}


@pytest.mark.parametrize("case", INPUTS)
def test_a_wrong_input_attribute_is_refused_in_one_line(case: str) -> None:
    given, said = INPUTS[case]
    model = custom_network()
    model.input = given
    with refused("CustomNetwork", *said):
        build_feature_extractor(model)


def test_a_module_that_fails_is_refused_with_its_own_reason() -> None:
    with refused("CustomNetwork.features", "3 channels and 4x4 pixels", "Kernel size"):
        build_feature_extractor(custom_network(), (4, 4))
    with refused(
        "CustomNetwork.features", "1 channels and 64x64 pixels", "channels", "call of your own"
    ):
        model = custom_network()
        model.input = InputConfig(1, SIZE, (0.5,), (0.2,))
        build_feature_extractor(model)


def test_a_submodule_named_features_does_not_implement_the_protocol() -> None:
    class Torchvisions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(nn.Conv2d(3, 8, 8, 8))

    with refused("Torchvisions", "forward_intermediates", "docs/own-modules.md"):
        build_feature_extractor(Torchvisions())


def test_a_timm_model_with_an_input_attribute_gets_the_timm_extractor() -> None:
    model = resnet()
    model.input = (3, 64, 64)
    assert isinstance(build_feature_extractor(model, SIZE), FeatureExtractor)


def test_a_feature_selection_for_a_custom_module_is_refused() -> None:
    with refused("CustomNetwork", "penultimate=1", "drop the selection"):
        ScaleKD(teacher=swin(), student=custom_network(), student_features=Settings(penultimate=1))


def test_a_teacher_is_not_its_own_student() -> None:
    model = custom_network()
    with refused("shares tensors with its teacher", "copy.deepcopy"):
        ScaleKD(teacher=model, student=model)


class NotANumber(CustomNetwork):
    def stages(self, x: Tensor) -> tuple[Tensor, Tensor]:
        penultimate, final = super().stages(x)
        return penultimate, final / 0 - final / 0


class ActsOutsideOfModules(CustomNetwork):
    def stages(self, x: Tensor) -> tuple[Tensor, Tensor]:
        penultimate = F.gelu(self.first(x))
        return penultimate, self.last(penultimate)


class EndsOutsideOfModules(CustomNetwork):
    def stages(self, x: Tensor) -> tuple[Tensor, Tensor]:
        penultimate, final = super().stages(x)
        return penultimate, 2 * final


class GoesAroundItsPenultimate(CustomNetwork):
    def stages(self, x: Tensor) -> tuple[Tensor, Tensor]:
        earlier = self.first(x)
        return self.first(x + 1), self.last(earlier)


REFUSED: dict[type[CustomNetwork], list[str]] = {
    NotANumber: ["nan or inf", "weights"],
    ActsOutsideOfModules: ["penultimate feature (16, 8, 8) is not the output of a module"],
    EndsOutsideOfModules: ["final feature is not the output of a module"],
    GoesAroundItsPenultimate: ["cannot be replayed"],
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_teacher_that_cannot_be_replayed_is_refused(case: type[CustomNetwork]) -> None:
    with refused(case.__name__, *REFUSED[case]):
        FrozenTeacher(lively(case()))


@pytest.mark.parametrize("case", [ActsOutsideOfModules, EndsOutsideOfModules])
def test_a_custom_student_needs_no_modules_between_its_features(case: type[CustomNetwork]) -> None:
    check_pair(custom_network(), lively(case()))


def test_loss_weights_apply_to_custom_modules() -> None:
    weights = LossWeights(tpp_original=0.0, tpp_alternative=0.0)
    distiller = ScaleKD(teacher=custom_network(), student=custom_network(), weights=weights)
    terms = distiller(images(4), TARGETS).terms
    assert set(terms) == {"task", "final_original", "final_alternative", "logits"}
