"""The students that the paper's authors released: their tensors' names, and timm's for them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

StateDict = dict[str, Tensor]

Renames = dict[str, str]
"""Patterns of parts of the released names, and what they become; each applies, in this order."""

_PERCEPTRON: Renames = {r"ffn\.layers\.0\.0\.": "mlp.fc1.", r"ffn\.layers\.1\.": "mlp.fc2."}

_RESNET: Renames = {r"^backbone\.": "", r"^head\.fc\.": "fc."}

_RESNET_D: Renames = {
    r"^backbone\.stem\.0\.conv\.": "conv1.0.",
    r"^backbone\.stem\.0\.bn\.": "conv1.1.",
    r"^backbone\.stem\.1\.conv\.": "conv1.3.",
    r"^backbone\.stem\.1\.bn\.": "conv1.4.",
    r"^backbone\.stem\.2\.conv\.": "conv1.6.",
    r"^backbone\.stem\.2\.bn\.": "bn1.",
    # Where the stride is 1 there is no pooling before the convolution in the file.
    r"(layer1\.0)\.downsample\.1\.": r"\1.downsample.2.",
    r"(layer1\.0)\.downsample\.0\.": r"\1.downsample.1.",
    **_RESNET,
}

_CONVNEXT: Renames = {
    r"^backbone\.downsample_layers\.0\.": "stem.",
    r"^backbone\.downsample_layers\.(\d)\.": r"stages.\1.downsample.",
    r"^backbone\.stages\.(\d)\.(\d)\.": r"stages.\1.blocks.\2.",
    r"\.depthwise_conv\.": ".conv_dw.",
    r"\.pointwise_conv([12])\.": r".mlp.fc\1.",
    r"^backbone\.norm3\.": "norm_pre.",
}

_SWIN: Renames = {
    r"^backbone\.patch_embed\.projection\.": "patch_embed.proj.",
    r"^backbone\.patch_embed\.": "patch_embed.",
    r"^backbone\.stages\.0\.downsample\.": "layers.1.downsample.",
    r"^backbone\.stages\.1\.downsample\.": "layers.2.downsample.",
    r"^backbone\.stages\.2\.downsample\.": "layers.3.downsample.",
    r"^backbone\.stages\.": "layers.",
    r"\.attn\.w_msa\.": ".attn.",
    **_PERCEPTRON,
    r"^backbone\.norm3\.": "norm.",
}

_VIT: Renames = {
    r"^backbone\.pos_embed$": "pos_embed",
    r"^backbone\.patch_embed\.projection\.": "patch_embed.proj.",
    r"^backbone\.layers\.": "blocks.",
    r"^backbone\.ln1\.": "norm.",
    r"\.ln([12])\.": r".norm\1.",
    **_PERCEPTRON,
    r"^head\.fc\.": "head.",
}

_MIXER: Renames = {
    r"^backbone\.patch_embed\.projection\.": "stem.proj.",
    r"^backbone\.layers\.": "blocks.",
    r"^backbone\.ln1\.": "norm.",
    r"\.ln([12])\.": r".norm\1.",
    r"\.token_mix\.layers\.0\.0\.": ".mlp_tokens.fc1.",
    r"\.token_mix\.layers\.1\.": ".mlp_tokens.fc2.",
    r"\.channel_mix\.layers\.0\.0\.": ".mlp_channels.fc1.",
    r"\.channel_mix\.layers\.1\.": ".mlp_channels.fc2.",
    r"^head\.fc\.": "head.",
}


def _mobilenet_names() -> Renames:
    """timm groups the blocks by their strides, and the authors' code by four stages."""
    groups = [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1), *((3, n) for n in range(6)), (4, 0), (4, 1)]
    places = [(1, n) for n in (1, 2, 3)] + [(s, n) for s in (2, 3) for n in range(4)]
    layers = {0: "conv_dw", 1: "bn1", 3: "conv_pw", 4: "bn2"}
    renames = {r"^backbone\.s1\.0\.0\.": "conv_stem.", r"^backbone\.s1\.0\.1\.": "bn1."}
    for (stage, number), group in zip([*places, (4, 0), (4, 1)], groups, strict=True):
        for layer, name in layers.items():
            released = rf"^backbone\.s{stage}\.{number}\.{layer}\."
            renames[released] = f"blocks.{group[0]}.{group[1]}.{name}."
    return {**renames, r"^head\.fc\.": "classifier."}


@dataclass(frozen=True, kw_only=True)
class ReleasedStudent:
    """An architecture of the released students.

    Attributes:
        timm: timm's name of it.
        renames: from the names in the file to timm's.
        arguments: further arguments of `timm.create_model`.
        unused: pattern of names in the file that timm computes itself, or that no logit depends on.
        splits_attention_bias: whether timm has the bias of queries, keys and values in parts. That
            of the keys moves all scores of a query alike, so that no weight of a value changes.
    """

    timm: str
    renames: Renames
    arguments: dict[str, Any] = field(default_factory=dict)
    unused: str = r"(?!)"
    splits_attention_bias: bool = False

    def convert(self, released: StateDict) -> StateDict:
        """The tensors of a released file under timm's names, as timm computes with them."""
        converted = {}
        if self.splits_attention_bias:
            released = dict(_split_attention_biases(released))
        for name, tensor in released.items():
            if re.search(self.unused, name):
                continue
            renamed = name
            for pattern, replacement in self.renames.items():
                renamed = re.sub(pattern, replacement, renamed)
            converted[renamed] = _as_timm_computes(name, tensor)
        return converted


def _split_attention_biases(released: StateDict) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in released.items():
        if name.endswith(".attn.qkv.bias"):
            parts = zip(("q_bias", "k_bias", "v_bias"), tensor.chunk(3), strict=True)
            yield from ((f"{name}.{part}", values) for part, values in parts)
        else:
            yield name, tensor


def _as_timm_computes(name: str, tensor: Tensor) -> Tensor:
    """`tensor` with its numbers in timm's order."""
    if name == "backbone.pos_embed":
        return tensor[:, 1:]  # the first one is the class token's
    if re.search(r"stages\.\d\.downsample\.(norm|reduction)\.", name):
        # Swin's patches of 2x2: channels, rows, columns in the file; columns, rows, channels here.
        patches = tensor.reshape(*tensor.shape[:-1], -1, 2, 2)
        return patches.transpose(-3, -1).flatten(-3)
    return tensor


_VIT_ARGUMENTS: dict[str, Any] = {"class_token": False, "global_pool": "avg", "fc_norm": False}
_VIT_14_ARGUMENTS: dict[str, Any] = {
    "class_token": False,
    "global_pool": "avg",
    "mlp_ratio": 4.0,
    "qkv_fused": True,
    "swiglu_mlp": False,
    "scale_mlp": False,
    "use_rot_pos_emb": False,
    "use_post_transformer_norm": True,
    "use_fc_norm": True,
}
"""The authors' ViT-B/14 has a norm before and one after the mean over its tokens. timm's
VisionTransformer has one of them, and its Eva both, which without its other parts is a ViT."""

_UNUSED_IN_VIT = r"^backbone\.cls_token$"

STUDENTS = {
    "resnet50": ReleasedStudent(timm="resnet50", renames=_RESNET),
    "resnet50d": ReleasedStudent(timm="resnet50d", renames=_RESNET_D),
    "mobilenetv1": ReleasedStudent(timm="mobilenetv1_100", renames=_mobilenet_names()),
    "convnext_tiny": ReleasedStudent(
        timm="convnext_tiny", renames=_CONVNEXT, arguments={"head_norm_first": True}
    ),
    "mixer_s16": ReleasedStudent(timm="mixer_s16_224", renames=_MIXER),
    "mixer_b16": ReleasedStudent(timm="mixer_b16_224", renames=_MIXER),
    "mixer_b14": ReleasedStudent(timm="mixer_b14_224", renames=_MIXER),
    "vit_small16": ReleasedStudent(
        timm="vit_small_patch16_224",
        renames=_VIT,
        arguments=_VIT_ARGUMENTS,
        unused=_UNUSED_IN_VIT,
    ),
    "vit_base16": ReleasedStudent(
        timm="vit_base_patch16_224",
        renames=_VIT,
        arguments=_VIT_ARGUMENTS,
        unused=_UNUSED_IN_VIT,
    ),
    "vit_base14": ReleasedStudent(
        timm="eva02_base_patch14_224",
        renames={r"^backbone\.ln2\.": "fc_norm.", r"\.attn\.qkv\.bias\.": ".attn.", **_VIT},
        arguments=_VIT_14_ARGUMENTS,
        unused=_UNUSED_IN_VIT + r"|\.qkv\.bias\.k_bias$",
        splits_attention_bias=True,
    ),
    "swin_tiny": ReleasedStudent(
        timm="swin_tiny_patch4_window7_224", renames=_SWIN, unused=r"\.relative_position_index$"
    ),
}
"""The released students by the names of `scalekd convert --student`."""
