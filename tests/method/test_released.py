import copy
from typing import Any

import pytest
import torch
from helpers.refusals import refused
from torch import Tensor, nn

from scalekd.method import ChannelNorm, CrossAttentionProjector, loss_from_released

S3 = {
    "alpha": [0.08, 0.06],
    "student_dims": 4,
    "teacher_dims": 6,
    "query_hw": [4, 2],
    "pos_hw": [3, 4],
    "self_query": True,
    "softmax_scale": [5.0, 5.0],
    "num_heads": 3,
}
S4 = {
    "alpha": [0.08, 0.06],
    "student_dims": 5,
    "teacher_dims": 8,
    "query_hw": [2, 1],
    "pos_hw": [3, 2],
    "self_query": False,
    "softmax_scale": [5.0, 5.0],
    "num_heads": 2,
}
KD = {"temp": 4.0, "alpha": 0.25}
PARTS = {
    "pos_embed": "position",
    "proj_pos.0.weight": "query_stem.0.weight",
    "proj_pos.0.bias": "query_stem.0.bias",
    "proj_student.0.weight": "stem.0.weight",
    "proj_student.0.bias": "stem.0.bias",
    "proj_student.1.weight": "stem.1.weight",
    "proj_student.1.bias": "stem.1.bias",
    "proj_student.1.running_mean": "stem.1.running_mean",
    "proj_student.1.running_var": "stem.1.running_var",
    "pos_attention.q.weight": "to_query.weight",
    "pos_attention.q.bias": "to_query.bias",
    "pos_attention.k.weight": "to_key.weight",
    "pos_attention.k.bias": "to_key.bias",
    "pos_attention.v.weight": "to_value.weight",
    "pos_attention.v.bias": "to_value.bias",
    "pos_attention.proj.weight": "to_output.weight",
    "pos_attention.proj.bias": "to_output.bias",
    "ffn.layers.0.0.weight": "feed_forward.0.weight",
    "ffn.layers.0.0.bias": "feed_forward.0.bias",
    "ffn.layers.1.weight": "feed_forward.2.weight",
    "ffn.layers.1.bias": "feed_forward.2.bias",
    "norm.weight": "norm.weight",
    "norm.bias": "norm.bias",
    "query.weight": "own_query",
}


def released_weights(norm: type[nn.Module] = nn.BatchNorm2d) -> dict[str, Tensor]:
    """What the released code would save for S3 and S4."""
    weights = {}
    for stage, cfg in (("loss_fmd_s3", S3), ("loss_fmd_s4", S4)):
        for number in range(2):
            ours = CrossAttentionProjector(
                in_channels=cfg["student_dims"],
                out_channels=cfg["teacher_dims"],
                key_grid=tuple(cfg["pos_hw"]),
                query_grid=tuple(cfg["query_hw"]) if cfg["self_query"] else None,
                heads=cfg["num_heads"],
                norm=norm,
            ).state_dict()
            for released_name, name in PARTS.items():
                if name not in ours:
                    continue
                tensor = torch.rand_like(ours[name])
                tensor = tensor[..., None, None] if released_name == "proj_pos.0.weight" else tensor
                weights[f"{stage}.projector_{number}.{released_name}"] = tensor
    return weights


def changed(cfg: dict[str, Any], **values: object) -> dict[str, Any]:
    return {**copy.deepcopy(cfg), **values}


def test_every_released_weight_is_loaded_under_its_new_name() -> None:
    weights = released_weights()
    loss = loss_from_released(s3_cfg=S3, s4_cfg=S4, kd_cfg=KD, state_dict=weights)
    ours = loss.state_dict()
    stages = {"loss_fmd_s3": "penultimate", "loss_fmd_s4": "final"}
    views = {"projector_0": "original", "projector_1": "alternative"}
    for name, tensor in weights.items():
        stage, projector, part = name.split(".", 2)
        loaded = ours[f"{stages[stage]}.{views[projector]}.{PARTS[part]}"]
        assert torch.equal(loaded, tensor.view_as(loaded)), name


def test_weights_temperature_and_scale_come_from_the_released_arguments() -> None:
    scale = [3.0, 3.0]
    s3 = changed(S3, softmax_scale=scale, alpha=[0.1, 0.2])
    s4 = changed(S4, softmax_scale=scale, alpha=[0.3, 0.4])
    loss = loss_from_released(s3_cfg=s3, s4_cfg=s4, kd_cfg=KD, state_dict=released_weights())
    weights = loss.weights
    assert (weights.tpp_original, weights.tpp_alternative) == (0.1, 0.2)
    assert (weights.final_original, weights.final_alternative) == (0.3, 0.4)
    assert (weights.logits, loss.temperature) == (0.25, 4.0)
    assert loss.final["original"].scale == 3.0 / (8 / 2) ** 0.5


def test_weights_without_running_statistics_get_channel_norm_stems() -> None:
    weights = released_weights(ChannelNorm)
    loss = loss_from_released(s3_cfg=S3, s4_cfg=S4, kd_cfg=KD, state_dict=weights)
    assert all(type(p.stem[1]) is ChannelNorm for p in loss.final.values())


def test_a_view_of_final_weight_zero_has_no_final_projector() -> None:
    s4 = changed(S4, alpha=[0.08, 0.0])
    loss = loss_from_released(s3_cfg=S3, s4_cfg=s4, kd_cfg=None, state_dict=released_weights())
    assert list(loss.final) == ["original"]
    assert list(loss.penultimate) == ["original", "alternative"]


def test_a_view_of_penultimate_weight_zero_still_gives_queries() -> None:
    s3 = changed(S3, alpha=[0.0, 0.06])
    loss = loss_from_released(s3_cfg=s3, s4_cfg=S4, kd_cfg=None, state_dict=released_weights())
    assert list(loss.penultimate) == ["original", "alternative"]
    assert loss.final["original"].own_query is None
    assert loss.weights.tpp_original == 0


def test_a_view_of_weight_zero_at_both_stages_has_no_projectors() -> None:
    s3, s4 = (changed(cfg, alpha=[0.08, 0.0]) for cfg in (S3, S4))
    loss = loss_from_released(s3_cfg=s3, s4_cfg=s4, kd_cfg=None, state_dict=released_weights())
    assert list(loss.penultimate) == list(loss.final) == ["original"]


def test_missing_released_names_are_listed() -> None:
    weights = released_weights()
    del weights["loss_fmd_s4.projector_0.norm.bias"]
    del weights["loss_fmd_s3.projector_1.query.weight"]
    with refused("final.original.norm.bias", "penultimate.alternative.own_query"):
        loss_from_released(s3_cfg=S3, s4_cfg=S4, kd_cfg=KD, state_dict=weights)


def test_left_over_released_names_are_listed() -> None:
    weights = released_weights()
    weights["loss_fmd_s4.projector_1.query.weight"] = torch.zeros(2, 8)
    with refused("left over", "final.alternative.own_query"):
        loss_from_released(s3_cfg=S3, s4_cfg=S4, kd_cfg=KD, state_dict=weights)


@pytest.mark.parametrize(
    "name",
    [
        "loss_fmd_s4.projector_0.gamma",
        "loss_fmd_s4.projector_2.pos_embed",
        "loss_fmd_s5.projector_0.pos_embed",
        "backbone.layer4.norm.weight",
        "mask",
    ],
)
def test_names_outside_the_released_projectors_are_refused(name: str) -> None:
    weights = {**released_weights(), name: torch.zeros(1)}
    with refused(name):
        loss_from_released(s3_cfg=S3, s4_cfg=S4, kd_cfg=KD, state_dict=weights)


def test_differing_softmax_scales_are_refused() -> None:
    s4 = changed(S4, softmax_scale=[5.0, 2.5])
    with refused("softmax_scale", "2.5", "5.0"):
        loss_from_released(s3_cfg=S3, s4_cfg=s4, kd_cfg=KD, state_dict=released_weights())
