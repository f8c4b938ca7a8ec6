"""Tensors of transformers' vision models under timm's names.

ViT, DeiT, Swin, DINOv2 (with registers, too), DINOv3 and SigLIP's image tower are the same networks
in both libraries. The names in a file tell what it holds; nothing asks which family it is.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from scalekd.errors import InputError
from scalekd.networks.weight_files import (
    KEY_OPTION,
    StateDict,
    choose_network,
    remark_on_average,
    shortened_list,
)

PATCHES = re.compile(
    r"^(|.*\.)embeddings\.(patch_embeddings\.projection|patch_embeddings|patch_embedding)\.weight$"
)
"""The first layer's weight, which each of these models has, after the prefix of its names."""

# In the order in which they are applied. Several spellings are those of transformers 4, which
# version 5 still writes into files, and of version 5 itself, as a model's state_dict() has them.
RENAMED: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"^embeddings\.patch_embeddings?\.(projection\.)?", "patch_embed.proj."),
    (r"^embeddings\.norm\.", "patch_embed.norm."),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.distillation_token$", "dist_token"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.position_embeddings?(\.weight)?$", "pos_embed"),
    (r"^(encoder|model)\.(?=layers?\.)", ""),
    # A stage of timm's Swin begins with the downsampling that ends a stage of transformers'.
    (r"^layers\.(\d+)\.downsample\.", lambda m: f"layers.{int(m[1]) + 1}.downsample."),
    (r"^layers?\.(\d+)\.(?!blocks\.|downsample\.)", r"blocks.\1."),
    (r"\.(attention\.output\.dense|attention\.o_proj|self_attn\.out_proj)\.", ".attn.proj."),
    (r"\.(attention|self_attn)\.(attention\.|self\.)?(q|k|v)(uery|ey|alue|_proj)\.", r".attn.\3."),
    (r"\.attention\.(self|relative_position_bias)\.(?=relative_position_bias_table$)", ".attn."),
    (r"\.(intermediate\.dense|mlp\.weights_in)\.", ".mlp.fc1."),
    (r"\.(output\.dense|mlp\.weights_out|mlp\.down_proj)\.", ".mlp.fc2."),
    (r"\.(layernorm_before|layer_norm1)\.", ".norm1."),
    (r"\.(layernorm_after|layer_norm2)\.", ".norm2."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
    (r"^(layernorm|post_layernorm)\.", "norm."),
    (r"^head\.probe$", "attn_pool.latent"),
    (r"^head\.layernorm\.", "attn_pool.norm."),
    (r"^head\.mlp\.", "attn_pool.mlp."),
    (r"^head\.attention\.(out_)?", "attn_pool."),
)
"""Patterns of names within a model, and what takes their place."""

UNUSED = re.compile(
    r"^(embeddings\.(mask_token|position_ids)|pooler\..*|rope_embeddings\..*"
    r"|.*relative_position_index)$"
)
"""Names that no feature depends on: for pretraining or text, or computed again."""


@dataclass(frozen=True)
class Translation:
    """A file's tensors under timm's names.

    Attributes:
        state: The tensors.
        skipped: Names in the file that are not used.
        remarks: What was done.
    """

    state: StateDict
    skipped: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


def translate(
    state: StateDict, model: nn.Module, classifiers: tuple[str, ...]
) -> Translation | None:
    """Translate the names and tensors of a model of transformers into those of timm's `model`.

    What does not fit `model` is translated all the same, so that a comparison can list it.

    Args:
        state: tensors by transformers' names, perhaps with a prefix and with other networks' (a
            text tower's, a decoder's), which are skipped.
        model: of timm.
        classifiers: names of the modules of `model` that compute its logits.

    Returns:
        None if `state` is not of a vision model of transformers.

    Raises:
        InputError: `state` has several of them.
    """
    prefixes = [match[1] for name in state if (match := PATCHES.match(name))]
    if not prefixes:
        return None
    prefix = choose_network(prefixes)
    if prefix is None:
        raise InputError(
            f"the file holds several networks ({shortened_list(tuple(prefixes))}): choose one by "
            f"its prefix with {KEY_OPTION}"
        )
    remarks: tuple[str, ...] = ("names translated from transformers' to timm's",)
    if len(prefixes) > 1:
        remarks += (remark_on_average(prefix, prefixes),)
    inside = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
    unused = {n for n in inside if UNUSED.match(n)}
    if getattr(model, "attn_pool", None) is None:  # timm's SigLIP with mean pooling
        unused |= {n for n in inside if n.startswith("head.")}
    used = {_rename(n): t for n, t in inside.items() if n not in unused}
    heads = _find_classifier(state, prefix)
    skipped = [n for n in state if n not in heads and not n.startswith(prefix)]
    skipped += [prefix + n for n in inside if n in unused]
    translation = Translation(_fit_modules(used, model), tuple(skipped), remarks)
    return _with_classifier(translation, heads, model, classifiers)


def _rename(name: str) -> str:
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def _fit_modules(state: StateDict, model: nn.Module) -> StateDict:
    """Fuse, split and rename tensors as the modules of `model` hold them."""
    names = set(model.state_dict())
    state = _fuse_attention(state, names)
    if any(name.endswith(".gamma_1") for name in names):  # timm's DINOv3 has no module for it
        state = {re.sub(r"\.ls(\d)\.gamma$", r".gamma_\1", n): t for n, t in state.items()}
    gated = any(".mlp.gate_proj." in name for name in state)
    up = ".mlp.fc1_x." if gated else ".mlp.fc1."
    state = {
        n.replace(".mlp.gate_proj.", ".mlp.fc1_g.").replace(".mlp.up_proj.", up): t
        for n, t in state.items()
    }
    return _fit_positions(_split_pooling(state), model)


def _fuse_attention(state: StateDict, model_names: set[str]) -> StateDict:
    """Put queries, keys and values together."""
    fused = dict(state)
    letters = re.compile(r"^(.*\.attn)\.[qkv]\.(weight|bias)$")
    for block, kind in dict.fromkeys(m.groups() for name in state if (m := letters.match(name))):
        parts = {q: fused.pop(f"{block}.{q}.{kind}", None) for q in "qkv"}
        present = [part for part in parts.values() if part is not None]
        if kind == "bias" and f"{block}.q_bias" in model_names:  # DINOv3's, without one for keys
            fused |= {f"{block}.{q}_bias": part for q, part in parts.items() if part is not None}
            continue
        has_none = kind == "bias" and f"{block}.qkv.bias" not in model_names
        if has_none and not any(bool(part.any()) for part in present):
            continue  # DINOv3's biases are zeros, but for its largest model
        if kind == "bias":
            parts = {q: torch.zeros_like(present[0]) if p is None else p for q, p in parts.items()}
        shapes = {None if part is None else part.shape for part in parts.values()}
        if len(shapes) > 1 or not present[0].dim():
            fused |= {f"{block}.{q}.{kind}": part for q, part in parts.items() if part is not None}
        else:
            fused[f"{block}.qkv.{kind}"] = torch.cat([p for p in parts.values() if p is not None])
    return fused


def _split_pooling(state: StateDict) -> StateDict:
    """Take the query of SigLIP's attention pooling from its keys and values."""
    split = dict(state)
    for kind in ("weight", "bias"):
        name = f"attn_pool.in_proj_{kind}"
        if name in split and split[name].dim() and len(split[name]) % 3 == 0:
            query, keys, values = split.pop(name).chunk(3)
            split |= {
                f"attn_pool.q.{kind}": query,
                f"attn_pool.kv.{kind}": torch.cat([keys, values]),
            }
    return split


def _fit_positions(state: StateDict, model: nn.Module) -> StateDict:
    positions, token = state.get("pos_embed"), state.get("cls_token")
    if positions is None:
        return state
    if positions.dim() == 2:  # SigLIP's
        return {**state, "pos_embed": positions[None]}
    if token is None or not getattr(model, "no_embed_class", False):
        return state
    if token.dim() != 3 or positions.dim() != 3 or token.shape[-1] != positions.shape[-1]:
        return state
    # DINOv2 with registers: timm has the class token's position in the token itself.
    return {**state, "cls_token": token + positions[:, :1], "pos_embed": positions[:, 1:]}


def _find_classifier(state: StateDict, prefix: str) -> StateDict:
    """Return the tensors of the classifier beside the model with this prefix."""
    outer = re.sub(r"[^.]+\.$", "", prefix)
    named = re.compile(rf"{re.escape(outer)}(cls_|distillation_)?classifier\..*(weight|bias)$")
    return {n: t for n, t in state.items() if named.match(n) and not n.startswith(prefix or ".")}


def _with_classifier(
    translation: Translation, found: StateDict, model: Any, classifiers: tuple[str, ...]
) -> Translation:
    """Add the file's classifier, if it computes what that of `model` does."""
    if not found:
        return translation
    if why := _why_unusable(translation.state, found, model, classifiers):
        remark = f"the classifier in the file is not used, because {why}"
        return replace(
            translation,
            skipped=(*translation.skipped, *found),
            remarks=(*translation.remarks, remark),
        )
    heads: StateDict = {}
    for name, tensor in found.items():
        kind, _, last = name.rpartition("classifier.")
        head = classifiers[-1] if kind.endswith("distillation_") else classifiers[0]
        heads[f"{head}.{last}"] = tensor
    remarks = translation.remarks
    if len(classifiers) == 2 and not any(name.startswith(f"{classifiers[1]}.") for name in heads):
        # timm's logits are the mean of the two classifiers'.
        heads |= {
            classifiers[1] + n.removeprefix(classifiers[0]): torch.zeros_like(t)
            for n, t in heads.items()
        }
        heads |= {n: 2 * t for n, t in heads.items()}
        remarks += (
            "its one classifier is doubled beside one of zeros, because the model's logits are the "
            "mean of two",
        )
    return replace(translation, state={**translation.state, **heads}, remarks=remarks)


def _why_unusable(
    body: StateDict, found: StateDict, model: Any, classifiers: tuple[str, ...]
) -> str | None:
    if not classifiers:
        return "the model has none"
    widths = {tensor.shape[1] for tensor in found.values() if tensor.dim() == 2}
    if widths == {2 * model.num_features}:  # DINOv2's
        return (
            "it takes the class token and the mean of the patches, and timm's takes one of them: "
            "train one with scalekd probe, or distil features only"
        )
    pool = "token" if "cls_token" in body else "avg"
    if getattr(model, "global_pool", pool) != pool:
        return (
            f"it takes the features pooled as global_pool={pool}, and the model pools as "
            f"{model.global_pool}: build the model with global_pool={pool} to have it"
        )
    return None
