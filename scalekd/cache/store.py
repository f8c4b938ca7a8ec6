"""A cache on disk: cache.json, the manifest of what the cache holds, and parts of encoded rows.

A row holds the teacher's cached outputs for one augmented view of one image, a fingerprint of that
view's pixels and a checksum. A part is a safetensors file of many rows, which is read through a
memory map, a row at a time. A part is written completely or not at all, so building a cache that
was interrupted resumes at the first missing part.
"""

import hashlib
import json
import math
import os
import zlib
from collections import OrderedDict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from scalekd.atomic_io import write_atomically
from scalekd.cache.encoding import CachePrecision, EncodedRows, decode
from scalekd.errors import InputError, one_line
from scalekd.networks import CachedOutputs, InputConfig
from scalekd.reading import is_number, is_whole, open_regular, read_mapping

FORMAT = 3
"""Version of the files' layout; other versions are refused."""

MAX_OPEN_PARTS = 64
"""How many parts each process keeps open."""

CHECKSUM, PIXEL_FINGERPRINT = "checksum", "pixel_fingerprint"
"""Names of the tensors that a part stores beside the encoded rows."""

FINGERPRINT_PIXELS = 8
"""How many pixels a pixel fingerprint consists of."""

FINGERPRINT_TOLERANCE = 0.04
"""Fingerprints of the same view differ by less than this between processors and versions: about two
of 255 levels, normalised."""


@dataclass(frozen=True)
class Manifest:
    """What a cache holds; its fields are those of cache.json.

    Args:
        identity: everything that decides a value in the cache and may differ between two runs, by
            name; see `cache_identity`.
        images_per_view: how many images one augmented view of the training set has.
        augmented_views: how many views of each image the cache has.
        seed: the seed that the views were drawn by.
        input: channels, size and normalisation of the images.
        precision: how the features are stored.
        rows_per_part: rows of each part; the last part may have fewer.
        library_versions: versions of the libraries that made the views, by name.
        format: see `FORMAT`.
    """

    identity: dict[str, Any]
    images_per_view: int
    augmented_views: int
    seed: int
    input: InputConfig
    precision: CachePrecision
    rows_per_part: int
    library_versions: dict[str, str]
    format: int = FORMAT

    @property
    def rows(self) -> int:
        """Number of rows: one for each view of each image."""
        return self.images_per_view * self.augmented_views

    @property
    def parts(self) -> int:
        """Number of parts."""
        return math.ceil(self.rows / self.rows_per_part)

    def part_rows(self, part: int) -> range:
        """Numbers of the rows that part number `part` holds."""
        return range(part * self.rows_per_part, min((part + 1) * self.rows_per_part, self.rows))

    @property
    def digest(self) -> str:
        """Hash of all fields: two caches with different contents have different digests."""
        plain = json.dumps(asdict(self), sort_keys=True).encode()
        return hashlib.blake2b(plain, digest_size=16).hexdigest()

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Read the manifest of the cache in `folder`.

        Raises:
            InputError: `folder` has no cache.json, or one that is damaged or of another format.
        """
        file = manifest_file(folder)
        if not os.path.lexists(file):
            raise InputError(
                f"{str(folder)!r} is no cache: it has no {file.name}; `scalekd cache` makes one"
            )
        try:
            plain = read_mapping(file, repr(str(file)))
        except InputError as error:
            raise InputError(f"{error}; if it is damaged, build the cache again") from error
        try:
            if plain["format"] != FORMAT:
                raise InputError(
                    f"the cache {str(folder)!r} is of format {plain['format']!r}, and this scalekd "
                    f"reads format {FORMAT}: build it again"
                )
            shape = {name: tuple(plain["input"][name]) for name in ("size", "mean", "std")}
            config = InputConfig(**{**plain["input"], **shape})
            manifest = cls(**{**plain, "input": config})
            manifest.check()
        except InputError:
            raise
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{str(file)!r} is damaged ({one_line(error)}): build the cache again"
            ) from error
        return manifest

    def check(self) -> None:
        """Raise ValueError where a field is not what it must be."""
        images, numbers = self.input, [*self.input.mean, *self.input.std]
        for name in ("images_per_view", "augmented_views", "rows_per_part"):
            if not is_whole(value := getattr(self, name), least=1):
                raise ValueError(f"{name} is {value!r}")
        if not is_whole(self.seed):
            raise ValueError(f"seed is {self.seed!r}")
        if self.precision not in get_args(CachePrecision):
            raise ValueError(f"precision is {self.precision!r}")
        if not (isinstance(self.identity, dict) and isinstance(self.library_versions, dict)):
            raise ValueError("identity or library_versions is no mapping")
        if (
            not is_whole(images.channels, least=1)
            or len(images.size) != 2
            or not all(is_whole(side, least=1) for side in images.size)
            or not len(images.mean) == len(images.std) == images.channels
            or not all(map(is_number, numbers))
        ):
            raise ValueError(f"input is {images}")


def manifest_file(folder: Path) -> Path:
    """The path of the manifest of the cache in `folder`."""
    return folder / "cache.json"


def pixel_fingerprint(image: Tensor) -> Tensor:
    """A few evenly spaced pixels (8,) of an image (C, H, W).

    Another crop, flip or colouring of the same image has another fingerprint.
    """
    return image.flatten()[fingerprint_places(image.numel())].float()


def fingerprint_places(values: int) -> Tensor:
    """Which of so many values of an image are its fingerprint."""
    return torch.arange(0, values, max(values // FINGERPRINT_PIXELS, 1))[:FINGERPRINT_PIXELS]


class Cache:
    """A cache in a folder: `cache[row]` is the row's (CachedOutputs, pixel fingerprint).

    Args:
        folder: where the cache lies.
        manifest: what it holds, or will hold when it is complete.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        self._open_parts: OrderedDict[int, Any] = OrderedDict()

    @classmethod
    def open_complete(cls, folder: Path) -> "Cache":
        """Open the cache in `folder`; InputError where it is no cache, or parts are missing."""
        cache = cls(folder, Manifest.read(folder))
        parts = cache.manifest.parts
        if missing := [part for part in range(parts) if not cache.part_file(part).is_file()]:
            raise InputError(
                f"the cache {str(folder)!r} is not complete: {len(missing)} of its {parts} parts "
                f"are missing, first {cache.part_file(missing[0]).name}; `scalekd cache` with the "
                "same settings and --resume makes them"
            )
        return cache

    def __str__(self) -> str:
        views = self.manifest.augmented_views
        return (
            f"the teacher's outputs are read from {self.folder}: "
            f"{'one augmented view' if views == 1 else f'{views} augmented views'} of each of "
            f"{self.manifest.images_per_view} images, drawn by seed {self.manifest.seed}, in "
            f"{self.manifest.precision}"
        )

    def __getitem__(self, row: int) -> tuple[CachedOutputs, Tensor]:
        """Outputs (1, ...) and pixel fingerprint (1, 8) of one row.

        Raises:
            InputError: its part is missing, damaged, or belongs to another cache.
        """
        part, index = divmod(row, self.manifest.rows_per_part)
        rows = self._read_row(part, index)
        return decode(rows), rows[PIXEL_FINGERPRINT]

    def part_file(self, part: int) -> Path:
        """The path of part number `part`."""
        return self.folder / f"{part:06}.safetensors"

    def write_part(self, part: int, rows: EncodedRows, fingerprints: Tensor) -> None:
        """Write a complete part; nothing of it stays where an OSError is raised.

        Args:
            part: its number.
            rows: encoded rows, as many as `manifest.part_rows(part)`.
            fingerprints: pixel fingerprints of their views, (N, 8).
        """
        rows = {n: t.contiguous() for n, t in {**rows, PIXEL_FINGERPRINT: fingerprints}.items()}
        checksums = [
            _checksum({name: tensor[i : i + 1] for name, tensor in rows.items()})
            for i in range(len(fingerprints))
        ]
        content = save({**rows, CHECKSUM: torch.tensor(checksums)}, self._metadata(part))
        write_atomically(self.part_file(part), content)

    def is_intact(self, part: int) -> bool:
        """Whether a part is there and each of its rows has the checksum it was written with."""
        try:
            for index, _ in enumerate(self.manifest.part_rows(part)):
                self._read_row(part, index)
        except InputError:
            return False
        return True

    def _read_row(self, part: int, index: int) -> EncodedRows:
        """Row number `index` of a part, each tensor (1, ...)."""
        file = self.part_file(part)
        try:
            content = self._open_part(part)
            rows = {name: content.get_slice(name)[index : index + 1] for name in content.keys()}  # noqa: SIM118
            intact = int(rows.pop(CHECKSUM)) == _checksum(rows)
        except InputError:
            raise
        except Exception as error:  # of a damaged file, nearly anything
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise InputError(_damaged(file, reason)) from error
        if not intact:
            raise InputError(_damaged(file, f"row {index} has another checksum"))
        return rows

    def _metadata(self, part: int) -> dict[str, str]:
        """One entry: safetensors writes several in any order, and equal parts are equal bytes."""
        return {"part": f"{part} of {self.manifest.digest}"}

    def _open_part(self, part: int) -> Any:
        if part not in self._open_parts:
            open_regular(self.part_file(part)).close()
            content = safe_open(self.part_file(part), "pt")
            if content.metadata() != self._metadata(part):  # type: ignore[no-untyped-call]
                raise InputError(
                    f"{str(self.part_file(part))!r} belongs to another cache: remove it, and "
                    "`scalekd cache` with the same settings and --resume makes it again"
                )
            self._open_parts[part] = content
        self._open_parts.move_to_end(part)
        if len(self._open_parts) > MAX_OPEN_PARTS:
            self._open_parts.popitem(last=False)
        return self._open_parts[part]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open_parts": OrderedDict()}  # another process opens its own


def _checksum(row: EncodedRows) -> int:
    """CRC-32 of one row's names, shapes and bytes, its tensors in the order of their names."""
    total = 0
    for name in sorted(row):
        total = zlib.crc32(f"{name} {list(row[name].shape)} {row[name].dtype};".encode(), total)
        total = zlib.crc32(row[name].contiguous().view(torch.uint8).numpy().data, total)
    return total


def _damaged(file: Path, reason: str) -> str:
    return (
        f"the cache's part {str(file)!r} is damaged ({reason}): `scalekd cache` with the same "
        "settings and --resume makes it again"
    )
