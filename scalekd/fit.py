"""How the features of a pair are projected, in one line."""

from scalekd.distiller import Distiller
from scalekd.features import MapShape
from scalekd.networks.feature_selection import ResolvedSelection
from scalekd.scale_kd import ScaleKD


def describe_fit(pair: Distiller) -> str:
    """Return one line with everything that was resolved for a pair, to print before training."""
    teacher, student = pair.teacher, pair.student_extractor.shapes
    if not isinstance(pair, ScaleKD):
        return (
            f"{format_map(student.final)} and {format_map(teacher.shapes.final)} "
            f"{describe_norm(teacher.extractor.selection)}"
        )
    tail = format_modules(teacher.tail_modules)
    return (
        f"{format_map(student.penultimate)} -> {format_map(teacher.shapes.penultimate)} -> "
        f"{tail} (replayed, differs by {teacher.difference:.0e}); "
        f"{format_map(student.final)} -> {format_map(teacher.shapes.final)} "
        f"{describe_norm(teacher.extractor.selection)}; "
        f"heads {pair.heads[0]} and {pair.heads[1]}"
    )


def describe_norm(selection: ResolvedSelection | None) -> str:
    """Say which final norm a final feature has passed."""
    if selection is None or selection.norm == "none":
        return "without a final norm"
    is_final = selection.norm == "final"
    kind = "after its final norm" if is_final else "through the norm after pooling"
    return f"{kind} ({selection.norm_module})"


def format_map(shape: MapShape | None) -> str:
    """Write a map's shape as channels x height x width; "-" where there is none."""
    return "-" if shape is None else "x".join(map(str, shape))


def format_modules(names: list[str], most: int = 5) -> str:
    """List the names of modules; of more than `most` the first ones and the last."""
    if len(names) <= most:
        return ", ".join(names)
    return f"{', '.join(names[: most - 2])}, ... {names[-1]} ({len(names)} modules)"
