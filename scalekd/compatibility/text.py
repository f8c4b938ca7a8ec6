"""A checked pair, and lists of known models, as text for a person."""

from dataclasses import asdict

from scalekd.compatibility.check import NetworkReport, PairReport
from scalekd.compatibility.known_models import KnownModel, find_models, load_sweep
from scalekd.fit import describe_norm, format_map, format_modules


def format_report(pair: PairReport) -> str:
    """Return what `scalekd check` prints: a label of 11 characters and text on each line."""
    verified = "verified" if pair.verified else "NOT verified"
    student, teacher = pair.student.shapes, pair.teacher.shapes
    weights = asdict(pair.weights)
    active = [f"{term} {weight:g}" for term, weight in weights.items() if weight]
    off = [term for term, weight in weights.items() if not weight]
    rows = [
        *_network_rows("teacher", pair.teacher),
        ("tail", f"{format_modules(pair.tail)}; prefix tokens: {pair.prefix_tokens}"),
        ("", f"{verified}: differs by {pair.difference:.0e} on {pair.verified_on}"),
        *_network_rows("student", pair.student),
        (
            "projectors",
            f"{format_map(student.penultimate)} -> {format_map(teacher.penultimate)} -> tail; "
            f"{format_map(student.final)} -> {format_map(teacher.final)}",
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


def _network_rows(label: str, network: NetworkReport) -> list[tuple[str, str]]:
    config, shapes, selection = network.input, network.shapes, network.selection
    height, width = config.size
    classes = f"{shapes.classes} classes" if shapes.classes else "no classifier"
    mean, std = (", ".join(f"{v:.3g}" for v in values) for values in (config.mean, config.std))
    penultimate, final = format_map(shapes.penultimate), format_map(shapes.final)
    if selection is not None:
        penultimate = f"{selection.penultimate}: {penultimate}"
        final = f"{selection.final}: {final}"
    return [
        (label, f"{network.name}: {network.parameters / 1e6:.2f} M parameters, {classes}"),
        ("", f"images {config.channels}x{height}x{width}, mean {mean}, std {std}"),
        ("", f"penultimate feature {penultimate}, final {final}, {describe_norm(selection)}"),
    ]


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
        f"{model.parameters / 1e6:7.2f} M  {height}x{width} -> {format_map(model.penultimate)}, "
        f"{format_map(model.final)}"
    )
