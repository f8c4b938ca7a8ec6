"""Models by name: what is built, what is loaded, at which size."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import timm
import torch
from helpers.refusals import refused
from helpers.small_models import CLASSES, SIZE, SWIN, VIT, images, resnet, vit
from helpers.weights import same_weights
from safetensors.torch import save_file
from timm.layers import config as timm_config
from timm.layers import set_fused_attn, use_fused_attn
from timm.models import register_model, save_for_hf
from torch import nn

import scalekd.digits.teacher as digits
from scalekd import FrozenTeacher, ScaleKD
from scalekd.networks import build_model
from scalekd.networks.build import build_without_weights


def test_random_weights_are_random_and_reported_as_random() -> None:
    (first, loaded), (second, _) = (
        build_model("test_resnet", "random", num_classes=CLASSES) for _ in range(2)
    )
    assert not same_weights(first, second)
    assert first.num_classes == CLASSES
    assert str(loaded) == "the weights of test_resnet are RANDOM, as requested: it is untrained"
    assert loaded.source == "random"
    assert (loaded.file, loaded.sha256, loaded.matched) == (None, None, 0)
    assert loaded.missing == tuple(first.state_dict())
    assert loaded.total == len(loaded.missing)


@pytest.mark.parametrize(
    ("name", "near"),
    [("resnet5O", "resnet50"), ("swin_large_patch4_window7", "swin_large_patch4_window7_224")],
)
def test_an_unknown_name_is_refused_with_the_nearest_names(name: str, near: str) -> None:
    with refused(repr(name), near):
        build_model(name, "random")


@pytest.mark.parametrize("name", ["", "@@@@@@"])
def test_a_name_close_to_no_model_is_refused(name: str) -> None:
    with refused(repr(name), "list_models"):
        build_model(name, "random")


def test_an_unknown_pretrained_tag_is_refused() -> None:
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
    with refused("resnet18", "give a file of weights", "or random"):
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
    assert not same_weights(build_model(f"local-dir:{tmp_path}", "random")[0], model)


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
def test_weights_from_the_hub_are_reported_with_their_source(architecture: str, hub: Path) -> None:
    model = timm.create_model(architecture)
    file = in_hub_cache(model, f"{architecture}.r160_in1k", hub)
    built, loaded = build_model(architecture, "pretrained")
    assert same_weights(built, model)
    assert loaded.source == f"pretrained from hub timm/{architecture}.r160_in1k"
    assert loaded.file == str(file)
    assert loaded.sha256 == sha256(file.read_bytes()).hexdigest()
    assert loaded.matched == loaded.total == len(model.state_dict())
    assert loaded.missing == loaded.unexpected == loaded.remarks == ()
    assert str(loaded) == (
        f"weights of {architecture}: {loaded.source}, model.safetensors (sha256 "
        f"{loaded.sha256[:12]}…), {loaded.total} of {loaded.total} tensors"
    )


def test_a_hub_repository_is_accepted_as_a_name(hub: Path) -> None:
    model = timm.create_model("test_resnet", num_classes=CLASSES)
    in_hub_cache(model, "mine", hub)
    built, loaded = build_model("hf-hub:timm/mine", "pretrained")
    assert same_weights(built, model)
    assert loaded.source == "pretrained from hub timm/mine"


def test_weights_in_a_custom_hub_cache_are_found(hub: Path, tmp_path: Path) -> None:
    model = timm.create_model("test_resnet")
    file = in_hub_cache(model, "test_resnet.r160_in1k", tmp_path / "other")
    built, loaded = build_model("test_resnet", "pretrained", cache_dir=tmp_path / "other")
    assert same_weights(built, model)
    assert loaded.file == str(file)


def test_weights_from_a_url_are_reported_with_their_source(tmp_path: Path) -> None:
    model = timm.create_model("test_resnet")
    torch.save(model.state_dict(), tmp_path / "net-0123.pth")
    url = "https://nowhere.invalid/net-0123.pth"
    overlay = {"url": url, "hf_hub_id": None}
    given = {"pretrained_cfg_overlay": overlay, "cache_dir": str(tmp_path)}
    built, loaded = build_model("test_resnet", "pretrained", **given)
    assert same_weights(built, model)
    assert loaded.source == f"pretrained from {url}"
    assert loaded.file == str(tmp_path / "net-0123.pth")


def test_a_new_classifier_on_pretrained_weights_is_reported_as_random(hub: Path) -> None:
    in_hub_cache(timm.create_model("test_vit"), "test_vit.r160_in1k", hub)
    model, loaded = build_model("test_vit", "pretrained", num_classes=7)
    assert model.num_classes == 7
    assert loaded.missing == ("head.weight", "head.bias")
    assert loaded.matched == loaded.total - 2
    assert "RANDOM, because the file lacks them: head.weight, head.bias" in str(loaded)
    assert build_model("test_vit", "pretrained", num_classes=0)[1].missing == ()


def test_pretrained_weights_that_leave_more_than_the_classifier_random_are_refused(
    hub: Path,
) -> None:
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
    with refused("resnet50_mlp", "No pretrained weights exist", "give a file of weights"):
        build_model("resnet50_mlp", "pretrained")


@register_model
def scalekd_test_deaf(pretrained: bool = False, **arguments: Any) -> nn.Module:
    model: nn.Module = timm.create_model("test_resnet", num_classes=CLASSES)
    return model


def test_a_pretrained_model_that_silently_loads_nothing_is_refused() -> None:
    with refused("scalekd_test_deaf", "loaded no weights", "or random"):
        build_model("scalekd_test_deaf", "pretrained")
    assert build_model("scalekd_test_deaf", "random")[0].num_classes == CLASSES


def test_a_model_that_loads_its_own_file_reports_that_file() -> None:
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


def test_a_local_folder_of_weights_that_do_not_fit_is_refused_with_their_names(
    tmp_path: Path,
) -> None:
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


def test_loaded_positions_are_resampled_to_the_size(tmp_path: Path) -> None:
    name = "vit_tiny_patch16_224"
    model = timm.create_model(name, num_classes=CLASSES, **VIT)
    folder = folder_of(model, tmp_path / "folder", **VIT)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    for built, loaded in (
        build_model(folder, "pretrained", WIDE),
        build_model(name, tmp_path / "w.safetensors", WIDE, **VIT),
    ):
        assert built.eval()(images(size=WIDE)).shape == (2, CLASSES)
        assert loaded.remarks[-1].startswith("resized from 64x64 to 64x96 pixels")
        assert loaded.remarks[-1] in str(loaded)
        assert loaded.resampled == {"pos_embed": (1, 17, 32)}
        assert loaded.fitting_size == SIZE
        assert torch.equal(*(m.patch_embed.proj.weight for m in (built, model)))
    unchanged, loaded = build_model(folder, "pretrained", SIZE)
    assert same_weights(unchanged, model)
    assert loaded.remarks == ()
    assert loaded.note.level == "info"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("swin_tiny_patch4_window7_224", SWIN), ("test_vit_relpos", {"img_size": 64})],
)
def test_a_network_whose_tables_fit_the_size_is_built_for_it_and_nothing_is_resampled(
    name: str, arguments: dict[str, Any], tmp_path: Path
) -> None:
    own = timm.create_model(name, num_classes=CLASSES, **arguments)
    model = timm.create_model(name, num_classes=CLASSES, **{**arguments, "img_size": WIDE})
    model.load_state_dict(own.state_dict())
    folder = folder_of(own, tmp_path / "folder", **arguments)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    for built, loaded in (
        build_model(folder, "pretrained", WIDE),
        build_model(name, tmp_path / "w.safetensors", WIDE, **arguments),
    ):
        assert same_weights(built, model)
        torch.testing.assert_close(built.eval()(images(size=WIDE)), model.eval()(images(size=WIDE)))
        assert loaded.note.level == "info"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("test_resnet", {}), ("vit_tiny_patch16_224", {"dynamic_img_size": True})],
)
def test_a_network_that_accepts_any_size_is_not_resized(
    name: str, arguments: dict[str, Any], tmp_path: Path
) -> None:
    if arguments:
        arguments |= VIT
    model = timm.create_model(name, num_classes=CLASSES, **arguments)
    built, loaded = build_model(folder_of(model, tmp_path, **arguments), "pretrained", WIDE)
    assert same_weights(built, model)
    assert loaded.remarks == ()
    assert built.eval()(images(size=WIDE)).shape == (2, CLASSES)


def test_a_network_bound_to_its_size_refuses_another_size(tmp_path: Path) -> None:
    model = timm.create_model("mixer_s32_224", num_classes=CLASSES)
    folder = folder_of(model, tmp_path)
    with refused(folder, "224x224", "64x96", "only at its own size"):
        build_model(folder, "pretrained", WIDE)
    assert build_model(folder, "pretrained", (224, 224))[1].remarks == ()


def test_a_size_that_positions_cannot_be_resampled_to_is_refused(tmp_path: Path) -> None:
    folder = folder_of(vit(), tmp_path, **VIT)
    with refused(folder, "64x64", "8x8"):
        build_model(folder, "pretrained", (8, 8))


EXPERIMENTAL = "swin_tiny_patch4_window7_224"  # timm calls its fused attention experimental


@pytest.fixture
def _fused_attention() -> Iterator[None]:
    """Restore timm's switch for fused attention after a test that sets it."""
    with patch.object(timm_config, "_USE_FUSED_ATTN", timm_config._USE_FUSED_ATTN):
        yield


def fused(model: nn.Module) -> set[bool]:
    return {m.fused_attn for m in model.modules() if hasattr(m, "fused_attn")}


@pytest.mark.usefixtures("_fused_attention")
@pytest.mark.parametrize(
    ("enable", "experimental"),
    [(False, False), (True, False), (True, True)],
    ids=["off", "on", "experimental"],
)
@pytest.mark.parametrize("build", [build_without_weights, partial(build_model, weights="random")])
def test_building_a_model_leaves_timms_fused_attention_switch_unchanged(
    build: Callable[..., Any], enable: bool, experimental: bool
) -> None:
    set_fused_attn(enable, experimental)
    built = build(EXPERIMENTAL, **SWIN)
    assert fused(built[0] if isinstance(built, tuple) else built) == {True}
    assert (use_fused_attn(), use_fused_attn(experimental=True)) == (enable, experimental)
    assert fused(timm.create_model(EXPERIMENTAL, **SWIN)) == {experimental}
    assert fused(timm.create_model("vit_tiny_patch16_224", **VIT)) == {enable}


@pytest.mark.usefixtures("_fused_attention")
def test_a_model_that_cannot_be_built_leaves_timms_fused_attention_switch_unchanged() -> None:
    set_fused_attn(False)
    with refused("img_seize"):
        build_model(EXPERIMENTAL, "random", img_seize=64)
    assert not use_fused_attn()


@pytest.mark.usefixtures("_fused_attention")
def test_a_teacher_built_by_name_has_fused_attention_and_the_users_student_keeps_its_own() -> None:
    set_fused_attn(True)
    student = timm.create_model(EXPERIMENTAL, num_classes=10, in_chans=1, **SWIN)
    distiller = ScaleKD("scalekd_digits_swin", student, size=SIZE)
    assert fused(distiller.teacher.model) == {True}
    assert fused(distiller.student) == {False}
    assert fused(timm.create_model(EXPERIMENTAL, **SWIN)) == {False}
