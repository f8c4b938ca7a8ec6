"""WebDataset shards: tar files of KEY.jpg and KEY.cls, read where they lie.

The tars' headers are read once and kept as a few numbers for each sample, so that any sample can be
read by itself: batches, their order and resuming are those of every other source. What is kept
near to each other on the disk is read at about the same time; see `block_order`.
"""

import contextlib
import hashlib
import json
import os
import re
import sys
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Generator, Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from scalekd.data.corrupt import Item, decode
from scalekd.data.source import Source, build_source
from scalekd.errors import InputError
from scalekd.notes import Note
from scalekd.recipe import Data

TRAIN, VALIDATION = {"train", "training"}, {"val", "valid", "validation"}
"""Words in a shard's name, or its folder's, that say what it is for."""

OPEN = 64
"""How many shards each process keeps open."""

BLOCK_SHARDS, BLOCK_SAMPLES = 8, 8_192
"""At least so many of both are shuffled among each other."""

UNKNOWN = -1
"""The class of a sample without one."""

FORMAT = 1
"""Of the cached index."""


def has_tars(root: Path) -> list[Path]:
    """The tar files in `root` and in its folders."""
    return sorted(p for depth in ("*.tar", "*/*.tar") for p in root.glob(depth) if p.is_file())


def open_webdataset(data: Data) -> Source:
    """ROOT/train/*.tar and ROOT/val/*.tar, or ROOT/*-train-*.tar and ROOT/*-val-*.tar."""
    root = Path(data.root)
    training, validating, others = _by_split(root)
    notes = []
    if others:
        text = (
            f"left out, neither train nor val by their names: {len(others)} of the shards in "
            f"{data.root}, for example {others[0]}"
        )
        notes.append(Note("info", text))
    train = Shards(training)
    targets = torch.from_numpy(train.index.target)
    order = partial(block_order, torch.from_numpy(train.index.shard).long())
    names = [os.path.relpath(file, root) for file in train.files]
    names += map(str, train.index.size.tolist())
    if train.first_without_label is not None:
        if validating:
            text = f"left out, there being no labels to train on: {len(validating)} shards"
            notes.append(Note("info", text))
        return build_source(data, train, None, torch.zeros_like(targets), names, None, notes, order)
    if not validating:
        raise InputError(
            f"{data.root!r} has shards to train on and none to validate on: put them into val/, or "
            "name them *-val-*.tar"
        )
    validation = Shards(validating)
    if (missing := validation.first_without_label) is not None:
        raise InputError(
            f"{validation.name(missing)} has no label, and the shards to train on have: add its "
            ".cls, or a .json with a label"
        )
    ours, theirs = np.unique(train.index.target), np.unique(validation.index.target)
    if odd := sorted(set(ours.tolist()) ^ set(theirs.tolist())):
        raise InputError(
            f"{data.root!r}: the shards to train and to validate on have different classes, only "
            f"one has: {', '.join(map(str, odd[:5]))}"
        )
    classes = int(ours[-1]) + 1
    if classes < 2:
        raise InputError(f"{data.root!r}: all labels are 0; at least 2 classes are needed")
    if len(ours) < classes:
        gap = min(set(range(classes)) - set(ours.tolist()))
        text = (
            f"of {classes} classes, 0 to {classes - 1}, {classes - len(ours)} have no image, for "
            f"example {gap}"
        )
        notes.append(Note("info", text))
    return build_source(data, train, validation, targets, names, classes, notes, order)


@dataclass(frozen=True)
class Index:
    """Where samples are, four numbers each.

    shard: its number (N,).
    offset, size: of the image in it, in bytes (N,).
    target: its class (N,), `UNKNOWN` without label.
    """

    shard: npt.NDArray[np.int32]
    offset: npt.NDArray[np.int64]
    size: npt.NDArray[np.int32]
    target: npt.NDArray[np.int32]


class Shards:
    """The samples of tar files, in their order.

    Args:
        files: of them, or InputError for what is wrong with one.
    """

    def __init__(self, files: list[Path]) -> None:
        self.files = [str(file) for file in files]
        self.index = _indexed(self.files)
        self.open = OrderedDict[int, int]()
        unlabelled = np.flatnonzero(self.index.target == UNKNOWN)
        if 0 < len(unlabelled) < len(self):
            raise InputError(
                f"{self.name(int(unlabelled[0]))} has no label, and others have: add its .cls, or "
                "a .json with a label"
            )
        self.first_without_label = int(unlabelled[0]) if len(unlabelled) else None

    def __len__(self) -> int:
        return len(self.index.shard)

    def __getitem__(self, index: int) -> Item:
        offset, size = int(self.index.offset[index]), int(self.index.size[index])
        content = self._read(int(self.index.shard[index]), offset, size)
        image = decode(content, self.name(index))
        if self.first_without_label is not None:
            return (image,)
        return image, int(self.index.target[index])

    def name(self, index: int) -> str:
        """The image's name, and its shard's; read from the header, so that none need be kept."""
        shard = int(self.index.shard[index])
        header = self._read(shard, int(self.index.offset[index]) - tarfile.BLOCKSIZE, 512)
        member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape").name
        return f"{member!r} in {self.files[shard]!r}"

    def _read(self, shard: int, offset: int, size: int) -> bytes:
        try:
            if shard not in self.open:
                self.open[shard] = os.open(self.files[shard], os.O_RDONLY)
            self.open.move_to_end(shard)
            if len(self.open) > OPEN:
                os.close(self.open.popitem(last=False)[1])
            return os.pread(self.open[shard], size, offset)
        except OSError as error:
            raise InputError(
                f"cannot read the shard {self.files[shard]!r} ({error}): bring it back"
            ) from error

    def __del__(self) -> None:
        for descriptor in getattr(self, "open", {}).values():
            os.close(descriptor)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "open": OrderedDict()}  # no file is open in another process


def block_order(shard: Tensor, generator: Generator) -> Tensor:
    """An epoch's order, in which a disk or a network finds samples near to each other.

    Shards come in a random order and are taken in blocks of several, whose samples are shuffled.

    Args:
        shard: each sample's (N,).
        generator: what decides.

    Returns:
        Each sample's number once, (N,).
    """
    sizes = torch.bincount(shard)
    block = max(BLOCK_SAMPLES, BLOCK_SHARDS * len(shard) // len(sizes))
    turn = torch.randperm(len(sizes), generator=generator)
    before = torch.empty_like(sizes)
    before[turn] = sizes[turn].cumsum(0) - sizes[turn]
    drawn = torch.rand(len(shard), generator=generator, dtype=torch.float64)
    return torch.argsort((before // block)[shard] + drawn, stable=True)


def _by_split(root: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """Shards to train on, to validate on, and others; all are to train on where none is named."""
    found = has_tars(root)
    words = {p: set(re.findall("[a-z]+", str(p.relative_to(root)).lower())) for p in found}
    training = [p for p in found if words[p] & TRAIN]
    validating = [p for p in found if words[p] & VALIDATION and not words[p] & TRAIN]
    if not training and not validating:
        return found, [], []
    if not training:
        raise InputError(
            f"{str(root)!r} has shards to validate on and none to train on: put them into train/, "
            "or name them *-train-*.tar"
        )
    return training, validating, [p for p in found if p not in {*training, *validating}]


def _indexed(files: list[str]) -> Index:
    """The index of the shards, which is made once and kept until one of them changes."""
    states = [(os.path.abspath(f), (s := os.stat(f)).st_size, s.st_mtime_ns) for f in files]
    digest = hashlib.blake2b(repr((FORMAT, states)).encode(), digest_size=12).hexdigest()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "scalekd"
    kept = cache / f"shards-{digest}.npz"
    with contextlib.suppress(OSError, ValueError, zipfile.BadZipFile), np.load(kept) as arrays:
        return Index(**arrays)
    print(f"scalekd: reading the headers of {len(files)} shards, once", file=sys.stderr)
    parts = [_headers(number, file) for number, file in enumerate(files)]
    index = Index(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
    if not len(index.shard):
        raise InputError(f"there is no sample in {len(files)} shards, such as {files[0]!r}")
    with contextlib.suppress(OSError):  # then it is made anew the next time
        cache.mkdir(parents=True, exist_ok=True)
        partial = cache / f"{kept.stem}-{os.getpid()}.part"
        with partial.open("wb") as content:
            np.savez(content, **asdict(index))
        partial.replace(kept)
    return index


def _headers(number: int, file: str) -> tuple[npt.NDArray[np.integer], ...]:
    """The columns of `Index` of one shard's samples."""
    rows = [_sample(file, *sample) for sample in _samples(file)]
    offsets, sizes, targets = zip(*rows, strict=True) if rows else ((), (), ())
    return (
        np.full(len(rows), number, np.int32),
        np.array(offsets, np.int64),
        np.array(sizes, np.int32),
        np.array(targets, np.int32),
    )


Members = dict[str, tuple[int, int, bytes]]
"""Of one sample, by ending: where its content is, how long it is, and, of labels, what it is."""


def _samples(file: str) -> Iterator[tuple[str, Members]]:
    """Each sample's key and members, which follow one another."""
    key, members = "", Members()
    try:
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                folder, _, name = member.name.rpartition("/")
                if not member.isreg() or name.startswith(("__", "._")):
                    continue
                stem, _, ending = name.partition(".")
                if (now := f"{folder}/{stem}") != key and members:
                    yield key, members
                    members = {}
                key, ending = now, f".{ending.lower()}"
                label = tar.extractfile(member) if ending in (".cls", ".json") else None
                content = label.read() if label else b""
                members[ending] = member.offset_data, member.size, content
            _at_the_end(tar, file)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise InputError(
            f"the shard {file!r} is no tar, or is cut off or damaged ({error}): bring it here again"
        ) from error
    if members:
        yield key, members


def _at_the_end(tar: tarfile.TarFile, file: str) -> None:
    """What is no header ends a tar for tarfile, also in its middle."""
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise tarfile.ReadError(f"no header at byte {tar.offset}")


def _sample(file: str, key: str, members: Members) -> tuple[int, int, int]:
    """Where the image is, how long it is, and its class."""
    said = f"sample {key.lstrip('/')!r} in {file!r}"
    images = [ending for ending in members if ending in IMG_EXTENSIONS]
    if len(images) != 1:
        raise InputError(
            f"{said} has {len(images) or 'no'} images ({', '.join(members)}): it must have one, "
            "such as .jpg or .png"
        )
    offset, size, _ = members[images[0]]
    return offset, size, _label(said, members)


def _label(said: str, members: Members) -> int:
    label: object = None
    try:
        if ".cls" in members:
            label = members[".cls"][2].decode()
            number = int(str(label).strip())
        elif ".json" in members:
            described = json.loads(members[".json"][2])
            label = described.get("label") if isinstance(described, dict) else None
            if label is None:
                return UNKNOWN
            number = int(str(label))
        else:
            return UNKNOWN
    except ValueError as error:
        raise InputError(
            f"{said} has a label that is no number ({str(label)[:40]!r}): it must be a class from "
            "0 on"
        ) from error
    if not 0 <= number < 2**31:
        raise InputError(f"{said} has the label {number}: it must be a class from 0 on")
    return number
