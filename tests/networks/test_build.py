"""Models by name: what is built, what is loaded, at which size."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers.refusals import refused
from helpers.small_models import CLASSES, SIZE, SWIN, VIT, images, resnet, vit
from safetensors.torch import save_file
from timm.models import register_model, save_for_hf
from torch import nn

import scalekd.digits.teacher as digits
from scalekd import FrozenTeacher
from scalekd.networks import build_model
from scalekd.networks.build import build_without_weights


def same(a: nn.Module, b: nn.Module) -> bool:
    mine, theirs = a.state_dict(), b.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[n], theirs[n]) for n in mine)


def test_random_weights_are_random_and_said_to_be() -> None:
    (first, loaded), (second, _) = (
        build_model("test_resnet", "random", num_classes=CLASSES) for _ in range(2)
    )
    assert not same(first, second)
    assert first.num_classes == CLASSES
    assert str(loaded) == "the weights of test_resnet are RANDOM, as asked: it knows nothing"
    assert loaded.source == "random"
    assert (loaded.file, loaded.sha256, loaded.matched) == (None, None, 0)
    assert loaded.missing == tuple(first.state_dict())
    assert loaded.total == len(loaded.missing)


@pytest.mark.parametrize(
    ("name", "near"),
    [("resnet5O", "resnet50"), ("swin_large_patch4_window7", "swin_large_patch4_window7_224")],
)
def test_an_unknown_name_offers_the_nearest(name: str, near: str) -> None:
    with refused(repr(name), near):
        build_model(name, "random")


@pytest.mark.parametrize("name", ["", "@@@@@@"])
def test_a_name_near_none_is_refused_too(name: str) -> None:
    with refused(repr(name), "list_models"):
        build_model(name, "random")


def test_an_unknown_tag_is_refused() -> None:
    with refused("nope"):
        build_model("resnet18.nope", "random")


def test_an_argument_that_the_model_does_not_take_is_refused() -> None:
    with refused("test_resnet", "img_seize"):
        build_model("test_resnet", "random", img_seize=64)


def test_pretrained_weights_without_a_network_are_refused_with_both_ways_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No proxy and a name that resolves nowhere: the network that nobody has.
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://hub.invalid")
    with refused("resnet18", "--teacher_weights FILE", "--teacher_weights random"):
        build_model("resnet18.a1_in1k", "pretrained", cache_dir=tmp_path)


def test_a_local_folder_without_its_configuration_is_refused(tmp_path: Path) -> None:
    with refused("config.json", str(tmp_path)):
        build_model(f"local-dir:{tmp_path}", "pretrained")


def test_a_local_folder_gives_the_model_that_it_holds(tmp_path: Path) -> None:
    model = resnet()
    config = {
        "architecture": "test_resnet",
        "num_classes": CLASSES,
        "pretrained_cfg": {"input_size": [3, *SIZE], "num_classes": CLASSES, "classifier": "fc"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    loaded, said = build_model(f"local-dir:{tmp_path}", "pretrained")
    loaded.eval()
    assert said.source == f"local-dir:{tmp_path}"
    assert said.file == str(tmp_path / "model.safetensors")
    assert said.matched == said.total == len(model.state_dict())
    assert torch.equal(loaded(images()), model(images()))
    teacher = FrozenTeacher(loaded)
    assert teacher.input.size == SIZE
    assert not same(build_model(f"local-dir:{tmp_path}", "random")[0], model)


def test_a_local_folder_of_a_broken_configuration_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with refused(str(tmp_path)):
        build_model(f"local-dir:{tmp_path}", "pretrained")


def in_hub_cache(model: nn.Module, name: str, root: Path, **config: Any) -> Path:
    """`model` where the hub's client leaves what it downloads for timm/NAME; the weights' path."""
    repository = root / f"models--timm--{name}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    folder = repository / "snapshots" / ("0" * 40)
    save_for_hf(model, str(folder), safe_serialization=True, **config)
    return folder / "model.safetensors"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path


@pytest.mark.parametrize("architecture", ["test_vit", "test_resnet"])
def test_weights_from_the_hub_are_said_to_be(architecture: str, hub: Path) -> None:
    model = timm.create_model(architecture)
    file = in_hub_cache(model, f"{architecture}.r160_in1k", hub)
    built, loaded = build_model(architecture, "pretrained")
    assert same(built, model)
    assert loaded.source == f"pretrained from hub timm/{architecture}.r160_in1k"
    assert loaded.file == str(file)
    assert loaded.sha256 == sha256(file.read_bytes()).hexdigest()
    assert loaded.matched == loaded.total == len(model.state_dict())
    assert loaded.missing == loaded.unexpected == loaded.remarks == ()
    assert str(loaded) == (
        f"weights of {architecture}: {loaded.source}, model.safetensors (sha256 "
        f"{loaded.sha256[:12]}…), {loaded.total} of {loaded.total} tensors"
    )


def test_a_repository_of_the_hub_is_a_name_too(hub: Path) -> None:
    model = timm.create_model("test_resnet", num_classes=CLASSES)
    in_hub_cache(model, "mine", hub)
    built, loaded = build_model("hf-hub:timm/mine", "pretrained")
    assert same(built, model)
    assert loaded.source == "pretrained from hub timm/mine"


def test_a_cache_of_ones_own_is_found_too(hub: Path, tmp_path: Path) -> None:
    model = timm.create_model("test_resnet")
    file = in_hub_cache(model, "test_resnet.r160_in1k", tmp_path / "other")
    built, loaded = build_model("test_resnet", "pretrained", cache_dir=tmp_path / "other")
    assert same(built, model)
    assert loaded.file == str(file)


def test_weights_from_an_address_are_said_to_be(tmp_path: Path) -> None:
    model = timm.create_model("test_resnet")
    torch.save(model.state_dict(), tmp_path / "net-0123.pth")
    url = "https://nowhere.invalid/net-0123.pth"
    overlay = {"url": url, "hf_hub_id": None}
    given = {"pretrained_cfg_overlay": overlay, "cache_dir": str(tmp_path)}
    built, loaded = build_model("test_resnet", "pretrained", **given)
    assert same(built, model)
    assert loaded.source == f"pretrained from {url}"
    assert loaded.file == str(tmp_path / "net-0123.pth")


def test_a_new_classifier_on_pretrained_weights_is_said_to_be_random(hub: Path) -> None:
    in_hub_cache(timm.create_model("test_vit"), "test_vit.r160_in1k", hub)
    model, loaded = build_model("test_vit", "pretrained", num_classes=7)
    assert model.num_classes == 7
    assert loaded.missing == ("head.weight", "head.bias")
    assert loaded.matched == loaded.total - 2
    assert "RANDOM, for no file gave them: head.weight, head.bias" in str(loaded)
    assert build_model("test_vit", "pretrained", num_classes=0)[1].missing == ()


def test_more_than_a_classifier_left_at_random_is_refused(hub: Path) -> None:
    model = timm.create_model("test_vit")
    file = in_hub_cache(model, "test_vit.r160_in1k", hub)
    state = model.state_dict()
    del state["blocks.0.attn.qkv.weight"]
    save_file(state, file)
    with refused("test_vit", "blocks.0.attn.qkv.weight"):
        build_model("test_vit", "pretrained")
    with refused("test_vit", "RANDOM", "blocks.0.attn.qkv.weight"):
        build_model("test_vit", "pretrained", num_classes=7)  # timm asks for nothing then


def test_a_name_without_pretrained_weights_is_refused() -> None:
    with refused("resnet50_mlp", "No pretrained weights exist", "--teacher_weights FILE"):
        build_model("resnet50_mlp", "pretrained")


@register_model
def scalekd_test_deaf(pretrained: bool = False, **arguments: Any) -> nn.Module:
    model: nn.Module = timm.create_model("test_resnet", num_classes=CLASSES)
    return model


def test_a_model_that_loads_nothing_in_silence_is_refused() -> None:
    with refused("scalekd_test_deaf", "nothing was seen", "--teacher_weights random"):
        build_model("scalekd_test_deaf", "pretrained")
    assert build_model("scalekd_test_deaf", "random")[0].num_classes == CLASSES


def test_a_model_that_loads_a_file_of_its_own_names_it() -> None:
    model, loaded = build_model("scalekd_digits_swin", "pretrained")
    card = json.loads(digits.WEIGHTS.with_name("teacher.json").read_text())
    assert loaded.source == "pretrained"  # and not the Swin of the hub that its configuration has
    assert loaded.file == str(digits.WEIGHTS)
    assert loaded.sha256 == card["sha256"]
    assert loaded.matched == loaded.total == len(model.state_dict())


def test_a_local_folder_without_weights_is_refused(tmp_path: Path) -> None:
    folder = folder_of(resnet(), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with refused(folder, "No suitable checkpoints"):
        build_model(folder, "pretrained")


def test_a_local_folder_of_weights_that_do_not_fit_says_which(tmp_path: Path) -> None:
    folder = folder_of(resnet(), tmp_path)
    save_file({"stray": torch.zeros(1)}, tmp_path / "model.safetensors")
    with refused(folder, "conv1.0.weight"):
        build_model(folder, "pretrained")


WIDE = (64, 96)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("vit_tiny_patch16_224", {"embed_dim": 32, "depth": 2, "num_heads": 2}),
        ("swin_tiny_patch4_window7_224", {**SWIN, "img_size": 224}),
        ("test_maxvit", {}),
        ("test_resnet", {}),
        ("mixer_s16_224", {}),
    ],
)
def test_random_networks_are_built_for_the_size(name: str, arguments: dict[str, Any]) -> None:
    model, loaded = build_model(name, "random", WIDE, **arguments)
    assert "RANDOM" in str(loaded)
    assert model.eval()(images(size=WIDE)).shape == (2, 1000)


def test_an_unfitting_size_of_a_random_network_is_refused() -> None:
    with refused("swin", "(64, 0)"):
        build_model("swin_tiny_patch4_window7_224", "random", (64, 0))


def folder_of(model: nn.Module, folder: Path, **arguments: Any) -> str:
    save_for_hf(model, str(folder), model_args=arguments, safe_serialization=True)
    return f"local-dir:{folder}"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("vit_tiny_patch16_224", VIT),
        ("swin_tiny_patch4_window7_224", SWIN),
        ("test_vit_relpos", {"img_size": 64}),
    ],
)
def test_loaded_positions_are_resampled_to_the_size(
    name: str, arguments: dict[str, Any], tmp_path: Path
) -> None:
    model = timm.create_model(name, num_classes=CLASSES, **arguments)
    folder = folder_of(model, tmp_path / "folder", **arguments)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    for built, loaded in (
        build_model(folder, "pretrained", WIDE),
        build_model(name, tmp_path / "w.safetensors", WIDE, **arguments),
    ):
        assert built.eval()(images(size=WIDE)).shape == (2, CLASSES)
        assert loaded.remarks[-1].startswith("resized from 64x64 to 64x96 pixels")
        assert loaded.remarks[-1] in str(loaded)
        assert torch.equal(*(m.patch_embed.proj.weight for m in (built, model)))
    unchanged, loaded = build_model(folder, "pretrained", SIZE)
    assert same(unchanged, model)
    assert loaded.remarks == ()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("test_resnet", {}), ("vit_tiny_patch16_224", {"dynamic_img_size": True})],
)
def test_a_network_of_any_size_is_left_as_it_is(
    name: str, arguments: dict[str, Any], tmp_path: Path
) -> None:
    if arguments:
        arguments |= VIT
    model = timm.create_model(name, num_classes=CLASSES, **arguments)
    built, loaded = build_model(folder_of(model, tmp_path, **arguments), "pretrained", WIDE)
    assert same(built, model)
    assert loaded.remarks == ()
    assert built.eval()(images(size=WIDE)).shape == (2, CLASSES)


def test_a_network_bound_to_its_size_is_refused_another(tmp_path: Path) -> None:
    model = timm.create_model("mixer_s32_224", num_classes=CLASSES)
    folder = folder_of(model, tmp_path)
    with refused(folder, "224x224", "64x96", "own size alone"):
        build_model(folder, "pretrained", WIDE)
    assert build_model(folder, "pretrained", (224, 224))[1].remarks == ()


def test_a_size_that_cannot_be_resampled_to_is_refused(tmp_path: Path) -> None:
    folder = folder_of(vit(), tmp_path, **VIT)
    with refused(folder, "64x64", "8x8"):
        build_model(folder, "pretrained", (8, 8))


UNFILLED = [
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


@pytest.mark.parametrize(("name", "arguments"), UNFILLED)
def test_an_unfilled_network_can_be_looked_at(name: str, arguments: dict[str, Any]) -> None:
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


def test_an_unfilled_network_is_the_same_each_time_and_leaves_chance_alone() -> None:
    before = torch.get_rng_state()
    first, second = (build_without_weights("test_vit") for _ in range(2))
    assert same(first, second)
    assert torch.equal(torch.get_rng_state(), before)
    weights = [block.attn.qkv.weight for block in first.blocks]
    assert not torch.equal(weights[0], weights[1])
    assert weights[0].std().item() == pytest.approx(weights[0].shape[1] ** -0.5, rel=0.1)


def test_an_unfilled_network_that_cannot_be_built_is_refused_too() -> None:
    with refused("resnet5O", "resnet50"):
        build_without_weights("resnet5O")
    with refused("test_resnet", "img_seize"):
        build_without_weights("test_resnet", img_seize=64)
    assert torch.nn.init.normal_(torch.empty(100)).std() > 0
