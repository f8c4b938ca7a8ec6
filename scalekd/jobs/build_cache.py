"""`scalekd cache`: run the teacher over all training images and store its outputs."""

import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from scalekd.atomic_io import TEMPORARY_NAME, remove_leftovers, write_atomically
from scalekd.cache.encoding import CachePrecision, EncodedRows, decode, encode, encoding_errors
from scalekd.cache.store import Cache, Manifest, manifest_file, pixel_fingerprint
from scalekd.data.cached import AugmentedViews, cache_identity, library_versions
from scalekd.data.loader import ImageLoader, worker_settings
from scalekd.device import best_device
from scalekd.errors import InputError
from scalekd.jobs.progress import MAX_SECONDS_WITHOUT_LINE, print_note
from scalekd.jobs.teacher_check import check_teacher
from scalekd.networks import CachedOutputs, FrozenTeacher, InputConfig
from scalekd.networks.input_config import normalize_bytes, renormalization
from scalekd.reading import why_unreadable
from scalekd.recipe import Recipe
from scalekd.runs import lock
from scalekd.runs.folder import hold_new_folder
from scalekd.runs.result import format_duration
from scalekd.signals import Interrupted, stop_on_signal
from scalekd.text import build_console, printable
from scalekd.training.performance import autocast
from scalekd.training.prepare import Prepared, prepare

PART_BYTES = 2**26
"""Approximate size of a part: at most so much work is lost when building a cache is stopped."""


def build_cache(
    recipe: Recipe,
    out: Path,
    augmented_views: int = 1,
    dtype: CachePrecision = "float16",
    resume: bool = False,
) -> Path:
    """Store the outputs of a recipe's teacher for its training images.

    The recipe's other training settings do not matter. `batch_size` and `precision` are those of
    the teacher's passes, and the first of `seeds` draws the augmented views. Without a student the
    images have the teacher's normalisation and, unless data.image_size is set, its size.

    Args:
        recipe: Recipe that names the teacher and the images; its student may be "".
        out: Folder of the cache to write, which must not exist unless --resume is given.
        augmented_views: Number of augmented views of each image that are stored. A training sees
            another view in each epoch, and the first one again after the last.
        dtype: Data type in which the features are stored. docs/cache.md compares size and error;
            logits are always stored in float32.
        resume: Resume the cache in `out`; parts of it that are missing or damaged are written
            again.

    Returns:
        The folder of the cache: cache.json and parts.

    Raises:
        InputError: the cache cannot be built or written, or exists; nothing was overwritten.
        Interrupted: by Ctrl-C or a signal; complete parts stay.
    """
    if augmented_views < 1:
        raise InputError(f"augmented_views is {augmented_views}: it must be 1 or more")
    replace(recipe, cache=str(out))  # refuses settings that no cache can be used with
    if resume and _contents(out):
        Manifest.read(out)  # refuses a folder that is something else
    with hold_new_folder(out, resume=resume, keep=manifest_file(out).exists):
        remove_leftovers(out)
        _build_in(out, recipe, augmented_views, dtype, resume)
    return out


def _build_in(
    out: Path, recipe: Recipe, augmented_views: int, dtype: CachePrecision, resume: bool
) -> None:
    """Build the cache in a folder that this process holds."""
    console = build_console(soft_wrap=True)
    prepared = prepare(recipe)
    assert prepared.teacher is not None
    console.print(printable(prepared.teacher.weights))
    for note in [
        *prepared.source.notes,
        *prepared.teacher.class_order.notes,
        *check_teacher(prepared),
    ]:
        print_note(console, note)
    passes = TeacherPasses(recipe, prepared.teacher.frozen, prepared.input)
    contents = plan_contents(prepared, passes, augmented_views=augmented_views, dtype=dtype)
    console.print(f"cache {printable(out)}/: {contents.describe()}")
    _check_free_space(contents, out)
    _check_same_cache(out, contents.manifest)
    cache = Cache(out, contents.manifest)
    manifest = json.dumps(asdict(cache.manifest), indent=1) + "\n"
    try:
        write_atomically(manifest_file(out), manifest.encode())
    except OSError as error:
        raise InputError(f"{str(out)!r} cannot be written to: {error}") from error
    write_missing_parts(cache, contents.images, passes, prepared, console, resumed=resume)
    console.print(
        f"the cache {printable(out)}/ is complete: `scalekd distill` with the same settings reads "
        f"it with --cache {printable(out)}"
    )


class TeacherPasses:
    """A teacher that is run over batches of images, whatever their normalisation.

    Args:
        recipe: its `precision` is that of the passes.
        teacher: the teacher, which runs on `best_device()`.
        config: channels, size and normalisation of the images.

    Raises:
        InputError: the teacher takes another number of channels.
    """

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
        """Return the teacher's outputs for images (N, C, H, W), on the CPU."""
        with autocast(self.precision, self.device):
            outputs = self.teacher.to_cache(images.to(self.device) * self.scale + self.shift)
        return CachedOutputs(
            outputs.final.cpu(),
            outputs.logits.cpu(),
            [tail_input.cpu() for tail_input in outputs.tail_inputs],
        )


@dataclass(frozen=True, kw_only=True)
class PlannedContents:
    """What a cache is going to hold, as found out from its first two images.

    Attributes:
        manifest: of the cache.
        images: the training set in augmented views, in the order of the cache's rows.
        row_bytes: size of a row.
        error: relative error of the stored final features.
        spatial_error: the same for the features minus their mean over space.
    """

    manifest: Manifest
    images: AugmentedViews
    row_bytes: int
    error: float
    spatial_error: float

    @property
    def total_bytes(self) -> int:
        """Size of all rows."""
        return self.manifest.rows * self.row_bytes

    def describe(self) -> str:
        """One line: views, images, size, parts and errors."""
        views, parts = self.manifest.augmented_views, self.manifest.parts
        return (
            f"{views} augmented view{'s' * (views > 1)} of each of {self.manifest.images_per_view} "
            f"images, {_format_bytes(self.row_bytes)} each: {_format_bytes(self.total_bytes)} in "
            f"{parts} part{'s' * (parts > 1)}; {self.manifest.precision} has a relative error of "
            f"{self.error:.2g} in the final features, and of {self.spatial_error:.2g} in their "
            "variation over space"
        )


def plan_contents(
    prepared: Prepared, passes: TeacherPasses, *, augmented_views: int, dtype: CachePrecision
) -> PlannedContents:
    """Run the teacher over the first two images, and decide what the cache is going to hold."""
    recipe, source, config = prepared.recipe, prepared.source, prepared.input
    seed = recipe.seeds[0]
    images: Dataset[tuple[Tensor, int]] = source.training_set(config, seed)
    count = len(images)  # type: ignore[arg-type]
    first = default_collate([images[key] for key in range(min(2, count))])[0]
    sample = passes.to_cache(normalize_bytes(first, config))
    encoded = encode(sample, dtype)
    row_bytes = sum(rows[0].nbytes for rows in encoded.values())
    images_per_view = source.images_per_view or count
    manifest = Manifest(
        identity=cache_identity(recipe, source, passes.teacher, config.size),
        images_per_view=images_per_view,
        augmented_views=augmented_views,
        seed=seed,
        input=config,
        precision=dtype,
        rows_per_part=max(1, min(images_per_view * augmented_views, PART_BYTES // row_bytes)),
        library_versions=library_versions(),
    )
    error, spatial_error = encoding_errors(sample.final, decode(encoded).final)
    return PlannedContents(
        manifest=manifest,
        images=AugmentedViews(images, manifest.rows),
        row_bytes=row_bytes,
        error=error,
        spatial_error=spatial_error,
    )


def _format_bytes(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"


def _check_free_space(contents: PlannedContents, out: Path) -> None:
    existing = next(p for p in (out.absolute() / "_").parents if p.exists())
    written = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    needed, free = contents.total_bytes - written, shutil.disk_usage(existing).free
    if needed > free:
        raise InputError(
            f"the cache takes {_format_bytes(needed)} more and {str(existing)!r} has "
            f"{_format_bytes(free)} free: give fewer --augmented_views, --dtype int8, or another "
            "--out"
        )


def _contents(out: Path) -> set[str]:
    """What is in a folder, if it is there, besides what a killed process leaves."""
    try:
        names = set(os.listdir(out))
    except (FileNotFoundError, NotADirectoryError):
        return set()
    except OSError as error:
        raise InputError(f"{str(out)!r} {why_unreadable(error)}") from error
    return {n for n in names if n != lock.NAME and not TEMPORARY_NAME.fullmatch(n)}


def _check_same_cache(out: Path, manifest: Manifest) -> None:
    """InputError where there is a different cache in `out`."""
    if _contents(out):
        stored, planned = _flatten(Manifest.read(out)), _flatten(manifest)
        for name, value in planned.items():
            if stored.get(name) != value:
                raise InputError(
                    f"the cache {str(out)!r} was begun with another {name} ({stored.get(name)}; "
                    f"now {value}): give the settings that it was begun with, or another --out"
                )


def _flatten(manifest: Manifest) -> dict[str, object]:
    fields = asdict(manifest)
    return {**fields.pop("identity"), **fields}


def write_missing_parts(
    cache: Cache,
    images: AugmentedViews,
    passes: TeacherPasses,
    prepared: Prepared,
    console: Console,
    *,
    resumed: bool,
) -> None:
    """Run the teacher over the images of missing and damaged parts, and write these parts.

    Raises:
        InputError: a part could not be written.
        Interrupted: by Ctrl-C or a signal; complete parts stay.
    """
    parts = cache.manifest.parts
    missing = [part for part in range(parts) if not cache.is_intact(part)]
    if resumed:
        console.print(f"{parts - len(missing)} of {parts} parts are intact")
    batch_size = prepared.recipe.batch_size
    batches_by_part = [_split(cache.manifest.part_rows(part), batch_size) for part in missing]
    loader = ImageLoader(
        images,
        batch_sampler=[list(rows) for batches in batches_by_part for rows in batches],
        pin_memory=False,
        **worker_settings(prepared.source, prepared.recipe.data),
    )
    total = sum(len(cache.manifest.part_rows(part)) for part in missing)
    stop = threading.Event()
    with stop_on_signal(stop.set), _show_progress(console, total) as progress:
        loaded = iter(loader)
        for number, (part, batches) in enumerate(zip(missing, batches_by_part, strict=True)):
            rows: list[EncodedRows] = []
            fingerprints: list[Tensor] = []
            for _ in batches:
                batch = normalize_bytes(next(loaded)[0], cache.manifest.input)
                rows.append(encode(passes.to_cache(batch), cache.manifest.precision))
                fingerprints += map(pixel_fingerprint, batch)
                progress.add(len(batch))
                if stop.is_set():
                    raise Interrupted(
                        f"stopped; {parts - len(missing) + number} of {parts} parts are complete "
                        f"in {cache.folder}/: the same command with --resume resumes it"
                    )
            _write_part(cache, part, rows, torch.stack(fingerprints))


def _split(rows: range, size: int) -> list[range]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _write_part(cache: Cache, part: int, batches: list[EncodedRows], fingerprints: Tensor) -> None:
    rows = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    try:
        cache.write_part(part, rows, fingerprints)
    except OSError as error:
        raise InputError(
            f"{cache.part_file(part)} could not be written ({error}): make room, then the same "
            "command with --resume resumes the cache"
        ) from error


class _PassesProgress:
    """A bar on a terminal; in a log file a line now and then."""

    def __init__(self, bars: Progress, total: int) -> None:
        self.bars, self.total, self.done = bars, total, 0
        self.task = bars.add_task("the teacher's passes", total=total, pace="")
        self.began = self.printed_at = time.monotonic()

    def add(self, images: int) -> None:
        """Count images that the teacher has passed over."""
        self.done += images
        now = time.monotonic()
        seconds = now - self.began
        left = format_duration((self.total - self.done) * seconds / self.done)
        pace = f"{self.done / seconds:.3g} images/s, {left} left"
        self.bars.update(self.task, completed=self.done, pace=pace)
        console = self.bars.console
        if not console.is_terminal and now - self.printed_at > MAX_SECONDS_WITHOUT_LINE:
            self.printed_at = now
            console.print(f"the teacher's passes: {self.done} of {self.total} images, {pace}")


@contextmanager
def _show_progress(console: Console, total: int) -> Iterator[_PassesProgress]:
    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("images, {task.fields[pace]}"),
        console=console,
    )
    with bars:
        yield _PassesProgress(bars, total)
