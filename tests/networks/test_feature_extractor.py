import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from helpers.refusals import refused
from helpers.small_models import (
    CLASSES,
    FAMILIES,
    SIZE,
    images,
    mixer,
    resnet,
    swin,
    tokens,
    unless_refused,
    vit,
    vit_mean,
)
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from scalekd import LossWeights, ScaleKD
from scalekd.features import FeatureShapes
from scalekd.networks import FeatureExtractor, FeatureSelection
from scalekd.networks.feature_selection import Norm

STAGES = {
    "ResNet": ("layer3", "layer4"),
    "MobileNet-V1": ("blocks.3", "blocks.4"),
    "ConvNeXt": ("stages.2", "stages.3"),
    "Swin": ("layers.0", "norm"),
    "ViT": ("blocks.4", "norm"),
    "ViT, mean pooling": ("blocks.4", "blocks.5"),
    "DeiT": ("blocks.4", "norm"),
    "DeiT, mean pooling": ("blocks.4", "blocks.5"),
    "DeiT distilled": ("blocks.4", "norm"),
    "Mixer": ("blocks.4", "norm"),
}
"""The modules whose outputs are S3 and S4."""

FULL_SIZE: dict[str, tuple[dict[str, Any], tuple[int, ...], tuple[int, ...]]] = {
    "resnet50": ({}, (1024, 14, 14), (2048, 7, 7)),
    "mobilenetv1_100": ({}, (512, 14, 14), (1024, 7, 7)),
    "convnext_tiny": ({}, (384, 14, 14), (768, 7, 7)),
    "swin_tiny_patch4_window7_224": ({}, (384, 14, 14), (768, 7, 7)),
    "vit_small_patch16_224": (
        {"class_token": False, "global_pool": "avg"},
        (384, 14, 14),
        (384, 14, 14),
    ),
    "mixer_s16_224": ({}, (512, 14, 14), (512, 14, 14)),
    "mixer_b16_224": ({}, (768, 14, 14), (768, 14, 14)),
}
"""METHOD.md's table, with the arguments that timm needs."""

UNUSUAL = [
    "coat_tiny",
    "crossvit_tiny_240",
    "hiera_tiny_224",
    "nest_tiny",
    "pit_ti_224",
    "samvit_base_patch16_224",
    "twins_svt_small",
]


class OnlyMeta(TorchDispatchMode):
    """No operation on data: real tensors may only be looked at, or sent to the meta device."""

    allowed = ("aten._to_copy", "aten.detach", "aten.empty_strided")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        held = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
        large = any(a.device.type != "meta" and a.numel() > 10_000 for a in held)
        assert not large or str(func).startswith(self.allowed), func
        return func(*args, **kwargs)


def hand_taken(model: nn.Module, name: str, x: Tensor, grid: tuple[int, ...]) -> Tensor:
    """The output of the module `name` during `model(x)`, as a map."""
    seen: list[Tensor] = []
    hook = model.get_submodule(name).register_forward_hook(lambda m, i, o: seen.append(o))
    with torch.no_grad():
        model(x)
    hook.remove()
    (y,) = seen
    if y.dim() == 3:
        y = y[:, -grid[0] * grid[1] :].unflatten(1, grid)
    return y if tuple(y.shape[2:]) == grid else y.permute(0, 3, 1, 2)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_bit_identical_to_the_models_own(family: str) -> None:
    model, x = FAMILIES[family](), images()
    with torch.no_grad():
        own, logits = model(x), FeatureExtractor(model, SIZE)(x).logits
    assert own.std() > 0
    assert torch.equal(logits, own)


@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_maps_of_the_probed_shapes(family: str) -> None:
    extractor = FeatureExtractor(FAMILIES[family](), SIZE)
    features = extractor(images(3))
    assert extractor.shapes.classes == CLASSES
    assert tuple(features.penultimate.shape) == (3, *extractor.shapes.penultimate)
    assert tuple(features.final.shape) == (3, *extractor.shapes.final)
    assert tuple(features.logits.shape) == (3, CLASSES)


@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_the_stages_outputs(family: str) -> None:
    model, x = FAMILIES[family](), images()
    extractor = FeatureExtractor(model, SIZE)
    with torch.no_grad():
        features = extractor(x)
    for feature, shape, name in (
        (features.penultimate, extractor.shapes.penultimate, STAGES[family][0]),
        (features.final, extractor.shapes.final, STAGES[family][1]),
    ):
        assert torch.equal(feature, hand_taken(model, name, x, shape[1:])), name


@pytest.mark.parametrize("family", FAMILIES)
def test_probing_the_shapes_leaves_the_model_unchanged(family: str) -> None:
    model = FAMILIES[family]().train()
    parameters, state = dict(model.named_parameters()), copy.deepcopy(model.state_dict())
    random = torch.random.get_rng_state()
    FeatureExtractor(model, SIZE)
    assert model.training
    assert all(model.get_parameter(name) is p for name, p in parameters.items())
    assert all(p.requires_grad and p.grad is None for p in parameters.values())
    assert all(torch.equal(now, state[name]) for name, now in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), random)


@pytest.mark.parametrize("family", FAMILIES)
def test_probing_the_shapes_runs_no_arithmetic(family: str) -> None:
    model = FAMILIES[family]()
    with OnlyMeta():
        FeatureExtractor(model, SIZE)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_on_the_meta_device_has_the_same_shapes(family: str) -> None:
    real = FeatureExtractor(FAMILIES[family](), SIZE)
    extractor = FeatureExtractor(FAMILIES[family]().to("meta"), SIZE)
    assert extractor.shapes == real.shapes
    assert extractor.selection == real.selection
    assert extractor(images().to("meta")).final.shape[1:] == real.shapes.final


@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size_shapes_are_the_papers(name: str) -> None:
    arguments, penultimate, final = FULL_SIZE[name]
    with torch.device("meta"):
        model = timm.create_model(name, **arguments)
    extractor = FeatureExtractor(model)
    assert extractor.input.size == (224, 224)
    assert extractor.shapes == FeatureShapes(penultimate, final, 1000)


@pytest.mark.parametrize(
    ("name", "blocks"), [("mixer_s16_224", (5, 7)), ("mixer_b16_224", (9, 11))]
)
def test_features_of_the_papers_mixers_come_from_the_papers_blocks(
    name: str, blocks: tuple[int, int]
) -> None:
    student = timm.create_model(name, img_size=64, num_classes=CLASSES)
    features = LossWeights(tpp_alternative=0.0, final_alternative=0.0)
    distiller = ScaleKD(swin(), student, size=SIZE, weights=features)
    seen: dict[int, Tensor] = {}
    for block in blocks:
        student.blocks[block].register_forward_hook(
            lambda m, i, o, block=block: seen.__setitem__(block, o)
        )
    given: list[Tensor] = []
    for projectors in (distiller.criterion.penultimate, distiller.criterion.final):
        projectors["original"].register_forward_pre_hook(lambda m, i: given.append(i[0]))
    distiller(images(), torch.tensor([0, 1]))
    assert len(given) == 2
    for block, feature in zip(blocks, given, strict=True):
        assert torch.equal(tokens(feature), seen[block])


def test_features_of_vit_small_come_from_the_papers_blocks() -> None:
    with torch.device("meta"):
        model = timm.create_model("vit_small_patch16_224", class_token=False, global_pool="avg")
    selection = FeatureExtractor(model).selection
    assert (selection.penultimate, selection.final) == (8, 11)


@pytest.mark.parametrize(
    "build",
    [swin, vit, lambda: vit_mean(fc_norm=False), mixer],
    ids=["Swin", "ViT", "mean", "Mixer"],
)
def test_final_norm_decides_whether_the_final_feature_is_normed(
    build: Callable[[], nn.Module],
) -> None:
    model: Any = build()
    x = images()
    with torch.no_grad():
        normed = FeatureExtractor(model, SIZE, FeatureSelection(norm="final"))(x).final
        bare = FeatureExtractor(model, SIZE, FeatureSelection(norm="none"))(x).final
        expected = model.norm(bare.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    assert not torch.allclose(normed, bare, atol=0.1)
    torch.testing.assert_close(normed, expected)


@pytest.mark.parametrize("norm", ["final", "none"])
def test_final_norm_changes_no_logits(norm: Norm) -> None:
    model, x = vit(), images()
    assert torch.equal(
        FeatureExtractor(model, features=FeatureSelection(norm=norm))(x).logits, model(x)
    )


@pytest.mark.parametrize("index", [0, 2, 4])
def test_penultimate_feature_can_be_chosen(index: int) -> None:
    model, x = vit(), images()
    feature = FeatureExtractor(model, features=FeatureSelection(penultimate=index))(x).penultimate
    assert torch.equal(feature, hand_taken(model, f"blocks.{index}", x, (4, 4)))


@pytest.mark.parametrize("index", [-1, 5, 99])
def test_a_penultimate_feature_that_is_not_before_the_last_is_refused(index: int) -> None:
    with refused(str(index), "0 to 5", "vit_tiny_patch16_224"):
        FeatureExtractor(vit(), features=FeatureSelection(penultimate=index))


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_a_model_of_few_blocks_has_a_default_penultimate_feature(depth: int) -> None:
    selection = FeatureExtractor(vit(depth=depth)).selection
    assert 0 <= selection.penultimate < selection.final == depth - 1


@pytest.mark.parametrize("build", [swin, vit, mixer], ids=["Swin", "ViT", "Mixer"])
def test_a_size_that_the_model_does_not_take_is_refused(build: Callable[[], nn.Module]) -> None:
    with refused("60x52"):
        FeatureExtractor(build(), (60, 52))


@pytest.mark.parametrize(
    "module",
    [nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten()), nn.Linear(4, 4)],
    ids=["Sequential", "Linear"],
)
def test_a_module_without_timms_methods_is_refused(module: nn.Module) -> None:
    with refused(type(module).__name__):
        FeatureExtractor(module, SIZE)


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_families_give_features_or_are_refused(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    extractor = unless_refused(lambda: FeatureExtractor(model))
    assert extractor is None or extractor.shapes.classes == 1000


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_the_model_through_both_maps_and_the_logits(family: str) -> None:
    model = FAMILIES[family]()
    features = FeatureExtractor(model, SIZE)(images())
    reached = {}
    for name in ("penultimate", "final", "logits"):
        model.zero_grad()
        output = getattr(features, name)
        (output * torch.randn_like(output)).sum().backward(retain_graph=True)
        reached[name] = {n for n, p in model.named_parameters() if p.grad is not None}
    first = next(name for name, _ in model.named_parameters() if name.endswith("weight"))
    assert all(first in names for names in reached.values())
    assert reached["penultimate"] < reached["final"] < reached["logits"]
    assert reached["logits"] == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_without_classifier_gives_no_logits(family: str) -> None:
    extractor = FeatureExtractor(FAMILIES[family](num_classes=0), SIZE)
    features = extractor(images())
    assert extractor.shapes.classes is None
    assert features.logits is None
    assert tuple(features.final.shape[1:]) == extractor.shapes.final


def test_a_feature_extractor_is_no_module_and_holds_no_parameters() -> None:
    holder = nn.Module()
    holder.extractor = FeatureExtractor(resnet(), SIZE)
    assert not list(holder.parameters())
    assert not holder.state_dict()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_feature_extractor_works_in_training_mode_as_the_model_does(family: str) -> None:
    model = FAMILIES[family]().train()
    twin = copy.deepcopy(model)
    extractor, x = FeatureExtractor(model, SIZE), images(4)
    torch.manual_seed(0)  # stochastic depth
    logits = extractor(x).logits
    torch.manual_seed(0)
    assert torch.equal(logits, twin(x))
    assert all(torch.equal(a, twin.state_dict()[n]) for n, a in model.state_dict().items())


def test_a_student_that_drops_patches_in_training_is_refused() -> None:
    model = timm.create_model("test_vit", patch_drop_rate=0.25)
    with refused("patch_drop_rate 0.25", "drop patch_drop_rate"):
        FeatureExtractor(model)
    assert FeatureExtractor(model, is_teacher=True).shapes.classes == 1000


def test_images_that_are_not_square_give_maps_of_their_aspect_ratio() -> None:
    extractor = FeatureExtractor(resnet(), (64, 96))
    assert extractor.shapes.penultimate[1:] == (4, 6)
    assert extractor.shapes.final[1:] == (2, 3)
    assert tuple(extractor(images(size=(64, 96))).final.shape[2:]) == (2, 3)


@pytest.mark.parametrize(
    ("name", "arguments", "grids"),
    [
        ("test_resnet", {}, [(16, 16), (8, 8), (4, 4), (2, 2)]),
        ("vit_tiny_patch16_224", {"img_size": 64, "depth": 6}, [(4, 4)] * 4),
        ("vit_tiny_patch16_224", {"img_size": 64, "depth": 3}, [(4, 4)] * 3),
    ],
)
def test_on_request_the_features_of_all_stages_are_given(
    name: str, arguments: dict[str, Any], grids: list[tuple[int, int]]
) -> None:
    model = timm.create_model(name, **arguments).eval()
    images = torch.randn(2, 3, 64, 64)
    extractor = FeatureExtractor(model, size=(64, 64), all_stages=True)
    features = extractor(images)
    assert [tuple(stage.shape[2:]) for stage in features.stages] == grids[-4:]
    assert [tuple(stage.shape[1:]) for stage in features.stages] == list(extractor.shapes.stages)
    plain = FeatureExtractor(model, size=(64, 64))(images)
    assert plain.stages == ()
    assert torch.equal(plain.final, features.final)
    assert torch.equal(plain.penultimate, features.penultimate)
    assert torch.equal(plain.logits, features.logits)
    if len(set(grids)) > 1:
        assert torch.equal(features.stages[-2], features.penultimate)
