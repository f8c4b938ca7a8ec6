"""`ScaleKDLoss` from the arguments and weights of the authors' released code.

Their `loss_fmd_s3` and `loss_fmd_s4` are the penultimate and the final stage, and their
`projector_0` and `projector_1` the original and the alternative view.
"""

import logging
from typing import Any

from torch import Tensor, nn

from scalekd.errors import InputError
from scalekd.features import FeatureShapes
from scalekd.method.perception import VIEWS, ScaleKDLoss
from scalekd.method.projector import ChannelNorm
from scalekd.method.weights import LossWeights

logger = logging.getLogger(__name__)

STAGES = {"loss_fmd_s3": "penultimate", "loss_fmd_s4": "final"}
PROJECTORS = {"projector_0": "original", "projector_1": "alternative"}
PARAMETERS = {
    "pos_embed": "position",
    "query.weight": "own_query",
    "proj_pos.0": "query_stem.0",
    "proj_student.0": "stem.0",
    "proj_student.1": "stem.1",
    "pos_attention.q": "to_query",
    "pos_attention.k": "to_key",
    "pos_attention.v": "to_value",
    "pos_attention.proj": "to_output",
    "ffn.layers.0.0": "feed_forward.0",
    "ffn.layers.1": "feed_forward.2",
    "norm": "norm",
}


def loss_from_released(
    *,
    s3_cfg: dict[str, Any] | None,
    s4_cfg: dict[str, Any],
    kd_cfg: dict[str, Any] | None,
    state_dict: dict[str, Tensor],
) -> ScaleKDLoss:
    """Build the loss that the released code trained, with its weights, to continue or to compare.

    Args:
        s3_cfg: The released arguments of the penultimate stage, or None without TPP.
        s4_cfg: The released arguments of the final stage.
        kd_cfg: The released arguments of logit distillation, or None without it.
        state_dict: Weights under their released names, `loss_fmd_s3.projector_0.pos_embed`, ...

    Raises:
        InputError: Names that are missing or left over, shapes that do not fit, or arguments that
            no released configuration combines. Queries that the final stage has of its own beside a
            penultimate stage are ignored with a warning, because the released code never uses them.
    """
    state_dict = dict(state_dict)
    if s3_cfg and s4_cfg["self_query"]:
        unused = [n for n in state_dict if n.startswith("loss_fmd_s4.") and ".query." in n]
        for name in unused:
            del state_dict[name]
        logger.warning(
            "self_query of the final stage is True beside a penultimate stage, whose output the "
            "released code takes as queries instead: the final stage's own are ignored (%s)",
            ", ".join(unused) or "none in state_dict",
        )
    s3, t3 = _shapes(s3_cfg) if s3_cfg else (None, None)
    s4, t4 = _shapes(s4_cfg)
    scales = {s for cfg in (s3_cfg, s4_cfg) if cfg for s in cfg["softmax_scale"]}
    if len(scales) != 1:
        raise InputError(f"softmax_scale differs between projectors, {sorted(scales)}: one is used")
    weights = {"logits": kd_cfg["alpha"] if kd_cfg else 0.0}
    weights["final_original"], weights["final_alternative"] = s4_cfg["alpha"]
    weights["tpp_original"], weights["tpp_alternative"] = s3_cfg["alpha"] if s3_cfg else (0.0, 0.0)
    # The released tail gives queries also to a view of which only the final term has a weight.
    with_tail = {f"tpp_{v}": 1.0 for v in VIEWS if s3_cfg and weights[f"final_{v}"]}
    batch_norm = any(name.endswith("running_mean") for name in state_dict)
    loss = ScaleKDLoss(
        student=FeatureShapes(s3, s4),
        teacher=FeatureShapes(t3, t4),
        heads=(s3_cfg.get("num_heads", 8) if s3_cfg else 8, s4_cfg.get("num_heads", 8)),
        weights=LossWeights(**{**weights, **with_tail}),
        temperature=kd_cfg["temp"] if kd_cfg else 1.0,
        norm=nn.BatchNorm2d if batch_norm else ChannelNorm,
        scale=scales.pop(),
    )
    loss.weights = LossWeights(**weights)
    _load(loss, state_dict)
    return loss


def _load(loss: ScaleKDLoss, state_dict: dict[str, Tensor]) -> None:
    """Load released weights into `loss`; InputError for names or shapes that do not fit."""
    expected = loss.state_dict()
    renamed: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        stage, view, parameter = _rename(name)
        projectors = getattr(loss, stage)
        if projectors and view not in projectors:
            continue  # The released code also computes a view of weight 0; this package does not.
        # The released 1x1 convolution over the queries is a Linear over tokens here.
        pointwise = parameter == "query_stem.0.weight"
        renamed[f"{stage}.{view}.{parameter}"] = tensor.flatten(1) if pointwise else tensor
    counters = {name for name in expected if name.endswith("num_batches_tracked")}
    both = expected.keys() & renamed.keys()
    problems = {
        "missing": sorted(expected.keys() - renamed.keys() - counters),
        "left over": sorted(renamed.keys() - expected.keys()),
        "of another shape": sorted(n for n in both if expected[n].shape != renamed[n].shape),
    }
    if any(problems.values()):
        listed = ", ".join(f"{what}: {', '.join(n)}" for what, n in problems.items() if n)
        raise InputError(f"the released weights do not fit (by this package's names): {listed}")
    loss.load_state_dict(renamed, strict=False)


def _shapes(cfg: dict[str, Any]) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """The student's and the teacher's (channels, height, width) of one released stage."""
    return (cfg["student_dims"], *cfg["pos_hw"]), (cfg["teacher_dims"], *cfg["query_hw"])


def _rename(name: str) -> tuple[str, str, str]:
    """This package's stage, view and parameter name for a released name."""
    stage, projector, parameter = [*name.split(".", 2), "", ""][:3]
    if stage in STAGES and projector in PROJECTORS:
        for released, ours in PARAMETERS.items():
            if parameter == released or parameter.startswith(released + "."):
                suffix = parameter[len(released) :]
                return STAGES[stage], PROJECTORS[projector], ours + suffix
    raise InputError(
        f"{name!r} is no name of the released projectors: give loss_fmd_s3 and loss_fmd_s4"
    )
