"""Try timm's models as teachers and as students; writes two files.

They are scalekd/compatibility/known_models.json and docs/families.md.

    python experiments/families.py                 # the models that known_models.json lists
    python experiments/families.py --search        # look for each family's members anew first

Weights are random: what is tried is whether a teacher's tail can be found and replayed, and whether
a student can be tapped and learns. Each family's smallest member is tried as it is (a teacher's
tail replayed and verified; a student's one real training step), larger ones on the meta device and
a teacher's tail on a small copy.
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
from scalekd.compatibility.known_models import FILE, Known, Role, Sweep, sweep
from scalekd.networks import overrides as families
from scalekd.networks import paper
from scalekd.networks.build import build_model, build_without_weights
from scalekd.networks.teacher.reduced_copy import verify_on_reduced_copy

DOCUMENT = Path(__file__).parents[1] / "docs" / "families.md"
LARGEST = 350e6
NAMED = [
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
"""Beside each family's smallest and largest: the paper's, and what people ask for."""


def members() -> list[tuple[str, str, bool]]:
    """Names from timm's registry, with their family and whether they are its smallest member."""
    found = []
    for family in timm.list_modules():
        names = [n for n in timm.list_models(module=family) if not _ours(n)]
        sizes = {name: n for name in names if (n := _parameters(name))}
        if not sizes:
            continue
        by_size = sorted(sizes, key=lambda name: sizes[name])
        fitting = [n for n in by_size if sizes[n] <= LARGEST] or by_size[:1]
        chosen = {*fitting[:1], *fitting[-1:], *(n for n in NAMED if n in sizes)}
        found += [(n, family, n == by_size[0]) for n in by_size if n in chosen]
        print(f"{family}: {len(sizes)} models", flush=True)
    return found


def _ours(name: str) -> bool:
    return not timm.models.model_entrypoint(name).__module__.startswith("timm.")


def _parameters(name: str) -> int:
    try:
        with torch.device("meta"):
            return sum(p.numel() for p in timm.create_model(name).parameters())
    except Exception:  # a few need more than a name
        return 0


def as_teacher(name: str, family: str, itself: bool) -> Known:
    """Find and verify the tail of `name`."""
    if itself:
        model = build_without_weights(name)
        teacher, on = FrozenTeacher(model), "itself"
    else:
        with torch.device("meta"):
            model, _ = build_model(name, "random")
        verified = verify_on_reduced_copy(name, model, {}, None, FeatureSelection(), "own")
        teacher, on = verified.teacher.with_model(model), verified.verified_on
    entry = name in paper.TEACHER_SELECTIONS or type(model).__name__ in families.FAMILY_SELECTIONS
    return Known(
        role="teacher",
        name=name,
        family=family,
        status="entry" if entry else "verified",
        reason="",
        parameters=_count(model),
        size=teacher.input.size,
        penultimate=teacher.shapes.penultimate,
        final=teacher.shapes.final,
        norm=teacher.extractor.selection.norm,
        tail=teacher.tail_modules,
        on=on,
    )


def as_student(name: str, family: str, itself: bool) -> Known:
    """Tap `name`, and if it `itself` is to be tried, let it learn for one step."""
    with torch.device("meta"):
        model, _ = build_model(name, "random")
    extractor = FeatureExtractor(model)
    if itself:
        _learn(build_without_weights(name), extractor)
    return Known(
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
        on="one training step" if itself else "the meta device",
    )


def _learn(student: nn.Module, extractor: FeatureExtractor) -> None:
    torch.manual_seed(0)
    teacher = FrozenTeacher(build_without_weights("test_vit"))
    distiller = ScaleKD(teacher, student).train()
    images = torch.randn(2, extractor.input.channels, *extractor.input.size)
    targets = torch.tensor([3, 141]) if extractor.shapes.classes else None
    outcome = distiller(images, targets)
    outcome.loss.backward()
    gradients = [p.grad for p in distiller.criterion.parameters()]
    gradients += [p.grad for p in student.parameters() if p.grad is not None]
    if not all(g is not None and bool(g.isfinite().all()) for g in gradients):
        raise InputError("a gradient is missing, or not finite")


def tried(role: Role, name: str, family: str, itself: bool) -> Known:
    """What became of `name` in this role."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return (as_teacher if role == "teacher" else as_student)(name, family, itself)
    except InputError as error:
        with torch.device("meta"):
            count = _count(timm.create_model(name))
        size = tuple(timm.get_pretrained_cfg(name).input_size[-2:])
        on = "itself" if itself else "the meta device"
        return Known(role, name, family, "refused", str(error), count, size, None, None, "", [], on)


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def document(done: Sweep) -> str:
    """docs/families.md."""
    teachers, students = ([m for m in done.models if m.role == r] for r in ("teacher", "student"))

    def families_of(models: list[Known], *statuses: str) -> int:
        return len({m.family for m in models if m.status in statuses})

    entries = [m for m in teachers if m.status == "entry"]
    lines = [
        "# Which of timm's models fit",
        "",
        "Made by `python experiments/families.py`; do not edit.",
        f"{done.date}, timm {done.timm}, torch {done.torch}, random weights.",
        "",
        f"- Teachers: in {families_of(teachers, 'verified')} of "
        f"{len({m.family for m in teachers})} families there are models whose tail is found, "
        f"replayed and verified without an entry for them; {len(entries)} models have an entry "
        f"({', '.join(m.name for m in entries)}).",
        f"- Students: {sum(m.status != 'refused' for m in students)} of {len(students)} "
        f"architectures, from {families_of(students, 'verified', 'entry')} families. Of each "
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
        *(_row(m, _short(m.tail)) for m in teachers),
        "",
        "## Students",
        "",
        "| family | model | M | image | penultimate | final | norm | tried with | outcome |",
        "|---|---|---|---|---|---|---|---|---|",
        *(_row(m, m.on) for m in students),
    ]
    return "\n".join(lines) + "\n"


def _row(model: Known, how: str) -> str:
    shapes = ("x".join(map(str, s)) if s else "" for s in (model.penultimate, model.final))
    image = "x".join(map(str, model.size))
    outcome = f"refused: {model.reason}" if model.status == "refused" else model.status
    millions = f"{model.parameters / 1e6:.1f}"
    cells = [model.family, model.name, millions, image, *shapes, model.norm, how, outcome]
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _short(tail: list[str]) -> str:
    return ", ".join(tail) if len(tail) <= 3 else f"{tail[0]} ... {tail[-1]} ({len(tail)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--search", action="store_true", help="look for the families' members anew")
    arguments = parser.parse_args()
    if arguments.search or not FILE.is_file():
        chosen = members()
    else:
        first = [m for m in sweep().models if m.role == "teacher"]
        smallest = {m.name for m in first if m.on == "itself"}
        chosen = [(m.name, m.family, m.name in smallest) for m in first]
    results = []
    for name, family, itself in chosen:
        for role in ("teacher", "student"):
            result = tried(role, name, family, itself)
            results.append(result)
            print(f"{role} {name}: {result.status} {result.reason}", flush=True)
    write(results)


def write(results: list[Known]) -> None:
    """known.json and docs/families.md."""
    today = datetime.now(UTC).date().isoformat()
    done = Sweep(today, timm.__version__, torch.__version__, results)
    lines = ",\n".join(json.dumps(asdict(m)) for m in results)
    head = json.dumps({k: v for k, v in asdict(done).items() if k != "models"})[:-1]
    FILE.write_text(f'{head}, "models": [\n{lines}\n]}}\n')
    DOCUMENT.write_text(document(done))
    print(f"wrote {FILE} and {DOCUMENT}")


if __name__ == "__main__":
    main()
