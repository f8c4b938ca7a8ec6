"""A checked pair, and lists of known models, as text for a person."""

from dataclasses import asdict

from scalekd.compatibility.check import NetworkReport, PairReport
from scalekd.compatibility.known_models import KnownModel, find_models, load_sweep
from scalekd.distiller import ScaleKD
from scalekd.features import MapShape
from scalekd.networks.feature_selection import ResolvedSelection


def format_report(pair: PairReport) -> str:
    """Return what `scalekd check` prints: a label of 11 characters and text on each line."""
    verified = "verified" if pair.verified else "NOT verified"
    student, teacher = pair.student.shapes, pair.teacher.shapes
    weights = asdict(pair.weights)
    active = [f"{term} {weight:g}" for term, weight in weights.items() if weight]
    off = [term for term, weight in weights.items() if not weight]
    rows = [
        *_network_rows("teacher", pair.teacher),
        ("tail", f"{_format_modules(pair.tail)}; prefix tokens: {pair.prefix_tokens}"),
        ("", f"{verified}: differs by {pair.difference:.0e} on {pair.verified_on}"),
        *_network_rows("student", pair.student),
        (
            "projectors",
            f"{_format_map(student.penultimate)} -> {_format_map(teacher.penultimate)} -> tail; "
            f"{_format_map(student.final)} -> {_format_map(teacher.final)}",
        ),
        (
            "",
            f"{pair.projector_parameters / 1e6:.2f} M parameters, discarded after training; "
            f"heads {pair.heads[0]} and {pair.heads[1]}",
        ),
        (
            "GFLOP",
            f"a step {pair.step_gflop:.1f} for one image: teacher {pair.teacher.gflop:.1f}, "
            f"student {pair.student.gflop:.1f}, projectors, tail and losses {pair.rest_gflop:.1f}",
        ),
        ("loss", ", ".join(active) or "only the task's"),
        *([("off", ", ".join(off))] if off else []),
        *(("note" if note.level == "info" else "warning", note.text) for note in pair.notes),
        ("train it", pair.command),
    ]
    return "\n".join(f"{label:<11}{text}".rstrip() for label, text in rows)


def describe_fit(pair: ScaleKD) -> str:
    """Return one line with everything that was resolved for a pair, to print before training."""
    teacher, student = pair.teacher, pair.student_extractor.shapes
    tail = _format_modules(teacher.tail_modules)
    return (
        f"{_format_map(student.penultimate)} -> {_format_map(teacher.shapes.penultimate)} -> "
        f"{tail} (replayed, differs by {teacher.difference:.0e}); "
        f"{_format_map(student.final)} -> {_format_map(teacher.shapes.final)} "
        f"{_describe_norm(teacher.extractor.selection)}; "
        f"heads {pair.heads[0]} and {pair.heads[1]}"
    )


def _network_rows(label: str, network: NetworkReport) -> list[tuple[str, str]]:
    config, shapes, selection = network.input, network.shapes, network.selection
    height, width = config.size
    classes = f"{shapes.classes} classes" if shapes.classes else "no classifier"
    mean, std = (", ".join(f"{v:.3g}" for v in values) for values in (config.mean, config.std))
    penultimate, final = _format_map(shapes.penultimate), _format_map(shapes.final)
    if selection is not None:
        penultimate = f"{selection.penultimate}: {penultimate}"
        final = f"{selection.final}: {final}"
    return [
        (label, f"{network.name}: {network.parameters / 1e6:.2f} M parameters, {classes}"),
        ("", f"images {config.channels}x{height}x{width}, mean {mean}, std {std}"),
        ("", f"penultimate feature {penultimate}, final {final}, {_describe_norm(selection)}"),
    ]


def _describe_norm(selection: ResolvedSelection | None) -> str:
    if selection is None or selection.norm == "none":
        return "without a final norm"
    is_final = selection.norm == "final"
    kind = "after its final norm" if is_final else "through the norm after pooling"
    return f"{kind} ({selection.norm_module})"


def _format_map(shape: MapShape | None) -> str:
    return "-" if shape is None else "x".join(map(str, shape))


def _format_modules(names: list[str], most: int = 5) -> str:
    if len(names) <= most:
        return ", ".join(names)
    return f"{', '.join(names[: most - 2])}, ... {names[-1]} ({len(names)} modules)"


def format_known_models(pattern: str) -> str:
    """Return what `scalekd models` prints: a line for each model, with the reason of a refusal."""
    models = find_models(pattern)
    sweep = load_sweep()
    title = f"tried on {sweep.date} with timm {sweep.timm} and torch {sweep.torch}"
    if not models:
        return f"no model like {pattern!r} was {title}; `scalekd check` tries any"
    lines = [f"{len(models)} of {len(sweep.models)}, {title}; `scalekd check` tries any other"]
    lines += [f"{model.role}  {model.name:<38} {_format_outcome(model)}" for model in models]
    return "\n".join(lines)


def _format_outcome(model: KnownModel) -> str:
    if model.status == "refused":
        return f"refused: {model.reason}"
    height, width = model.size
    return (
        f"{model.parameters / 1e6:7.2f} M  {height}x{width} -> {_format_map(model.penultimate)}, "
        f"{_format_map(model.final)}"
    )
