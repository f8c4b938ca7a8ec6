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

from scalekd.atomic_io import replacing
from scalekd.data.corrupt import Sample, decode_image
from scalekd.data.source import Source, build_source, check_same_classes
from scalekd.errors import InputError
from scalekd.recipe import Data

logger = logging.getLogger(__name__)

TRAINING_WORDS, VALIDATION_WORDS = {"train", "training"}, {"val", "valid", "validation"}
"""Words in the name of a tar file, or of its folder, that tell which split it belongs to."""

MAX_OPEN_TARS = 64
"""How many tar files each process keeps open."""

BLOCK_TARS, BLOCK_SAMPLES = 8, 8_192
"""A block, whose samples are shuffled with each other, has at least so many of both."""

NO_LABEL = -1
"""The class of a sample without a label."""

FORMAT = 1
"""Version of the stored index."""


def find_tars(root: Path) -> list[Path]:
    """List the tar files in `root` and in its immediate folders."""
    return sorted(p for depth in ("*.tar", "*/*.tar") for p in root.glob(depth) if p.is_file())


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
    identifiers = [os.path.relpath(file, root) for file in training.files]
    identifiers += map(str, training.index.size.tolist())
    sampler = partial(shuffle_in_blocks, torch.from_numpy(training.index.tar).long())
    build = partial(
        build_source, data, training=training, identifiers=identifiers, epoch_sampler=sampler
    )
    if training.first_without_label is not None:
        if validation_tars:
            notes.append(
                f"skipped, there being no labels to train on: {len(validation_tars)} tar files"
            )
        return build(notes=notes)
    if not validation_tars:
        raise InputError(
            f"{data.root!r} has tar files to train on and none to validate on: put them into val/, "
            "or name them *-val-*.tar"
        )
    validation = TarSamples(validation_tars)
    if (missing := validation.first_without_label) is not None:
        raise InputError(
            f"{validation.name(missing)} has no label, and the tar files to train on have: add its "
            ".cls, or a .json with a label"
        )
    labels, validation_labels = (np.unique(s.index.target).tolist() for s in (training, validation))
    check_same_classes(
        data.root, "the tar files to train and to validate on", labels, validation_labels
    )
    classes = labels[-1] + 1
    if classes < 2:
        raise InputError(f"{data.root!r}: all labels are 0; at least 2 classes are needed")
    if len(labels) < classes:
        notes.append(
            f"of {classes} classes, 0 to {classes - 1}, {classes - len(labels)} have no image, for "
            f"example {min(set(range(classes)) - set(labels))}"
        )
    targets, names = torch.from_numpy(training.index.target), [str(i) for i in range(classes)]
    return build(validation=validation, targets=targets, classes=names, notes=notes)


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
        offset, size = int(self.index.offset[index]), int(self.index.size[index])
        content = self._read(int(self.index.tar[index]), offset, size)
        image = decode_image(content, self.name(index))
        if self.first_without_label is not None:
            return (image,)
        return image, int(self.index.target[index])

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
    words = {p: set(re.findall("[a-z]+", str(p.relative_to(root)).lower())) for p in tars}
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


def _load_index(files: list[str]) -> TarIndex:
    """Load the index of tar files, which is made once and stored until one of them changes."""
    states = [(os.path.abspath(f), (s := os.stat(f)).st_size, s.st_mtime_ns) for f in files]
    digest = hashlib.blake2b(repr((FORMAT, states)).encode(), digest_size=12).hexdigest()
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "scalekd"
    stored = folder / f"tar-index-{digest}.npz"
    with contextlib.suppress(OSError, ValueError, zipfile.BadZipFile), np.load(stored) as arrays:
        return TarIndex(**arrays)
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
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                folder, _, name = member.name.rpartition("/")
                if not member.isreg() or name.startswith(("__", "._")):
                    continue
                stem, _, ending = name.partition(".")
                if (next_key := f"{folder}/{stem}") != key and members:
                    yield key, members
                    members = {}
                key, ending = next_key, f".{ending.lower()}"
                label = tar.extractfile(member) if ending in (".cls", ".json") else None
                content = label.read() if label else b""
                members[ending] = member.offset_data, member.size, content
            _check_ends_here(tar)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise InputError(
            f"the tar file {file!r} is no tar, or is cut off or damaged ({error}): copy it again"
        ) from error
    if members:
        yield key, members


def _check_ends_here(tar: tarfile.TarFile) -> None:
    """Raise ReadError where a tar file has data after what `tarfile` takes for its end.

    `tarfile` stops at anything that is no header, also in the middle of a damaged file.
    """
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise tarfile.ReadError(f"no header at byte {tar.offset}")


def _index_sample(file: str, key: str, members: Members) -> tuple[int, int, int]:
    """Offset and size of a sample's image, and its class."""
    name = f"sample {key.lstrip('/')!r} in {file!r}"
    images = [ending for ending in members if ending in IMG_EXTENSIONS]
    if len(images) != 1:
        raise InputError(
            f"{name} has {len(images) or 'no'} images ({', '.join(members)}): it must have one, "
            "such as .jpg or .png"
        )
    offset, size, _ = members[images[0]]
    return offset, size, _parse_label(name, members)


def _parse_label(name: str, members: Members) -> int:
    label: object = None
    try:
        if ".cls" in members:
            label = members[".cls"][2].decode()
        elif ".json" in members:
            metadata = json.loads(members[".json"][2])
            label = metadata.get("label") if isinstance(metadata, dict) else None
        target = NO_LABEL if label is None else int(str(label))
    except ValueError as error:
        raise InputError(
            f"{name} has a label that is not a number ({str(label)[:40]!r}): it must be a class "
            "from 0 on"
        ) from error
    if label is not None and not 0 <= target < 2**31:
        raise InputError(f"{name} has the label {target}: it must be a class from 0 on")
    return target
