"""A checked pair, and lists of known models, as text for a person."""

from dataclasses import asdict

from scalekd.compatibility.check import NetworkReport, PairReport
from scalekd.compatibility.known_models import Known, matching, sweep
from scalekd.distiller import ScaleKD
from scalekd.features import MapShape
from scalekd.networks.feature_selection import ResolvedSelection


def format_report(pair: PairReport) -> str:
    """What `scalekd check` prints."""
    kind = "verified" if pair.verified else "NOT verified"
    weights = asdict(pair.weights)
    mine, theirs = pair.student.shapes, pair.teacher.shapes
    on = [f"{name} {weight:g}" for name, weight in weights.items() if weight]
    off = [name for name, weight in weights.items() if not weight]
    rows = [
        *_side("teacher", pair.teacher),
        ("tail", f"{_modules(pair.tail)}; prefix tokens beside: {pair.prefix_tokens}"),
        ("", f"{kind}: differs by {pair.difference:.0e} on {pair.verified_on}"),
        *_side("student", pair.student),
        (
            "projectors",
            f"{_map(mine.penultimate)} -> {_map(theirs.penultimate)} -> tail; "
            f"{_map(mine.final)} -> {_map(theirs.final)}",
        ),
        (
            "",
            f"{pair.projector_parameters / 1e6:.2f} M parameters, thrown away after training; "
            f"heads {pair.heads[0]} and {pair.heads[1]}",
        ),
        (
            "GFLOP",
            f"an image and step {pair.step_gflop:.1f}: teacher {pair.teacher.gflop:.1f}, student "
            f"{pair.student.gflop:.1f}, projectors, tail and losses {pair.rest_gflop:.1f}",
        ),
        ("loss", ", ".join(on) or "nothing but the task"),
        *([("off", ", ".join(off))] if off else []),
        *(("note", note.text) for note in pair.notes),
        ("train it", pair.command),
    ]
    return "\n".join(f"{label:<11}{text}".rstrip() for label, text in rows)


def describe_fit(pair: ScaleKD) -> str:
    """In one line what was resolved for a pair; printed before it trains."""
    teacher, student = pair.teacher, pair.student_extractor
    return (
        f"{_map(student.shapes.penultimate)} -> {_map(teacher.shapes.penultimate)} -> "
        f"{_modules(teacher.tail_modules)} (replayed, differs by {teacher.difference:.0e}); "
        f"{_map(student.shapes.final)} -> {_map(teacher.shapes.final)} "
        f"{_norm(teacher.extractor.selection)}; "
        f"heads {pair.heads[0]} and {pair.heads[1]}"
    )


def _side(label: str, side: NetworkReport) -> list[tuple[str, str]]:
    height, width = side.input.size
    classes = f"{side.shapes.classes} classes" if side.shapes.classes else "no classifier"
    statistics = (side.input.mean, side.input.std)
    mean, std = (", ".join(f"{v:.3g}" for v in values) for values in statistics)
    penultimate = f"{_index(side.plan, 'penultimate')}{_map(side.shapes.penultimate)}"
    final = f"{_index(side.plan, 'final')}{_map(side.shapes.final)}"
    return [
        (label, f"{side.name}: {side.parameters / 1e6:.2f} M parameters, {classes}"),
        ("", f"images {side.input.channels}x{height}x{width}, mean {mean}, std {std}"),
        ("", f"penultimate feature {penultimate}, final {final}, {_norm(side.plan)}"),
    ]


def _index(plan: ResolvedSelection | None, which: str) -> str:
    return "" if plan is None else f"{getattr(plan, which)}: "


def _norm(plan: ResolvedSelection | None) -> str:
    if plan is None or plan.norm == "none":
        return "without a final norm"
    kind = "past its final norm" if plan.norm == "final" else "through the norm after pooling"
    return f"{kind} ({plan.norm_module})"


def _map(shape: MapShape | None) -> str:
    return "-" if shape is None else "x".join(map(str, shape))


def _modules(names: list[str], most: int = 5) -> str:
    if len(names) <= most:
        return ", ".join(names)
    return f"{', '.join(names[: most - 2])}, ... {names[-1]} ({len(names)} modules)"


def format_known_models(pattern: str) -> str:
    """What `scalekd models` prints; a model that does not fit comes with the reason."""
    found = matching(pattern)
    result = sweep()
    title = f"tried on {result.date} with timm {result.timm} and torch {result.torch}"
    if not found:
        return f"no model like {pattern!r} was {title}; `scalekd check` tries any"
    lines = [f"{len(found)} of {len(result.models)}, {title}; `scalekd check` tries any other"]
    for model in found:
        lines.append(f"{model.role}  {model.name:<38} {_outcome(model)}")
    return "\n".join(lines)


def _outcome(model: Known) -> str:
    if model.status == "refused":
        return f"refused: {model.reason}"
    height, width = model.size
    return (
        f"{model.parameters / 1e6:7.2f} M  {height}x{width} -> {_map(model.penultimate)}, "
        f"{_map(model.final)}"
    )
