"""Which of a timm model's features are tapped: what the user says, and what follows from shapes."""

from dataclasses import dataclass, fields
from typing import Literal

from torch import Tensor

from scalekd.errors import InputError

Norm = Literal["final", "pooled", "none"]


@dataclass(frozen=True)
class FeatureSelection:
    """Which features of a timm model are tapped; None is the default, resolved for the model.

    Args:
        penultimate: index among the outputs of timm's forward_intermediates, from the end where
            it is negative. Default: of a pyramid the last one on a larger grid than the final;
            where all grids are the same, block (depth * 2) // 3 of a student, and of a teacher
            the block before its last sixth.
        final: index of the final feature; default the last.
        norm: of the final feature. final: past the model's final norm; pooled: through the norm
            that timm runs after pooling, on each token; none: as the last stage leaves it.
            Default: what the model itself pools.
    """

    penultimate: int | None = None
    final: int | None = None
    norm: Norm | None = None

    def with_defaults(self, defaults: "FeatureSelection") -> "FeatureSelection":
        """These features, and `defaults` where they say nothing."""
        names = [f.name for f in fields(self)]
        said = {n: getattr(self, n) for n in names if getattr(self, n) is not None}
        return FeatureSelection(**{n: getattr(defaults, n) for n in names} | said)


@dataclass(frozen=True)
class ResolvedSelection:
    """`FeatureSelection`, resolved.

    whole: whether the final feature is the output of `forward_features`, past whatever the model
        does after its last stage; else the last stage's own.
    norm, norm_module: of the final feature, and its name in the model.
    """

    penultimate: int
    final: int
    whole: bool
    norm: Norm
    norm_module: str | None


@dataclass(frozen=True)
class ShapeProbe:
    """What a pass over a model showed.

    y_fits: whether the output of `forward_features` has the last intermediate's shape.
    final_norm: name of the norm that made this output, if one did.
    pooled_norm: name of the norm that the head runs on what it pooled, if it does.
    """

    name: str
    maps: list[Tensor]
    y_fits: bool
    final_norm: str | None
    pooled_norm: str | None
    classes: int | None


def resolve_selection(
    features: FeatureSelection, seen: ShapeProbe, is_teacher: bool
) -> ResolvedSelection:
    """The plan for a model; InputError where it has not what `features` ask for."""
    last = len(seen.maps) - 1
    if last < 1:
        raise InputError(f"{seen.name} has one feature, and two are needed: take another model")
    final = last if features.final is None else _from_start(features.final, last)
    if not 0 < final <= last:
        raise InputError(
            f"{seen.name} has features 0 to {last} and the final one is to be number "
            f"{features.final}: it must be 1 to {last}"
        )
    if features.penultimate is not None:
        penultimate = _from_start(features.penultimate, last)
    else:
        penultimate = _penultimate([tuple(m.shape[2:]) for m in seen.maps[: final + 1]], is_teacher)
    if not 0 <= penultimate < final:
        raise InputError(
            f"{seen.name} has features 0 to {last} and the penultimate one is to be number "
            f"{features.penultimate}: it must come before the final one, number {final}"
        )
    whole = seen.y_fits and final == last
    if features.norm == "final" and not (whole and seen.final_norm):
        raise InputError(
            f"{seen.name} has no norm between feature {final} and its pooling: take the norm "
            f"{'pooled or none' if seen.pooled_norm else 'none'}"
        )
    if features.norm == "pooled" and not (seen.pooled_norm and final == last):
        raise InputError(
            f"{seen.name} has no norm after its pooling of feature {final}: take the norm "
            f"{'final or none' if seen.final_norm else 'none'}"
        )
    if features.norm == "pooled":
        return ResolvedSelection(penultimate, final, False, "pooled", seen.pooled_norm)
    whole = whole and features.norm != "none"
    normed = whole and seen.final_norm is not None
    return ResolvedSelection(
        penultimate,
        final,
        whole,
        "final" if normed else "none",
        seen.final_norm if normed else None,
    )


def _from_start(index: int, last: int) -> int:
    return index + last + 1 if index < 0 else index


def _penultimate(grids: list[tuple[int, ...]], is_teacher: bool) -> int:
    final = len(grids) - 1
    larger = [i for i in range(final) if grids[i] != grids[final]]
    if larger:
        return larger[-1]
    if is_teacher:
        return max(0, final - max(1, len(grids) // 6))
    return max(0, min(len(grids) * 2 // 3, final - 1))
