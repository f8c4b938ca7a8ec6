"""WebDataset: tar files of KEY.jpg and KEY.cls, read in place.

The headers of the tar files are read once and stored as an index of four numbers for each sample,
so that any sample can be read by itself: batches, their order and resuming work as with every other
source. Samples that are near to each other on the disk are read at about the same time; see
`shuffle_in_blocks`.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import tarfile
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Generator, Tensor

from scalekd.atomic_io import replacing
from scalekd.data.corrupt import Sample
from scalekd.data.decoding import COMMON_ENDINGS, MAX_IMAGE_BYTES, decode_image, image_endings
from scalekd.data.source import (
    Source,
    StoredSplit,
    build_source,
    build_validation_source,
    without_labels,
)
from scalekd.data.walk import (
    identities_upwards,
    identity,
    is_file,
    is_folder,
    is_hidden,
    readable,
    scan,
)
from scalekd.errors import InputError
from scalekd.reading import open_regular
from scalekd.recipe import Data

logger = logging.getLogger(__name__)

TRAINING_WORDS, VALIDATION_WORDS = {"train", "training"}, {"val", "valid", "validation"}
"""Words in the name of a tar file, or of its folder, that tell which split it belongs to."""

MAX_OPEN_TARS = 64
"""How many tar files each process keeps open."""

_READING = threading.Lock()
"""Held while a tar file is opened, read or closed: several threads may read samples."""

BLOCK_TARS, BLOCK_SAMPLES = 8, 8_192
"""A block, whose samples are shuffled with each other, has at least so many of both."""

MAX_LABEL_BYTES = 2**20
"""Larger labels and headers are damaged, or made to fill the memory."""

MAX_MOSTLY_EMPTY_CLASSES = 25_000
"""Of more classes than so many, more than ImageNet-21K has, half must have an image."""

EXTENDED_HEADERS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
"""Types of headers whose data `tarfile` reads into memory."""

NO_LABEL = -1
"""The class of a sample without a label."""

FORMAT = 2
"""Version of the stored index."""


def find_tars(root: Path) -> list[Path]:
    """List the tar files in `root` and in its immediate folders, every folder once."""
    folders, visited = [str(root)], identities_upwards(root)
    for entry in sorted(scan(root), key=lambda entry: (entry.is_symlink(), entry.name)):
        if is_hidden(entry.name) or not is_folder(entry):
            continue
        if (found := identity(entry.path)) not in visited:
            visited.add(found)
            folders.append(entry.path)
    return sorted(
        Path(entry.path)
        for folder in folders
        for entry in scan(folder)
        if entry.name.endswith(".tar") and not is_hidden(entry.name) and is_file(entry)
    )


def open_webdataset(data: Data) -> Source:
    """Open ROOT/train/*.tar and ROOT/val/*.tar, or ROOT/*-train-*.tar and ROOT/*-val-*.tar.

    Raises:
        InputError: a tar file is damaged, a sample has no image or no label while others have one,
            or the training and validation classes differ.
    """
    root = Path(data.root)
    train_tars, validation_tars, other_tars = _tars_by_split(root)
    notes = []
    if other_tars:
        notes.append(
            f"skipped, neither train nor val by their names: {len(other_tars)} of the tar files "
            f"in {data.root}, for example {other_tars[0]}"
        )
    training = TarSamples(train_tars)
    sampler = partial(shuffle_in_blocks, torch.from_numpy(training.index.tar).long())
    if training.first_without_label is not None:
        if validation_tars:
            notes.append(
                f"skipped, there being no labels to train on: {len(validation_tars)} tar files"
            )
        split = StoredSplit(
            name="train", samples=training, identifiers=_identifiers(root, training)
        )
        return build_source(data, split, notes=notes, epoch_sampler=sampler)
    if not validation_tars:
        raise InputError(
            f"{data.root!r} has tar files to train on and none to validate on: put them into val/, "
            "or name them *-val-*.tar"
        )
    labelled = _label_split(root, "train", training)
    if len(labelled.classes) < 2:
        raise InputError(f"{data.root!r}: all labels are 0; at least 2 classes are needed")
    if missing := set(labelled.classes) - labelled.classes_with_images():
        notes.append(
            f"of {len(labelled.classes)} classes, 0 to {len(labelled.classes) - 1}, {len(missing)} "
            f"have no image, for example {min(missing, key=int)}"
        )
    validation = _label_split(root, "val", TarSamples(validation_tars))
    return build_source(data, labelled, validation, notes=notes, epoch_sampler=sampler)


def open_webdataset_validation(data: Data) -> Source:
    """Open the tar files to validate on, or all where no name has a split, to evaluate on."""
    root = Path(data.root)
    tars = find_tars(root)
    words = {file: _words(root, file) for file in tars}
    for split in (VALIDATION_WORDS, {"test"}):
        if chosen := [file for file in tars if words[file] & split]:
            break
    else:
        chosen = [file for file in tars if not words[file] & TRAINING_WORDS]
    if not chosen:
        raise InputError(
            f"{data.root!r} has tar files to train on and none to evaluate on: put them into val/, "
            "or name them *-val-*.tar"
        )
    samples = TarSamples(chosen)
    if samples.first_without_label is not None:
        raise without_labels(data.root)
    return build_validation_source(data, _label_split(root, "val", samples))


def _label_split(root: Path, name: str, samples: "TarSamples") -> StoredSplit:
    """A split of labelled samples, whose classes are numbers from 0 on."""
    if (unlabelled := samples.first_without_label) is not None:
        raise InputError(
            f"{samples.name(unlabelled)} has no label, and the tar files to train on have: add its "
            ".cls, or a .json with a label"
        )
    targets = torch.from_numpy(samples.index.target)
    classes = int(targets.max()) + 1
    with_images = len(np.unique(samples.index.target))
    if classes > MAX_MOSTLY_EMPTY_CLASSES and with_images < classes / 2:
        raise InputError(
            f"{samples.name(int(targets.argmax()))} has the label {classes - 1}, and only "
            f"{with_images} different labels are in the tar files to {name}: number the classes "
            "from 0 on without gaps"
        )
    return StoredSplit(
        name=name,
        samples=samples,
        identifiers=_identifiers(root, samples),
        classes=tuple(map(str, range(classes))),
        targets=targets,
    )


def _identifiers(root: Path, samples: "TarSamples") -> list[str]:
    names = [os.path.relpath(file, root) for file in samples.files]
    return names + list(map(str, samples.index.size.tolist()))


@dataclass(frozen=True)
class TarIndex:
    """Where the samples of several tar files are, in four numbers each.

    Args:
        tar: number of the sample's tar file (N,).
        offset, size: position and length of the image in the tar file, in bytes (N,).
        target: class of the sample (N,), `NO_LABEL` without a label.
    """

    tar: npt.NDArray[np.int32]
    offset: npt.NDArray[np.int64]
    size: npt.NDArray[np.int32]
    target: npt.NDArray[np.int32]


class TarSamples:
    """The samples of tar files, in the order that they are stored in.

    Args:
        files: the tar files.

    Attributes:
        index: where each sample is.
        first_without_label: number of the first sample without a label; None where all have one.

    Raises:
        InputError: a tar file is damaged, or a sample is not as it must be.
    """

    def __init__(self, files: list[Path]) -> None:
        self.files = [str(file) for file in files]
        self.index = _load_index(self.files)
        self._open_tars = OrderedDict[int, int]()
        unlabelled = np.flatnonzero(self.index.target == NO_LABEL)
        if 0 < len(unlabelled) < len(self):
            raise InputError(
                f"{self.name(int(unlabelled[0]))} has no label, and others have: add its .cls, or "
                "a .json with a label"
            )
        self.first_without_label = int(unlabelled[0]) if len(unlabelled) else None

    def __len__(self) -> int:
        return len(self.index.tar)

    def __getitem__(self, index: int) -> Sample:
        image = decode_image(self.content(index), self.name(index))
        if self.first_without_label is not None:
            return (image,)
        return image, int(self.index.target[index])

    def content(self, index: int) -> bytes:
        """The encoded image of a sample."""
        offset, size = int(self.index.offset[index]), int(self.index.size[index])
        return self._read(int(self.index.tar[index]), offset, size)

    def name(self, index: int) -> str:
        """Name of a sample's image and of its tar file.

        It is read from the header, so that the index need not hold names.
        """
        tar = int(self.index.tar[index])
        header = self._read(tar, int(self.index.offset[index]) - tarfile.BLOCKSIZE, 512)
        member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape").name
        return f"{member!r} in {self.files[tar]!r}"

    def _read(self, tar: int, offset: int, size: int) -> bytes:
        try:
            with _READING:
                if tar not in self._open_tars:
                    self._open_tars[tar] = os.open(self.files[tar], os.O_RDONLY)
                self._open_tars.move_to_end(tar)
                if len(self._open_tars) > MAX_OPEN_TARS:
                    os.close(self._open_tars.popitem(last=False)[1])
                return os.pread(self._open_tars[tar], size, offset)
        except OSError as error:
            raise InputError(
                f"cannot read the tar file {self.files[tar]!r} ({error}): bring it back"
            ) from error

    def __del__(self) -> None:
        for descriptor in getattr(self, "_open_tars", {}).values():
            os.close(descriptor)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_open_tars": OrderedDict()}  # another process opens its own


def shuffle_in_blocks(tar: Tensor, generator: Generator) -> Tensor:
    """Draw an epoch in which samples that are stored near to each other are read together.

    The tar files are put into a random order and taken in blocks of several, whose samples are
    shuffled with each other.

    Args:
        tar: number of each sample's tar file (N,).
        generator: decides the order.

    Returns:
        Each sample's index once, (N,).
    """
    sizes = torch.bincount(tar)
    block = max(BLOCK_SAMPLES, BLOCK_TARS * len(tar) // len(sizes))
    shuffled = torch.randperm(len(sizes), generator=generator)
    samples_before = torch.empty_like(sizes)
    samples_before[shuffled] = sizes[shuffled].cumsum(0) - sizes[shuffled]
    within_block = torch.rand(len(tar), generator=generator, dtype=torch.float64)
    return torch.argsort((samples_before // block)[tar] + within_block, stable=True)


def _tars_by_split(root: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """Training, validation and other tar files; all are for training where no name has a split."""
    tars = find_tars(root)
    words = {p: _words(root, p) for p in tars}
    training = [p for p in tars if words[p] & TRAINING_WORDS]
    validation = [p for p in tars if words[p] & VALIDATION_WORDS and not words[p] & TRAINING_WORDS]
    if not training and not validation:
        return tars, [], []
    if not training:
        raise InputError(
            f"{str(root)!r} has tar files to validate on and none to train on: put them into "
            "train/, or name them *-train-*.tar"
        )
    return training, validation, [p for p in tars if p not in {*training, *validation}]


def _words(root: Path, file: Path) -> set[str]:
    return set(re.findall("[a-z]+", str(file.relative_to(root)).lower()))


def _load_index(files: list[str]) -> TarIndex:
    """Load the index of tar files, which is made once and stored until one of them changes."""
    states = []
    for file in files:
        with readable(file):
            status = os.stat(file)
        states.append((os.path.abspath(file), status.st_size, status.st_mtime_ns))
    digest = hashlib.blake2b(repr((FORMAT, states)).encode(), digest_size=12).hexdigest()
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "scalekd"
    stored = folder / f"tar-index-{digest}.npz"
    if (index := _read_stored_index(stored, [size for _, size, _ in states])) is not None:
        return index
    logger.info("reading the headers of %d tar files, once", len(files))
    columns_of_tars = [_read_headers(number, file) for number, file in enumerate(files)]
    columns = zip(*columns_of_tars, strict=True)
    index = TarIndex(*(np.concatenate(column) for column in columns))
    if not len(index.tar):
        raise InputError(f"there is no sample in {len(files)} tar files, such as {files[0]!r}")
    with contextlib.suppress(OSError):  # then the next run reads the headers again
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(stored) as content:
            np.savez(content, **asdict(index))
    return index


def _read_stored_index(stored: Path, tar_sizes: list[int]) -> TarIndex | None:
    """A stored index; None where it is missing, damaged, or not one of tar files of these sizes."""
    try:
        with open_regular(stored) as content, np.load(content) as arrays:
            columns = dict(arrays)
            index = TarIndex(**columns)
    except Exception:  # of a damaged file, nearly anything: then the headers are read again
        return None
    kinds = {name: (column.dtype.kind, column.ndim) for name, column in columns.items()}
    lengths = {len(column) for column in columns.values() if column.ndim == 1}
    if set(kinds.values()) != {("i", 1)} or len(lengths) != 1 or lengths == {0}:
        return None
    if index.tar.min() < 0 or index.tar.max() >= len(tar_sizes) or index.target.min() < NO_LABEL:
        return None
    ends = index.offset + index.size
    within = (index.size >= 0) & (index.offset >= tarfile.BLOCKSIZE)
    return index if (within & (ends <= np.array(tar_sizes)[index.tar])).all() else None


def _read_headers(number: int, file: str) -> tuple[npt.NDArray[np.integer], ...]:
    """The columns of `TarIndex` for the samples of one tar file."""
    rows = [_index_sample(file, key, members) for key, members in _read_samples(file)]
    offsets, sizes, targets = zip(*rows, strict=True) if rows else ((), (), ())
    return (
        np.full(len(rows), number, np.int32),
        np.array(offsets, np.int64),
        np.array(sizes, np.int32),
        np.array(targets, np.int32),
    )


Members = dict[str, tuple[int, int, bytes]]
"""The files of one sample, by ending: offset, size and, for labels only, content."""


def _read_samples(file: str) -> Iterator[tuple[str, Members]]:
    """Key and members of each sample of a tar file; the members of a sample are adjacent."""
    key, members = "", Members()
    try:
        with readable(file):
            os.close(os.open(file, os.O_RDONLY))  # `tarfile` calls what is unreadable damaged
        with tarfile.open(file, "r:", tarinfo=BoundedTarInfo) as tar:
            for member in tar:
                folder, _, name = member.name.rpartition("/")
                if not member.isreg() or name.startswith("__") or _is_hidden_member(member.name):
                    continue
                if member.issparse():
                    raise tarfile.ReadError(f"{member.name!r} is stored as a sparse file")
                stem, _, ending = name.partition(".")
                if (next_key := f"{folder}/{stem}") != key and members:
                    yield key, members
                    members = {}
                key, ending = next_key, f".{ending.lower()}"
                content = b""
                if ending in (".cls", ".json"):
                    if member.size > MAX_LABEL_BYTES:
                        raise InputError(
                            f"{member.name!r} in {file!r} has {member.size} bytes, too many for a "
                            "label: leave it out, or put a .cls of one number in its place"
                        )
                    label = tar.extractfile(member)
                    content = label.read() if label else b""
                members[ending] = member.offset_data, member.size, content
            _check_ends_here(tar)
    except (tarfile.TarError, OSError, EOFError, RecursionError, OverflowError) as error:
        raise InputError(
            f"the tar file {file!r} is no tar, or is cut off or damaged ({error}): copy it again"
        ) from error
    if members:
        yield key, members


def _check_ends_here(tar: tarfile.TarFile) -> None:
    """Raise ReadError where what `tarfile` takes for the end of a tar file is not its end.

    `tarfile` stops at anything that is no header, also in the middle of a damaged file, and at the
    end of a file that was cut off between two members; a complete one ends with a block of zeros.
    """
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    block = tar.fileobj.read(tarfile.BLOCKSIZE)
    if block.strip(b"\0"):
        raise tarfile.ReadError(f"no header at byte {tar.offset}")
    if len(block) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"the mark of its end is missing at byte {tar.offset}")


class BoundedTarInfo(tarfile.TarInfo):
    """A member of a tar file, whose extended header may not be large nor lead backwards."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:  # tarfile's hook
        if self.type in EXTENDED_HEADERS and not 0 <= self.size <= MAX_LABEL_BYTES:
            raise tarfile.ReadError(f"a header of {self.size} bytes at byte {archive.offset}")
        before = archive.offset
        member: tarfile.TarInfo = super()._proc_member(archive)  # type: ignore[misc]
        if member.size < 0 or archive.offset < before:
            raise tarfile.ReadError(f"a member of {member.size} bytes at byte {before}")
        return member


def _is_hidden_member(name: str) -> bool:
    return any(is_hidden(part) for part in name.split("/") if part not in (".", ".."))


def _index_sample(file: str, key: str, members: Members) -> tuple[int, int, int]:
    """Offset and size of a sample's image, and its class."""
    name = f"sample {key.lstrip('/')!r} in {file!r}"
    images = [ending for ending in members if ending[1:] in COMMON_ENDINGS]
    images = images or [ending for ending in members if ending[1:] in image_endings()]
    if len(images) != 1:
        raise InputError(
            f"{name} has {len(images) or 'no'} images ({', '.join(members)}): it must have one, "
            "such as .jpg or .png"
        )
    offset, size, _ = members[images[0]]
    if size > MAX_IMAGE_BYTES:
        raise InputError(
            f"the image of {name} has {size} bytes, more than 1 GiB: pack the tar file without it"
        )
    return offset, size, _parse_label(name, members)


def _parse_label(name: str, members: Members) -> int:
    label: object = None
    try:
        if ".cls" in members:
            label = members[".cls"][2].decode()
        elif ".json" in members:
            metadata = json.loads(members[".json"][2])
            label = metadata.get("label") if isinstance(metadata, dict) else None
        target = NO_LABEL if label is None else _parse_number(str(label))
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{name} has a label that is not a number ({str(label)[:40]!r}): it must be a class "
            "from 0 on"
        ) from error
    if label is not None and not 0 <= target < 2**31:
        raise InputError(f"{name} has the label {target}: it must be a class from 0 on")
    return target


def _parse_number(text: str) -> int:
    if not re.fullmatch(r"\s*-?[0-9]{1,18}\s*", text, re.ASCII):
        raise ValueError(text)  # `int` takes 1_000 and digits of any script, too
    return int(text)
