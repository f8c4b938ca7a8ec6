"""Features through hooks: models of other libraries, the layouts found, the refusals."""

import copy
import operator
import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from helpers.custom_networks import INPUT, TARGETS, check_pair, custom_network
from helpers.refusals import refused
from helpers.small_models import CLASSES, SIZE, images, lively, swin
from helpers.teachers import check_tail
from torch import Tensor, nn
from torchvision.models import SwinTransformer, VisionTransformer, resnet18
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
from transformers.modeling_outputs import BaseModelOutput

from scalekd import FrozenTeacher, HookedFeatures, InputConfig, ScaleKD
from scalekd.networks.feature_extractor import build_feature_extractor
from scalekd.networks.protocol import ProtocolFeatureExtractor

PLAIN = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 64}
Reading = Callable[[Any, Tensor], tuple[Tensor, Tensor]]


def vit(**arguments: Any) -> nn.Module:
    given = {**PLAIN, "intermediate_size": 64, "patch_size": 16, "num_labels": CLASSES}
    return ViTForImageClassification(ViTConfig(**{**given, **arguments}))


def hf_swin(**arguments: Any) -> nn.Module:
    """64x64 -> 12x16x16 -> 24x8x8 -> 48x4x4 -> 96x2x2; the last but one in shifted windows."""
    given = {"image_size": 64, "embed_dim": 12, "depths": [1, 1, 2, 2], "num_heads": [1, 1, 2, 2]}
    sizes = {"window_size": 2, "num_labels": CLASSES, **arguments}
    return SwinForImageClassification(SwinConfig(**given, **sizes))


def dinov2(**arguments: Any) -> nn.Module:
    return Dinov2Model(Dinov2Config(**PLAIN, patch_size=16, mlp_ratio=2, **arguments))


def dinov2_with_registers() -> nn.Module:
    config = Dinov2WithRegistersConfig(**PLAIN, patch_size=16, mlp_ratio=2, num_register_tokens=4)
    return Dinov2WithRegistersModel(config)


def torchvisions_vit() -> nn.Module:
    return VisionTransformer(64, 16, 4, 2, 32, 64, num_classes=CLASSES)


def torchvisions_swin() -> nn.Module:
    return SwinTransformer([4, 4], 24, [2, 2], [1, 2], [4, 4], num_classes=CLASSES)


def torchvisions_resnet() -> nn.Module:
    return resnet18(num_classes=CLASSES)


def of_hidden_states(model: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    output = getattr(model, "vit", model)(x, output_hidden_states=True)
    return output.hidden_states[3], output.last_hidden_state


def of_swins_stages(model: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    asked = {"output_hidden_states": True, "output_hidden_states_before_downsampling": True}
    output = model.swin(x, **asked)
    return output.reshaped_hidden_states[3].flatten(2).transpose(1, 2), output.last_hidden_state


def of_torchvisions_vit(model: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    patches = model._process_input(x)
    y = torch.cat([model.class_token.expand(len(x), -1, -1), patches], 1)
    y = model.encoder.layers[:3](y + model.encoder.pos_embedding)
    return y, model.encoder.ln(model.encoder.layers[3:](y))


def of_torchvisions_swin(model: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y = model.features[:2](x)
    return y.flatten(1, 2), model.norm(model.features[2:](y)).flatten(1, 2)


def of_torchvisions_resnet(model: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    stages = list(model.children())
    y = nn.Sequential(*stages[:7])(x)
    return y.flatten(2).transpose(1, 2), stages[7](y).flatten(2).transpose(1, 2)


@dataclass(frozen=True)
class Case:
    """Names of the two modules, the maps' shapes, the tail, and the features read otherwise."""

    make: Callable[[], nn.Module]
    names: tuple[str, str]
    shapes: tuple[tuple[int, int, int], tuple[int, int, int]]
    tail: list[str]
    read: Reading
    headed: bool = True


EQUAL = ((32, 4, 4), (32, 4, 4))
CASES = {
    "transformers' ViT": Case(
        vit,
        ("vit.layers.2", "vit.layernorm"),
        EQUAL,
        ["vit.layers.3", "vit.layernorm"],
        of_hidden_states,
    ),
    "transformers' Swin": Case(
        hf_swin,
        ("swin.encoder.layers.2.blocks.1", "swin.layernorm"),
        ((48, 4, 4), (96, 2, 2)),
        ["swin.encoder.layers.2.downsample", "swin.encoder.layers.3", "swin.layernorm"],
        of_swins_stages,
    ),
    "DINOv2": Case(
        dinov2,
        ("encoder.layer.2", "layernorm"),
        EQUAL,
        ["encoder.layer.3", "layernorm"],
        of_hidden_states,
        headed=False,
    ),
    "DINOv2 with registers": Case(
        dinov2_with_registers,
        ("encoder.layer.2", "layernorm"),
        EQUAL,
        ["encoder.layer.3", "layernorm"],
        of_hidden_states,
        headed=False,
    ),
    "torchvision's ViT": Case(
        torchvisions_vit,
        ("encoder.layers.encoder_layer_2", "encoder.ln"),
        EQUAL,
        ["encoder.layers.encoder_layer_3", "encoder.ln"],
        of_torchvisions_vit,
    ),
    "torchvision's Swin": Case(
        torchvisions_swin,
        ("features.1", "norm"),
        ((24, 16, 16), (48, 8, 8)),
        ["features.2", "features.3", "norm"],
        of_torchvisions_swin,
    ),
    "torchvision's ResNet": Case(
        torchvisions_resnet,
        ("layer3", "layer4"),
        ((256, 4, 4), (512, 2, 2)),
        ["layer4"],
        of_torchvisions_resnet,
    ),
}


def hooked(case: str | Case) -> HookedFeatures:
    found = CASES[case] if isinstance(case, str) else case
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return HookedFeatures(lively(found.make()), *found.names, INPUT)


@pytest.mark.parametrize("case", CASES)
def test_a_hooked_model_teaches_and_learns(case: str) -> None:
    targets = TARGETS if CASES[case].headed else None
    distiller = check_pair(hooked(case), hooked(case), targets, idle="mask_token")
    teacher = distiller.teacher
    assert (teacher.shapes.penultimate, teacher.shapes.final) == CASES[case].shapes
    assert teacher.shapes.classes == (CLASSES if CASES[case].headed else None)
    assert teacher.tail_modules == [f"model.{name}" for name in CASES[case].tail]


@pytest.mark.parametrize("case", CASES)
def test_hooked_features_are_the_outputs_of_the_models_modules(case: str) -> None:
    model, x = hooked(case), images(3)
    with torch.no_grad():
        seen = model.features(x)
        read = CASES[case].read(model.model, x)
    for feature, shape, tokens in zip(
        (seen.penultimate, seen.final), CASES[case].shapes, read, strict=True
    ):
        cells = shape[1] * shape[2]
        patches = tokens[:, tokens.shape[1] - cells :].unflatten(1, shape[1:])
        torch.testing.assert_close(feature, patches.permute(0, 3, 1, 2))
        assert feature.std() > 0.1


@pytest.mark.parametrize("case", CASES)
def test_calling_a_hooked_model_returns_the_models_logits(case: str) -> None:
    model, x = hooked(case), images(3)
    with torch.no_grad():
        output, given, seen = model.model(x), model(x), model.features(x)
    if not CASES[case].headed:
        assert torch.equal(given.last_hidden_state, output.last_hidden_state)
        assert seen.logits is None
        return
    logits = output if isinstance(output, Tensor) else output.logits
    assert torch.equal(given, logits)
    assert torch.equal(seen.logits, logits)


def test_attention_weights_in_an_output_are_not_taken_as_the_feature() -> None:
    case = replace(CASES["transformers' Swin"], make=lambda: hf_swin(attn_implementation="eager"))
    check_tail(FrozenTeacher(hooked(case)))


def test_a_hooked_teacher_works_on_images_wider_than_high() -> None:
    size = (64, 96)
    model = lively(vit(image_size=size))
    names = CASES["transformers' ViT"].names
    teacher = FrozenTeacher(HookedFeatures(model, *names, replace(INPUT, size=size)))
    assert teacher.shapes.final == (32, 4, 6)
    check_tail(teacher)


def test_hooked_models_pair_with_any_family() -> None:
    check_pair(hooked("DINOv2 with registers"), hooked("torchvision's ResNet"))
    check_pair(swin(), hooked("transformers' Swin"))
    check_pair(hooked("torchvision's Swin"), custom_network())


def test_training_a_hooked_student_trains_the_wrapped_model() -> None:
    distiller = ScaleKD(teacher=custom_network(), student=hooked("torchvision's ResNet"))
    optimizer = torch.optim.SGD(distiller.parameters(), 1e-4)
    distiller(images(4), TARGETS).loss.backward()
    optimizer.step()
    plain = torchvisions_resnet()
    plain.load_state_dict(distiller.student.model.state_dict())
    x = images()
    logits = plain.eval()(x)
    assert logits.isfinite().all()
    assert torch.equal(logits, distiller.student.eval()(x))


class Gives(nn.Module):
    """Its modules return what the case says."""

    def __init__(self, output: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.output = output
        self.first, self.last = nn.Identity(), nn.Identity()
        self.listed = nn.ModuleList([nn.Identity()])

    def forward(self, x: Tensor) -> Any:
        self.first(x)
        return self.last(self.output(x))


def gives(output: Callable[[Tensor], Any], **arguments: Any) -> HookedFeatures:
    return HookedFeatures(Gives(output), "first", "last", INPUT, None, **arguments)


def drawn(*shape: int) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.randn(len(x), *shape, generator=torch.Generator().manual_seed(0))


MAPS = [
    ((24, 16, 16), (64, 64), (24, 16, 16)),
    ((16, 16, 24), (64, 64), (24, 16, 16)),
    ((16, 15, 15), (64, 64), (16, 15, 15)),
    ((1, 1, 24), (64, 64), (24, 1, 1)),
    ((24, 4, 6), (64, 96), (24, 4, 6)),
    ((4, 6, 24), (64, 96), (24, 4, 6)),
    ((24, 7, 5), (100, 75), (24, 7, 5)),
    ((7, 5, 24), (100, 75), (24, 7, 5)),
    ((24, 6, 4), (100, 75), (24, 6, 4)),
]

TOKENS = [
    (16, (64, 64), (4, 4)),
    (17, (64, 64), (4, 4)),
    (21, (64, 64), (4, 4)),
    (5, (32, 32), (2, 2)),
    (9, (96, 96), (3, 3)),
    (25, (64, 96), (4, 6)),
    (17, (128, 32), (8, 2)),
    (197, (224, 224), (14, 14)),
    (261, (224, 224), (16, 16)),
    (1374, (518, 518), (37, 37)),
    (217, (200, 300), (12, 18)),
]


@pytest.mark.parametrize(("shape", "size", "expected"), MAPS)
def test_the_layout_of_a_map_follows_from_the_images_sides(
    shape: tuple[int, ...], size: tuple[int, int], expected: tuple[int, ...]
) -> None:
    x = images(2, size)
    final, given = gives(drawn(*shape)).features(x).final, drawn(*shape)(x)
    assert torch.equal(final, given if shape == expected else given.permute(0, 3, 1, 2))
    assert tuple(final.shape[1:]) == expected


@pytest.mark.parametrize(("count", "size", "grid"), TOKENS)
def test_the_grid_follows_from_the_number_of_tokens(
    count: int, size: tuple[int, int], grid: tuple[int, int]
) -> None:
    x = images(2, size)
    final, given = gives(drawn(count, 8)).features(x).final, drawn(count, 8)(x)
    assert tuple(final.shape) == (2, 8, *grid)
    patches = given[:, count - grid[0] * grid[1] :]
    assert torch.equal(final.flatten(2).transpose(1, 2), patches)


AMBIGUOUS = [
    ((8, 8, 8), (64, 64), ["(8, 8, 8)", "both", "64x64", "channels_last=True or False"]),
    ((8, 16, 32), (64, 128), ["(8, 16, 32)", "both", "channels_last=True or False"]),
    ((5, 9, 24), (64, 64), ["(5, 9, 24)", "neither", "channels_last=True or False"]),
    ((32, 8), (64, 64), ["32 tokens", "(5, 5) or (4, 4)", "grid=(height, width)"]),
    ((9, 8), (80, 80), ["9 tokens", "(3, 3) or (2, 2)", "grid=(height, width)"]),
    ((229, 8), (200, 304), ["229 tokens", "200x304", "cannot be found", "grid=(height, width)"]),
    ((3, 8), (64, 96), ["3 tokens", "cannot be found", "grid=(height, width)"]),
]


@pytest.mark.parametrize(("shape", "size", "said"), AMBIGUOUS)
def test_an_ambiguous_shape_is_refused(
    shape: tuple[int, ...], size: tuple[int, int], said: list[str]
) -> None:
    with refused("module 'last' of Gives", *said):
        gives(drawn(*shape)).features(images(2, size))


def test_the_user_may_set_the_layout() -> None:
    x, cube = images(), drawn(8, 8, 8)
    for last in (True, False):
        model = HookedFeatures(Gives(cube), "first", "last", INPUT, None, channels_last=last)
        expected = cube(x).permute(0, 3, 1, 2) if last else cube(x)
        assert torch.equal(model.features(x).final, expected)


class ToTokens(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)


def test_the_user_may_set_the_grids() -> None:
    x, wide = images(), images(2, (200, 304))
    assert gives(drawn(229, 8), grid=(12, 19)).features(wide).final.shape[2:] == (12, 19)
    assert gives(drawn(32, 8), grid=(4, 4)).features(x).final.shape[2:] == (4, 4)
    model = Gives(drawn(32, 8))
    model.first = ToTokens()
    each = HookedFeatures(model, "first", "last", INPUT, None, grid=((64, 64), (5, 5)))
    seen = each.features(x)
    assert torch.equal(seen.penultimate, x)
    assert seen.final.shape[2:] == (5, 5)
    with refused("32 tokens", "6x6"):
        gives(drawn(32, 8), grid=(6, 6)).features(x)


@dataclass
class Unregistered:
    """An output that torch's pytree takes for a leaf."""

    loss: Tensor | None
    feature: Tensor


@pytest.mark.parametrize(
    "wrap",
    [
        lambda y: (y, y[:, :, :2, :2]),
        lambda y: [None, {"loss": y.mean(), "map": y}],
        lambda y: (y[0], y),
        lambda y: BaseModelOutput(last_hidden_state=y, attentions=(y[..., :2, :2],)),
        lambda y: Unregistered(None, y),
        lambda y: (Unregistered(y.mean(), y), "text"),
    ],
)
def test_the_first_tensor_that_can_be_a_map_is_taken(wrap: Callable[[Tensor], Any]) -> None:
    x, made = images(), drawn(24, 16, 16)
    assert torch.equal(gives(lambda x: wrap(made(x))).features(x).final, made(x))


NO_MAP: list[tuple[Callable[[Tensor], Any], str]] = [
    (lambda x: x.mean((2, 3)), "(2, 3) for 2 images"),
    (lambda x: x[:1], "(1, 3, 64, 64) for 2 images"),
    (lambda x: (x.mean(), "text"), "returns () for 2 images"),
    (lambda x: None, "returns no tensor"),
]


@pytest.mark.parametrize(("output", "said"), NO_MAP)
def test_a_module_that_returns_no_map_is_refused(
    output: Callable[[Tensor], Any], said: str
) -> None:
    with refused("module 'last' of Gives", said, "(N, C, H, W)"):
        gives(output).features(images())


def test_an_unknown_module_name_is_refused_with_the_nearest() -> None:
    with refused("ResNet", "'layer5'", "did you mean", "'layer4'"):
        HookedFeatures(resnet18(), "layer3", "layer5", INPUT)
    with refused("ViT", "'vit.encoder.layer.2'", "did you mean", "'vit.layers.2'"):
        HookedFeatures(vit(), "vit.encoder.layer.2", "vit.layernorm", INPUT)
    with refused("Identity", "'a'", "none at all"):
        HookedFeatures(nn.Identity(), "a", "b", INPUT)


def test_one_module_for_both_features_is_refused() -> None:
    with refused("'layer4'", "earlier"):
        HookedFeatures(resnet18(), "layer4", "layer4", INPUT)


@pytest.mark.parametrize("name", ["listed", "listed.0"])
def test_a_module_that_is_not_called_is_refused(name: str) -> None:
    model = HookedFeatures(Gives(drawn(24, 16, 16)), "first", name, INPUT)
    with refused(repr(name), "Gives", "not called"):
        model.features(images())


def test_the_model_itself_may_be_the_final_module() -> None:
    x, made = images(), drawn(24, 16, 16)
    model = HookedFeatures(Gives(made), "first", "", INPUT, None)
    assert torch.equal(model.features(x).final, made(x))


class Recurs(nn.Module):
    """One block, called three times."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 8, 8)
        self.block = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.GELU())
        self.last = nn.Conv2d(16, 24, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for _ in range(3):
            x = self.block(x)
        return self.last(x).mean((2, 3))


def test_the_last_output_counts_for_a_module_called_several_times() -> None:
    model = lively(Recurs())
    for names, tail in ((("block", "last"), ["last"]), (("first", "block"), ["block"] * 3)):
        teacher = FrozenTeacher(HookedFeatures(model, *names, INPUT))
        check_tail(teacher)
        assert teacher.tail_modules == [f"model.{name}" for name in tail]


@pytest.mark.parametrize(
    ("logits", "said"),
    [
        (lambda y: y, ["(2, 24, 16, 16)"]),
        (lambda y: y.mean((2, 3))[:1], ["(1, 24)"]),
        (lambda y: [y.mean((2, 3))], ["list"]),
    ],
)
def test_logits_of_another_shape_are_refused(
    logits: Callable[[Tensor], Any], said: list[str]
) -> None:
    model = HookedFeatures(Gives(drawn(24, 16, 16)), "first", "last", INPUT, logits)
    for run in (model, model.features):
        with refused("the logits of Gives", *said, "2 images", "logits="):
            run(images())


def test_a_custom_head_trains_with_the_model() -> None:
    head = nn.Sequential(nn.Flatten(), nn.Linear(32, CLASSES))

    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = head

        def forward(self, output: Any) -> Tensor:
            logits: Tensor = self.head(output.pooler_output)
            return logits

    student = HookedFeatures(lively(dinov2()), *CASES["DINOv2"].names, INPUT, Reads())
    check_pair(custom_network(), student, idle="mask_token")
    assert head[1].weight.grad.any()


def hooks_left(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_hooks_exist_only_during_a_call() -> None:
    model = hooked("torchvision's ResNet")
    assert hooks_left(model) == 0
    model.features(images())
    assert hooks_left(model) == 0


def test_hooks_are_removed_when_the_model_raises() -> None:
    def fails(x: Tensor) -> Tensor:
        raise RuntimeError("out of memory")

    model = gives(fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        model.features(images())
    assert hooks_left(model) == 0


def test_copies_of_a_hooked_model_are_independent_and_pickles_complete() -> None:
    model, x = hooked("torchvision's ResNet"), images()
    named = HookedFeatures(model.model, "layer3", "layer4", INPUT, operator.pos)
    for twin in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        pickle.loads(pickle.dumps(named)),
    ):
        assert torch.equal(twin.features(x).final, model.features(x).final)
        assert torch.equal(twin(x), model(x))
        assert twin.model is not model.model


def test_several_hooked_wrappers_share_a_model() -> None:
    model, x = lively(torchvisions_resnet()), images()
    late = HookedFeatures(model, "layer3", "layer4", INPUT)
    early = HookedFeatures(model, "layer2", "layer3", INPUT)
    teachers = [FrozenTeacher(late), FrozenTeacher(early)]
    seen = [teacher(x) for teacher in teachers]
    assert torch.equal(seen[0].penultimate, seen[1].final)
    for teacher in teachers:
        check_tail(teacher)


def test_gradients_reach_the_model_from_both_features_and_the_logits() -> None:
    model = hooked("torchvision's ResNet").train()
    seen = model.features(images())
    for value in (seen.penultimate, seen.final, seen.logits):
        gradient = torch.autograd.grad(value.sum(), model.model.conv1.weight, retain_graph=True)
        assert gradient[0].any()


def test_a_hooked_model_gets_the_protocol_feature_extractor() -> None:
    seen = build_feature_extractor(hooked("torchvision's ResNet"), (96, 64))
    assert isinstance(seen, ProtocolFeatureExtractor)
    assert seen.shapes.final == (512, 3, 2)


def test_a_teacher_sees_images_at_its_own_normalisation() -> None:
    vit = hooked("transformers' ViT")
    darker = InputConfig(3, SIZE, (0.1, 0.2, 0.3), (0.3, 0.2, 0.1))
    teacher = HookedFeatures(vit.model, *vit.names, darker)
    distiller = ScaleKD(teacher=teacher, student=custom_network())
    of_student, of_teacher = (
        [torch.tensor(c).view(1, 3, 1, 1) for c in (config.mean, config.std)]
        for config in (INPUT, darker)
    )
    x = images()
    with torch.no_grad():
        expected = teacher((x * of_student[1] + of_student[0] - of_teacher[0]) / of_teacher[1])
    torch.testing.assert_close(distiller.teacher_logits(x), expected, atol=1e-4, rtol=1e-4)
