"""Names and arguments of the authors' released code, translated to ours.

Their `loss_fmd_s3` and `loss_fmd_s4` are the penultimate and the final stage, their `projector_0`
and `projector_1` the original and the alternative view.
"""

from typing import Any

from torch import Tensor, nn

from scalekd.errors import InputError
from scalekd.features import FeatureShapes
from scalekd.method.projector import ChannelNorm

STAGES = {"loss_fmd_s3": "penultimate", "loss_fmd_s4": "final"}
PROJECTORS = {"projector_0": "original", "projector_1": "alternative"}
PARTS = {
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


def arguments(
    penultimate: dict[str, Any] | None,
    final: dict[str, Any],
    kd: dict[str, Any] | None,
    state_dict: dict[str, Tensor],
) -> tuple[dict[str, Any], dict[str, float]]:
    """Arguments of `ScaleKDLoss`, and of its `LossWeights`, for the released ones."""
    if penultimate and final["self_query"]:
        raise InputError(
            "self_query of the final stage is True beside a penultimate stage: the "
            "released pairs have one or the other; set it to False"
        )
    s3, t3 = _shapes(penultimate) if penultimate else (None, None)
    s4, t4 = _shapes(final)
    scales = {s for cfg in (penultimate, final) if cfg for s in cfg["softmax_scale"]}
    if len(scales) != 1:
        raise InputError(f"softmax_scale differs between projectors, {sorted(scales)}: one is used")
    batch_norm = any(name.endswith("running_mean") for name in state_dict)
    weights = {"tpp_original": 0.0, "tpp_alternative": 0.0, "logits": kd["alpha"] if kd else 0.0}
    weights["final_original"], weights["final_alternative"] = final["alpha"]
    if penultimate:
        weights["tpp_original"], weights["tpp_alternative"] = penultimate["alpha"]
    return {
        "student": FeatureShapes(s3, s4),
        "teacher": FeatureShapes(t3, t4),
        "heads": (penultimate.get("num_heads", 8) if penultimate else 8, final.get("num_heads", 8)),
        "temperature": kd["temp"] if kd else 1.0,
        "norm": nn.BatchNorm2d if batch_norm else ChannelNorm,
        "scale": scales.pop(),
    }, weights


def load(loss: nn.Module, state_dict: dict[str, Tensor]) -> None:
    """Load released weights into `loss`; InputError for names or shapes that do not fit."""
    own = loss.state_dict()
    renamed: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        stage, view, part = _rename(name)
        built = getattr(loss, stage)
        if built and view not in built:
            continue  # of a view that weighs nothing: they compute it all the same, we do not
        # Their 1x1 convolution over the queries is a Linear over tokens.
        pointwise = part == "query_stem.0.weight"
        renamed[f"{stage}.{view}.{part}"] = tensor.flatten(1) if pointwise else tensor
    counters = {name for name in own if name.endswith("num_batches_tracked")}
    problems = {
        "missing": sorted(set(own) - set(renamed) - counters),
        "left over": sorted(set(renamed) - set(own)),
        "of another shape": [n for n in own if n in renamed and own[n].shape != renamed[n].shape],
    }
    if any(problems.values()):
        said = ", ".join(f"{what}: {', '.join(names)}" for what, names in problems.items() if names)
        raise InputError(f"the released weights do not fit (by this package's names): {said}")
    loss.load_state_dict(renamed, strict=False)


def _shapes(cfg: dict[str, Any]) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Student's and teacher's map of one released loss."""
    return (cfg["student_dims"], *cfg["pos_hw"]), (cfg["teacher_dims"], *cfg["query_hw"])


def _rename(name: str) -> tuple[str, str, str]:
    """Our stage, view and name within the projector."""
    stage, projector, part = [*name.split(".", 2), "", ""][:3]
    if stage in STAGES and projector in PROJECTORS:
        for theirs, ours in PARTS.items():
            if part == theirs or part.startswith(theirs + "."):
                return STAGES[stage], PROJECTORS[projector], ours + part[len(theirs) :]
    raise InputError(
        f"{name!r} is no name of the released projectors: give loss_fmd_s3 and loss_fmd_s4"
    )
