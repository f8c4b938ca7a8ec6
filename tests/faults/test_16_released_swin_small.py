"""The released configuration of Swin-S -> ResNet-50 sets self_query at both stages; refused."""

import torch
from helpers.goldens import golden
from helpers.warned import warned

from scalekd.method import loss_from_released


def test_queries_of_the_final_stage_beside_a_penultimate_stage_are_ignored_and_said_to_be() -> None:
    stored = golden("A_res50like")
    given = {"s3_cfg": stored["s3_cfg"], "kd_cfg": stored["kd_cfg"]}
    expected = loss_from_released(**given, s4_cfg=stored["s4_cfg"], state_dict=stored["state_dict"])
    height, width = stored["s4_cfg"]["query_hw"]
    queries = {
        f"loss_fmd_s4.projector_{number}.query.weight": torch.randn(
            height * width, stored["s4_cfg"]["teacher_dims"]
        )
        for number in range(2)
    }
    s4 = {**stored["s4_cfg"], "self_query": True}
    with warned("self_query of the final stage is True .* ignored .*projector_0.query.weight"):
        loss = loss_from_released(
            **given, s4_cfg=s4, state_dict={**stored["state_dict"], **queries}
        )
    assert loss.weights == expected.weights
    ours, theirs = loss.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_released_weights_without_an_alternative_final_view_are_accepted() -> None:
    stored = golden("A_res50like")
    s4 = {**stored["s4_cfg"], "self_query": True, "alpha": [0.08, 0.0]}
    with warned("none in state_dict"):
        loss = loss_from_released(
            s3_cfg=stored["s3_cfg"],
            s4_cfg=s4,
            kd_cfg=stored["kd_cfg"],
            state_dict=stored["state_dict"],
        )
    assert set(loss.final) == {"original"}
    assert loss.weights.final_alternative == 0
