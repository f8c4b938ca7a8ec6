"""Which features of a timm model are used: what the user asks for, and defaults from shapes."""

from dataclasses import dataclass, fields
from typing import Literal

from torch import Tensor

from scalekd.errors import InputError
from scalekd.kinds import check_kinds

Norm = Literal["final", "pooled", "none"]


@dataclass(frozen=True)
class FeatureSelection:
    """Which features of a timm model are used; None is the default, which depends on the model.

    Args:
        penultimate: Index of the penultimate feature among the outputs of timm's
            forward_intermediates; a negative index counts from the end. By default, in a pyramid
            the last feature on a larger grid than the final one; where all grids are equal, block
            (depth * 2) // 3 of a student, and of a teacher the block before its last sixth.
        final: Index of the final feature. By default the last one.
        norm: Normalisation of the final feature: final for the output of the model's final norm;
            pooled to run the norm that timm applies after pooling on each token; none for the
            output of the last stage. By default the feature that the model itself pools.
    """

    penultimate: int | None = None
    final: int | None = None
    norm: Norm | None = None

    def __post_init__(self) -> None:
        check_kinds(self)

    def with_defaults(self, defaults: "FeatureSelection") -> "FeatureSelection":
        """Return this selection with `defaults` in place of what is None."""
        names = [f.name for f in fields(self)]
        chosen = {n: getattr(self, n) for n in names if getattr(self, n) is not None}
        return FeatureSelection(**{n: getattr(defaults, n) for n in names} | chosen)


@dataclass(frozen=True)
class ResolvedSelection:
    """A `FeatureSelection` resolved for one model.

    penultimate, final: indices among the outputs of forward_intermediates, from the start.
    from_forward_features: whether the final feature is the output of `forward_features`, after
        whatever the model does after its last stage; else it is the last stage's own output.
    norm, norm_module: of the final feature, and the name of that norm in the model.
    """

    penultimate: int
    final: int
    from_forward_features: bool
    norm: Norm
    norm_module: str | None


@dataclass(frozen=True)
class ShapeProbe:
    """What one pass over a model showed.

    name: of its architecture.
    maps: all outputs of forward_intermediates, (N, C, H, W) each.
    output_is_last_map: whether the output of `forward_features` has the last map's shape.
    final_norm: name of the norm that computed this output, if one did.
    pooled_norm: name of the norm that the head runs on its pooled feature, if it does.
    classes: number of logits; None for a model without classifier.
    """

    name: str
    maps: list[Tensor]
    output_is_last_map: bool
    final_norm: str | None
    pooled_norm: str | None
    classes: int | None


def resolve_selection(
    features: FeatureSelection, probe: ShapeProbe, is_teacher: bool
) -> ResolvedSelection:
    """Resolve the requested `features` for the model of `probe`.

    Raises:
        InputError: the model does not have the requested features or norm.
    """
    penultimate, final = _resolve_indices(features, probe, is_teacher)
    is_output = probe.output_is_last_map and final == len(probe.maps) - 1
    if features.norm == "final" and not (is_output and probe.final_norm):
        raise InputError(
            f"{probe.name} has no norm between feature {final} and its pooling: take the norm "
            f"{'pooled or none' if probe.pooled_norm else 'none'}"
        )
    if features.norm == "pooled":
        if not probe.pooled_norm or final != len(probe.maps) - 1:
            raise InputError(
                f"{probe.name} has no norm after its pooling of feature {final}: take the norm "
                f"{'final or none' if probe.final_norm else 'none'}"
            )
        return ResolvedSelection(penultimate, final, False, "pooled", probe.pooled_norm)
    is_output = is_output and features.norm != "none"
    norm_module = probe.final_norm if is_output else None
    return ResolvedSelection(
        penultimate, final, is_output, "final" if norm_module else "none", norm_module
    )


def _resolve_indices(
    features: FeatureSelection, probe: ShapeProbe, is_teacher: bool
) -> tuple[int, int]:
    """Return the indices of the penultimate and the final feature, counted from the start."""
    last = len(probe.maps) - 1
    if last < 1:
        raise InputError(f"{probe.name} has one feature, and two are needed: take another model")
    final = last if features.final is None else _from_start(features.final, last)
    if not 0 < final <= last:
        raise InputError(
            f"{probe.name} has features 0 to {last}, but the final feature is to be number "
            f"{features.final}: it must be 1 to {last}"
        )
    if features.penultimate is not None:
        penultimate = _from_start(features.penultimate, last)
    else:
        grids = [tuple(m.shape[2:]) for m in probe.maps[: final + 1]]
        penultimate = _default_penultimate(grids, is_teacher)
    if not 0 <= penultimate < final:
        raise InputError(
            f"{probe.name} has features 0 to {last}, but the penultimate feature is to be number "
            f"{features.penultimate}: it must come before the final one, number {final}"
        )
    return penultimate, final


def _from_start(index: int, last: int) -> int:
    return index + last + 1 if index < 0 else index


def _default_penultimate(grids: list[tuple[int, ...]], is_teacher: bool) -> int:
    final = len(grids) - 1
    on_larger_grids = [i for i in range(final) if grids[i] != grids[final]]
    if on_larger_grids:
        return on_larger_grids[-1]
    if is_teacher:
        return max(0, final - max(1, len(grids) // 6))
    return max(0, min(len(grids) * 2 // 3, final - 1))
