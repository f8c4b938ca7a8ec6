"""Try timm's models as teachers and as students, and write which of them fit.

    python experiments/families.py                 # try the models that known_models.json lists
    python experiments/families.py --search        # search timm for each family's models first

Writes scalekd/compatibility/known_models.json and docs/families.md.

Weights are random: a teacher fits if its tail can be found and replayed; a student fits if its
features can be extracted and a training step gives gradients. The smallest model of each family is
tried itself: a teacher's tail is replayed and verified, a student runs one real training step.
Larger models are tried on the meta device, a teacher's tail on a reduced copy.
"""

import argparse
import json
import warnings
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import timm
import torch
from torch import nn

import scalekd  # noqa: F401 -- registers its models
from scalekd import FeatureExtractor, FeatureSelection, FrozenTeacher, InputError, ScaleKD
from scalekd.compatibility.known_models import FILE, KnownModel, Role, Sweep, load_sweep
from scalekd.networks import overrides as families
from scalekd.networks import paper
from scalekd.networks.build import build_model, build_without_weights
from scalekd.networks.teacher.reduced_copy import verify_on_reduced_copy

DOCUMENT = Path(__file__).parents[1] / "docs" / "families.md"
MAX_PARAMETERS = 350e6
"""Of each family the largest model up to this size is tried."""

ALWAYS_TRIED = [
    *dict.fromkeys(name for pair in paper.PAIRS for name in (pair.teacher, pair.student)),
    paper.SWIN_S,
    paper.SWIN_B,
    "vit_base_patch16_224",
    "vit_base_patch14_dinov2",
    "vit_base_patch14_reg4_dinov2",
    "vit_large_patch14_reg4_dinov2",
    "vit_small_patch16_dinov3",
    "vit_large_patch16_dinov3",
    "convnext_base",
    "vit_base_patch16_siglip_224",
    "vit_so400m_patch14_siglip_384",
    "vit_base_patch16_clip_224",
    "eva02_base_patch14_448",
    "eva02_large_patch14_448",
    "beitv2_base_patch16_224",
    "beitv2_large_patch16_224",
    "davit_base",
    "focalnet_base_lrf",
    "caformer_b36",
    "convformer_s18",
    "deit3_base_patch16_224",
    "maxvit_base_tf_224",
    "swinv2_base_window8_256",
    "resnet18",
    "resnet101",
    "efficientnet_b4",
    "mobilenetv3_large_100",
    "mobilenetv4_conv_medium",
    "regnety_016",
]
"""Tried beside each family's smallest and largest: the paper's models, and popular ones."""


def search_models() -> list[tuple[str, str, bool]]:
    """Search timm's registry for each family's models to try.

    Returns:
        Tuples of name, family, and whether the model is the smallest of its family.
    """
    models = []
    for family in timm.list_modules():
        names = [n for n in timm.list_models(module=family) if not _registered_by_scalekd(n)]
        sizes = {name: n for name in names if (n := _count_parameters_of(name))}
        if not sizes:
            continue
        by_size = sorted(sizes, key=lambda name: sizes[name])
        fitting = [n for n in by_size if sizes[n] <= MAX_PARAMETERS] or by_size[:1]
        chosen = {*fitting[:1], *fitting[-1:], *(n for n in ALWAYS_TRIED if n in sizes)}
        models += [(n, family, n == by_size[0]) for n in by_size if n in chosen]
        print(f"{family}: {len(sizes)} models", flush=True)
    return models


def _registered_by_scalekd(name: str) -> bool:
    return not timm.models.model_entrypoint(name).__module__.startswith("timm.")


def _count_parameters_of(name: str) -> int:
    try:
        with torch.device("meta"):
            return sum(p.numel() for p in timm.create_model(name).parameters())
    except Exception:  # a few models need more arguments than their name
        return 0


def try_as_teacher(name: str, family: str, smallest: bool) -> KnownModel:
    """Find and verify the tail of `name`, on the model itself where it is its family's smallest."""
    if smallest:
        model = build_without_weights(name)
        teacher, tried_on = FrozenTeacher(model), "itself"
    else:
        with torch.device("meta"):
            model, _ = build_model(name, "random")
        verified = verify_on_reduced_copy(name, model, {}, None, FeatureSelection(), "own")
        teacher, tried_on = verified.teacher.with_model(model), verified.verified_on
    has_entry = (
        name in paper.TEACHER_SELECTIONS or type(model).__name__ in families.FAMILY_SELECTIONS
    )
    return KnownModel(
        role="teacher",
        name=name,
        family=family,
        status="entry" if has_entry else "verified",
        reason="",
        parameters=_count(model),
        size=teacher.input.size,
        penultimate=teacher.shapes.penultimate,
        final=teacher.shapes.final,
        norm=teacher.extractor.selection.norm,
        tail=teacher.tail_modules,
        tried_on=tried_on,
    )


def try_as_student(name: str, family: str, smallest: bool) -> KnownModel:
    """Extract the features of `name`; run a real step where it is its family's smallest."""
    with torch.device("meta"):
        model, _ = build_model(name, "random")
    extractor = FeatureExtractor(model)
    if smallest:
        _run_training_step(build_without_weights(name), extractor)
    return KnownModel(
        role="student",
        name=name,
        family=family,
        status="entry" if name in paper.STUDENT_SELECTIONS else "verified",
        reason="",
        parameters=_count(model),
        size=extractor.input.size,
        penultimate=extractor.shapes.penultimate,
        final=extractor.shapes.final,
        norm=extractor.selection.norm,
        tail=[],
        tried_on="one training step" if smallest else "the meta device",
    )


def _run_training_step(student: nn.Module, extractor: FeatureExtractor) -> None:
    torch.manual_seed(0)
    teacher = FrozenTeacher(build_without_weights("test_vit"))
    distiller = ScaleKD(teacher, student).train()
    images = torch.randn(2, extractor.input.channels, *extractor.input.size)
    targets = torch.tensor([3, 141]) if extractor.shapes.classes else None
    distiller(images, targets).loss.backward()
    gradients = [p.grad for p in distiller.criterion.parameters()]
    gradients += [p.grad for p in student.parameters() if p.grad is not None]
    if not all(g is not None and bool(g.isfinite().all()) for g in gradients):
        raise InputError("a gradient is missing or non-finite")


def try_model(role: Role, name: str, family: str, smallest: bool) -> KnownModel:
    """Try `name` in this role; a model that does not fit comes with the reason."""
    try_in_role = try_as_teacher if role == "teacher" else try_as_student
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return try_in_role(name, family, smallest)
    except InputError as error:
        with torch.device("meta"):
            count = _count(timm.create_model(name))
        size = tuple(timm.get_pretrained_cfg(name).input_size[-2:])
        tried_on = "itself" if smallest else "the meta device"
        return KnownModel(
            role=role,
            name=name,
            family=family,
            status="refused",
            reason=str(error),
            parameters=count,
            size=size,
            penultimate=None,
            final=None,
            norm="",
            tail=[],
            tried_on=tried_on,
        )


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def format_document(results: Sweep) -> str:
    """Format docs/families.md."""
    teachers, students = (
        [m for m in results.models if m.role == r] for r in ("teacher", "student")
    )

    def count_families(models: list[KnownModel], *statuses: str) -> int:
        return len({m.family for m in models if m.status in statuses})

    entries = [m for m in teachers if m.status == "entry"]
    lines = [
        "# Which of timm's models fit",
        "",
        "Made by `python experiments/families.py`; do not edit.",
        f"{results.date}, timm {results.timm}, torch {results.torch}, random weights.",
        "",
        f"- Teachers: in {count_families(teachers, 'verified')} of "
        f"{len({m.family for m in teachers})} families there are models whose tail is found, "
        f"replayed and verified without an entry for them; {len(entries)} models have an entry "
        f"({', '.join(m.name for m in entries)}).",
        f"- Students: {sum(m.status != 'refused' for m in students)} of {len(students)} "
        f"architectures, from {count_families(students, 'verified', 'entry')} families. Of each "
        "family the smallest ran one real training step; the features of the others were "
        "extracted on the meta device.",
        "",
        "A family is a module of timm. A teacher's tail is verified on the model itself for the "
        "smallest model of a family, and on a small copy for the others; training always verifies "
        "the model itself. M is millions of parameters.",
        "",
        "## Teachers",
        "",
        "| family | model | M | image | penultimate | final | norm | tail | outcome |",
        "|---|---|---|---|---|---|---|---|---|",
        *(_row(m, _shorten(m.tail)) for m in teachers),
        "",
        "## Students",
        "",
        "| family | model | M | image | penultimate | final | norm | tried with | outcome |",
        "|---|---|---|---|---|---|---|---|---|",
        *(_row(m, m.tried_on) for m in students),
    ]
    return "\n".join(lines) + "\n"


def _row(model: KnownModel, tail_or_trial: str) -> str:
    shapes = ("x".join(map(str, s)) if s else "" for s in (model.penultimate, model.final))
    image = "x".join(map(str, model.size))
    outcome = f"refused: {model.reason}" if model.status == "refused" else model.status
    millions = f"{model.parameters / 1e6:.1f}"
    cells = [model.family, model.name, millions, image, *shapes, model.norm, tail_or_trial, outcome]
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _shorten(tail: list[str]) -> str:
    return ", ".join(tail) if len(tail) <= 3 else f"{tail[0]} ... {tail[-1]} ({len(tail)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--search", action="store_true", help="Search timm for models first.")
    options = parser.parse_args()
    if options.search or not FILE.is_file():
        models = search_models()
    else:
        listed = [m for m in load_sweep().models if m.role == "teacher"]
        models = [(m.name, m.family, m.tried_on == "itself") for m in listed]
    results = []
    for name, family, smallest in models:
        for role in ("teacher", "student"):
            result = try_model(role, name, family, smallest)
            results.append(result)
            print(f"{role} {name}: {result.status} {result.reason}", flush=True)
    write(results)


def write(models: list[KnownModel]) -> None:
    """Write known_models.json and docs/families.md."""
    today = datetime.now(UTC).date().isoformat()
    results = Sweep(today, timm.__version__, torch.__version__, models)
    lines = ",\n".join(json.dumps(asdict(m)) for m in models)
    head = json.dumps({k: v for k, v in asdict(results).items() if k != "models"})[:-1]
    FILE.write_text(f'{head}, "models": [\n{lines}\n]}}\n')
    DOCUMENT.write_text(format_document(results))
    print(f"wrote {FILE} and {DOCUMENT}")


if __name__ == "__main__":
    main()
