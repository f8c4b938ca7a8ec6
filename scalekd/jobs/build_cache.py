"""`scalekd cache`: the teacher's passes over all images, kept for many trainings."""

import json
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from scalekd.cache.encoding import CachePrecision, EncodedRows, decode, encode, encoding_errors
from scalekd.cache.store import Cache, Manifest, manifest_file, pixel_fingerprint
from scalekd.data.cached import AugmentedViews, cache_identity, library_versions
from scalekd.data.loader import worker_settings
from scalekd.data.source import Source
from scalekd.device import best_device
from scalekd.errors import InputError
from scalekd.jobs.console import QUIET, print_note
from scalekd.networks import CachedOutputs, FrozenTeacher, InputConfig
from scalekd.networks.input_config import renormalization
from scalekd.recipe import Recipe
from scalekd.runs import lock
from scalekd.runs.atomic_io import write_atomically
from scalekd.runs.result import format_duration
from scalekd.signals import Interrupted, stop_on_signal
from scalekd.training.performance import autocast
from scalekd.training.prepare import prepare

PART_BYTES = 2**26
"""About so many in a part: what a run that is stopped loses of its work."""


def build_cache(
    recipe: Recipe,
    out: Path,
    views: int = 1,
    keep: CachePrecision = "float16",
    resume: bool = False,
) -> Path:
    """Keep what the recipe's teacher says of its training images.

    What else the recipe says of training does not matter; `batch_size` and `precision` are the
    teacher's passes', and the first of `seeds` draws the views. Without a student the images are
    normalised and, unless data.image_size says else, as large as the teacher's.

    Args:
        recipe: whose teacher and images; its student may be "".
        out: the folder of the cache.
        views: of each image; training sees one after another, an epoch each.
        keep: of the features: float32, float16, bfloat16 or int8.
        resume: go on with a cache that was cut off; damaged parts are made again.

    Returns:
        The folder: cache.json and parts.

    Raises:
        InputError: see its message; nothing was overwritten.
        Interrupted: by Ctrl-C or a signal; complete parts stay.
    """
    if views < 1:
        raise InputError(f"views is {views}: it must be 1 or more")
    if out.exists() and not resume:
        raise InputError(
            f"{str(out)!r} exists and is not overwritten: give another --out, or --resume to go on "
            "with it"
        )
    replace(recipe, cache=str(out))  # refuses what cannot be trained with one
    console = Console(highlight=False, soft_wrap=True)
    prepared = prepare(recipe)
    source, config = prepared.source, prepared.input
    assert prepared.teacher is not None
    teacher = prepared.teacher.model
    console.print(str(prepared.teacher.weights))
    for note in source.notes:
        print_note(console, note)
    images = source.training_set(config, recipe.seeds[0])
    passes = TeacherPasses(recipe, teacher, config)
    names = range(min(2, len(images)))  # type: ignore[arg-type]
    sample = passes.to_cache(default_collate([images[name] for name in names])[0])
    encoded = encode(sample, keep)
    bytes_a_row = sum(rows[0].nbytes for rows in encoded.values())
    of_a_view = source.images_per_view or len(images)  # type: ignore[arg-type]
    manifest = Manifest(
        identity=cache_identity(recipe, source, teacher, config.size),
        images_per_view=of_a_view,
        augmented_views=views,
        seed=recipe.seeds[0],
        input=config,
        precision=keep,
        rows_per_part=max(1, min(of_a_view * views, PART_BYTES // bytes_a_row)),
        library_versions=library_versions(),
    )
    console.print(_size(manifest, bytes_a_row, sample, encoded, out))
    _refuse_without_room(manifest, bytes_a_row, out)
    cache = _begun(out, manifest)
    with lock.hold_folder(out):
        write_atomically(
            manifest_file(out), (json.dumps(asdict(manifest), indent=1) + "\n").encode()
        )
        missing = [n for n in range(manifest.parts) if not cache.is_intact(n)]
        if resume:
            console.print(f"{manifest.parts - len(missing)} of {manifest.parts} parts are intact")
        _make(
            cache, missing, AugmentedViews(images, manifest.rows), passes, recipe, source, console
        )
    console.print(f"{out}/: give it as --cache to `scalekd distill` with the same settings")
    return out


class TeacherPasses:
    """The teacher's over images that are normalised as `config` says."""

    def __init__(self, recipe: Recipe, teacher: FrozenTeacher, config: InputConfig) -> None:
        self.precision, self.teacher, self.device = recipe.precision, teacher, best_device()
        if config.channels != teacher.input.channels:
            raise InputError(
                f"the images have {config.channels} channels and the teacher takes "
                f"{teacher.input.channels}: give teacher_args in_chans {config.channels}"
            )
        scale, shift = renormalization(config, teacher.input)
        self.scale, self.shift = scale.to(self.device), shift.to(self.device)

    def to_cache(self, images: Tensor) -> CachedOutputs:
        """Of images (N, C, H, W); on the CPU."""
        with autocast(self.precision, self.device):
            kept = self.teacher.to_cache(images.to(self.device) * self.scale + self.shift)
        return CachedOutputs(
            kept.final.cpu(), kept.logits.cpu(), [part.cpu() for part in kept.tail_inputs]
        )


def _size(
    manifest: Manifest, bytes_a_row: int, sample: CachedOutputs, encoded: EncodedRows, out: Path
) -> str:
    """What is going to be written, in a line."""
    plain, varying = encoding_errors(sample.final, decode(encoded).final)
    return (
        f"{manifest.augmented_views} augmented view{'s' * (manifest.augmented_views > 1)} of each "
        f"of {manifest.images_per_view} images, {_bytes(bytes_a_row)} each: "
        f"{_bytes(manifest.rows * bytes_a_row)} in {manifest.parts} "
        f"part{'s' * (manifest.parts > 1)} in {out}/; {manifest.precision} is off by "
        f"{plain:.2g} of the final features, by {varying:.2g} of what varies over space in them"
    )


def _bytes(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"


def _refuse_without_room(manifest: Manifest, bytes_a_row: int, out: Path) -> None:
    existing = next(p for p in (out.absolute() / "_").parents if p.exists())
    there = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    needed, free = manifest.rows * bytes_a_row - there, shutil.disk_usage(existing).free
    if needed > free:
        raise InputError(
            f"the cache takes {_bytes(needed)} more and {str(existing)!r} has {_bytes(free)} free: "
            "fewer --views, --keep int8, or another --out"
        )


def _begun(out: Path, manifest: Manifest) -> Cache:
    """The cache in `out`, which is made; InputError where another one is there."""
    if out.exists() and any(file.name != lock.NAME for file in out.iterdir()):
        there = asdict(Manifest.read(out))
        there = {**there.pop("identity"), **there}
        now = asdict(manifest)
        now = {**now.pop("identity"), **now}
        if changed := [name for name in now if there.get(name) != now[name]]:
            name = changed[0]
            raise InputError(
                f"the cache {str(out)!r} was begun with another {name} ({there.get(name)}; now "
                f"{now[name]}): give what it was begun with, or another --out"
            )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{str(out)!r} cannot be made: {error}") from error
    return Cache(out, manifest)


def _make(
    cache: Cache,
    missing: list[int],
    images: AugmentedViews,
    passes: TeacherPasses,
    recipe: Recipe,
    source: Source,
    console: Console,
) -> None:
    """Write the missing parts of the cache."""
    manifest = cache.manifest
    batches = [
        list(batch)
        for part in missing
        for batch in _split(manifest.part_rows(part), recipe.batch_size)
    ]
    loader = DataLoader(
        images, batch_sampler=batches, pin_memory=False, **worker_settings(source, recipe.data)
    )
    asked = threading.Event()
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("images, {task.fields[pace]}"),
        console=console,
    )
    with stop_on_signal(asked.set), bar:
        total, done, said = sum(map(len, batches)), 0, 0.0
        task = bar.add_task("the teacher's passes", total=total, pace="")
        began, stream = time.monotonic(), iter(loader)
        for written, part in enumerate(missing):
            encoded: list[tuple[EncodedRows, Tensor]] = []
            for _ in _split(manifest.part_rows(part), recipe.batch_size):
                batch = next(stream)[0]
                encoded.append(
                    (encode(passes.to_cache(batch), manifest.precision), _fingerprints(batch))
                )
                done += len(batch)
                passed = time.monotonic() - began
                left = format_duration((total - done) * passed / done)
                pace = f"{done / passed:.3g} a second, {left} left"
                bar.update(task, completed=done, pace=pace)
                if not console.is_terminal and passed - said > QUIET:
                    said = passed
                    console.print(f"{done} of {total} images, {pace}")
                if asked.is_set():
                    raise Interrupted(
                        f"stopped; {manifest.parts - len(missing) + written} of {manifest.parts} "
                        f"parts are complete in {cache.folder}/: the same command with --resume "
                        "continues"
                    )
            _write(cache, part, encoded)


def _split(rows: range, size: int) -> Iterator[range]:
    return (rows[i : i + size] for i in range(0, len(rows), size))


def _fingerprints(images: Tensor) -> Tensor:
    return torch.stack([pixel_fingerprint(image) for image in images])


def _write(cache: Cache, part: int, batches: list[tuple[EncodedRows, Tensor]]) -> None:
    names = batches[0][0]
    rows = {name: torch.cat([encoded[name] for encoded, _ in batches]) for name in names}
    try:
        cache.write_part(part, rows, torch.cat([fingerprints for _, fingerprints in batches]))
    except OSError as error:
        raise InputError(
            f"{cache.part_file(part)} could not be written ({error}): make room, then the same "
            "command with --resume continues"
        ) from error
