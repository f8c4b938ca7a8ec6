"""The cache on disk: cache.json, which says what it holds, and shards of rows.

A row is what was kept of the teacher's pass over one view of one image, with a fingerprint of that
view's pixels and a checksum. Shards are safetensors files, read through memory maps, a row at a
time. Each is written whole or not at all, so a cache that was cut off is gone on with at its first
missing one.
"""

import hashlib
import json
import math
import zlib
from collections import OrderedDict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from scalekd.cache.encoding import Precision, Rows, decode
from scalekd.errors import InputError
from scalekd.networks import CachedOutputs, InputConfig

FORMAT = 1
"""Of what is on the disk."""

OPEN = 64
"""How many shards each process keeps open."""

CHECKSUM, GLIMPSE = "checksum", "pixel_fingerprint"
"""Names of what is stored with the rows."""

PIXELS = 8
"""Of a pixel_fingerprint."""

SAME = 1e-3
"""Glimpses of one view differ by less, in whichever process and on whichever machine it is made."""


@dataclass(frozen=True)
class Contents:
    """What a cache holds.

    of: all that decides a value in it and can be another elsewhere, by name.
    images: of a view.
    views: of each image.
    seed: that the views were drawn by.
    input: how the images were normalised.
    precision: of the features.
    shard_rows: rows of each shard but the last.
    made_with: versions of the libraries that made the views.
    """

    of: dict[str, Any]
    images: int
    views: int
    seed: int
    input: InputConfig
    precision: Precision
    shard_rows: int
    made_with: dict[str, str]
    format: int = FORMAT

    @property
    def rows(self) -> int:
        """One for each view of each image."""
        return self.images * self.views

    @property
    def shards(self) -> int:
        """How many there are."""
        return math.ceil(self.rows / self.shard_rows)

    def rows_of(self, shard: int) -> range:
        """The rows in it."""
        return range(shard * self.shard_rows, min((shard + 1) * self.shard_rows, self.rows))

    @property
    def identity(self) -> str:
        """Another one for other contents."""
        plain = json.dumps(asdict(self), sort_keys=True).encode()
        return hashlib.blake2b(plain, digest_size=16).hexdigest()

    @classmethod
    def read(cls, folder: Path) -> "Contents":
        """Those that a folder's cache.json names; InputError where it is not there or another's."""
        file = described(folder)
        if not file.is_file():
            raise InputError(
                f"{str(folder)!r} is no cache: it has no {file.name}; `scalekd cache` makes one"
            )
        try:
            plain = json.loads(file.read_text())
            if plain["format"] != FORMAT:
                raise InputError(
                    f"the cache {str(folder)!r} is of format {plain['format']}, and this scalekd "
                    f"reads format {FORMAT}: make it anew"
                )
            shape = {name: tuple(plain["input"][name]) for name in ("size", "mean", "std")}
            config = InputConfig(plain["input"]["channels"], **shape)
            return cls(**{**plain, "input": config})
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{str(file)!r} is damaged ({error}): make the cache anew") from error


def described(folder: Path) -> Path:
    """The file that says what is in a cache."""
    return folder / "cache.json"


def pixel_fingerprint(image: Tensor) -> Tensor:
    """A few pixels of an image (C, H, W), (8,): those of another crop or colouring are others."""
    flat = image.flatten()
    return flat[:: max(len(flat) // PIXELS, 1)][:PIXELS].float()


class Cache:
    """`cache[row]` -> (CachedOutputs of that row alone, its pixel_fingerprint).

    Args:
        folder: of the cache.
        contents: that it holds, or will hold.
    """

    def __init__(self, folder: Path, contents: Contents) -> None:
        self.folder, self.contents = folder, contents
        self.open: OrderedDict[int, Any] = OrderedDict()

    @classmethod
    def whole(cls, folder: Path) -> "Cache":
        """That in `folder`; InputError where it is none, or shards of it are missing."""
        cache = cls(folder, Contents.read(folder))
        if missing := [n for n in range(cache.contents.shards) if not cache.file(n).is_file()]:
            raise InputError(
                f"the cache {str(folder)!r} is not finished: {len(missing)} of its "
                f"{cache.contents.shards} shards are missing, first {cache.file(missing[0]).name}; "
                "`scalekd cache` with the same settings and --resume makes them"
            )
        return cache

    def __str__(self) -> str:
        of = self.contents
        each = "one view" if of.views == 1 else f"{of.views} views"
        return (
            f"the teacher is read from {self.folder}: {each} of each of {of.images} images, drawn "
            f"by seed {of.seed}, in {of.precision}"
        )

    def __getitem__(self, row: int) -> tuple[CachedOutputs, Tensor]:
        """One row's, (1, ...) and (1, 8).

        Raises:
            InputError: it is damaged, or of another cache.
        """
        shard, nth = divmod(row, self.contents.shard_rows)
        rows = self._rows(shard, nth)
        return decode(rows), rows[GLIMPSE]

    def file(self, shard: int) -> Path:
        """Of one shard."""
        return self.folder / f"{shard:06}.safetensors"

    def write(self, shard: int, rows: Rows, glimpses: Tensor) -> None:
        """A whole shard, or OSError and none.

        Args:
            shard: its number.
            rows: encoded, as many as `contents.rows_of(shard)`.
            glimpses: of their views, (N, 8).
        """
        rows = {name: t.contiguous() for name, t in {**rows, GLIMPSE: glimpses}.items()}
        each = range(len(glimpses))
        sums = [_checksum({name: t[i : i + 1] for name, t in rows.items()}) for i in each]
        partial = self.file(shard).with_suffix(".part")
        try:
            partial.write_bytes(save({**rows, CHECKSUM: torch.tensor(sums)}, self._mark(shard)))
            partial.replace(self.file(shard))
        finally:
            partial.unlink(missing_ok=True)

    def verify(self, shard: int) -> bool:
        """Whether a shard is there and each of its rows is as it was written."""
        try:
            for nth, _ in enumerate(self.contents.rows_of(shard)):
                self._rows(shard, nth)
        except InputError:
            return False
        return True

    def _rows(self, shard: int, nth: int) -> Rows:
        """A shard's row number `nth`, each tensor (1, ...)."""
        file = self.file(shard)
        try:
            content = self._opened(shard)
            rows = {name: content.get_slice(name)[nth : nth + 1] for name in content.keys()}  # noqa: SIM118
            whole = int(rows.pop(CHECKSUM)) == _checksum(rows)
        except (SafetensorError, OSError, KeyError, IndexError) as error:
            said = (str(error) or type(error).__name__).splitlines()[0]
            raise InputError(_damaged(file, said)) from error
        if not whole:
            raise InputError(_damaged(file, f"row {nth} has another checksum"))
        return rows

    def _mark(self, shard: int) -> dict[str, str]:
        """One entry: safetensors writes several in any order, and equal shards are equal bytes."""
        return {"shard": f"{shard} of {self.contents.identity}"}

    def _opened(self, shard: int) -> Any:
        if shard not in self.open:
            content = safe_open(self.file(shard), "pt")
            if content.metadata() != self._mark(shard):  # type: ignore[no-untyped-call]
                raise InputError(
                    f"{str(self.file(shard))!r} belongs to another cache: remove it, and `scalekd "
                    "cache` with the same settings and --resume makes it anew"
                )
            self.open[shard] = content
        self.open.move_to_end(shard)
        if len(self.open) > OPEN:
            self.open.popitem(last=False)
        return self.open[shard]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "open": OrderedDict()}  # no file is open in another process


def _checksum(row: Rows) -> int:
    """Of one row's bytes, its tensors in the order of their names."""
    total = 0
    for name in sorted(row):
        total = zlib.crc32(row[name].contiguous().view(torch.uint8).numpy().data, total)
    return total


def _damaged(file: Path, why: str) -> str:
    return (
        f"the cache's shard {str(file)!r} is damaged ({why}): `scalekd cache` with the same "
        "settings and --resume makes it anew"
    )
