"""Numbers stored from the authors' released loss classes (tests/method/goldens/README.md)."""

import functools
from pathlib import Path
from typing import Any

import torch
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

GOLDENS = Path(__file__).parents[1] / "method" / "goldens"
FILES = ["A_res50like", "C_s4_only_selfquery"]
TERMS = {
    "loss_s3": "tpp_original",
    "loss_s3_alt": "tpp_alternative",
    "loss_s4": "final_original",
    "loss_s4_alt": "final_alternative",
    "loss_kd": "logits",
}


@functools.cache
def golden(name: str) -> dict[Any, Any]:
    loaded: dict[Any, Any] = torch.load(GOLDENS / f"{name}.pt", weights_only=True)
    return loaded


def timm_name(name: str) -> str:
    for released, timms in {
        "stages.2.downsample": "layers.1.downsample",
        "stages.3": "layers.1",
        "attn.w_msa": "attn",
        "ffn.layers.0.0": "mlp.fc1",
        "ffn.layers.1": "mlp.fc2",
        "norm3": "norm",
    }.items():
        name = name.replace(released, timms)
    return name


def timm_merging_order(columns: Tensor) -> Tensor:
    """Last dimension from c*4 + kh*2 + kw to (kw*2 + kh)*C + c."""
    return columns.unflatten(-1, (-1, 2, 2)).transpose(-3, -1).flatten(-3)


class Tail(nn.Module):
    """timm's last Swin stage and norm, with the stored weights; stores its outputs."""

    def __init__(self) -> None:
        super().__init__()
        stored = golden("teacher_stage4")
        # Two stages are enough: the first stands for all before the penultimate feature.
        self.swin = SwinTransformer(
            img_size=56,
            embed_dim=24,
            depths=(1, 2),
            num_heads=(3, stored["num_heads"]),
            window_size=stored["window_size"],
            num_classes=0,
        )
        weights = {timm_name(name): w for name, w in stored["state_dict_mm"].items()}
        for name in ("norm.weight", "norm.bias", "reduction.weight"):
            full = f"layers.1.downsample.{name}"
            weights[full] = timm_merging_order(weights[full])
        unused = self.swin.load_state_dict(weights, strict=False)
        assert all(".relative_position_index" in name for name in unused.unexpected_keys)
        assert not [name for name in unused.missing_keys if name.startswith(("layers.1.", "norm."))]
        self.eval().requires_grad_(False)
        self.outputs: list[Tensor] = []

    def forward(self, tokens: Tensor) -> Tensor:
        grid = tokens.unflatten(1, (14, 14))
        out: Tensor = self.swin.norm(self.swin.layers[-1](grid)).flatten(1, 2)
        self.outputs.append(out)
        return out
