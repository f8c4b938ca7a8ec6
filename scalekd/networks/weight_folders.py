"""Weights in a folder as transformers writes it: one file, or several that an index lists."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from scalekd.errors import InputError
from scalekd.networks.transformers_config import MAX_CONFIG_BYTES, is_transformers_folder
from scalekd.networks.weight_files import read_checkpoint
from scalekd.reading import parse_json, read_text

NAMES = "model.safetensors", "pytorch_model.bin"
"""Names of a model's weights in a folder, best first."""

INDEX = ".index.json"
"""Ending of the file that lists which of several files has which tensor."""


@dataclass(frozen=True)
class WeightFiles:
    """Where weights are.

    Attributes:
        path: As the user and messages name them: a file, or the index of several.
        parts: The files with the tensors.
    """

    path: Path
    parts: tuple[Path, ...]

    def read(self) -> Any:
        """Return what the files hold, as `read_checkpoint` does.

        Raises:
            InputError: a file cannot be read, or one of several holds anything but tensors.
        """
        if self.path in self.parts:
            return read_checkpoint(self.path)
        tensors: dict[str, Tensor] = {}
        for part in self.parts:
            content = read_checkpoint(part)
            if not isinstance(content, dict):
                raise InputError(f"{str(part)!r} holds no tensors by name, as {self.path} says")
            tensors |= content
        return tensors


def find_weight_files(path: Path) -> WeightFiles:
    """Find the files of weights that `path` names.

    Args:
        path: a file of weights, the index of several, or a folder with config.json that
            transformers' `save_pretrained` or `Trainer` wrote.

    Raises:
        InputError: the folder is none of transformers, or it or the index names no weights.
    """
    if path.name.endswith(INDEX):
        return WeightFiles(path, _read_index(path))
    if not os.path.isdir(path):
        return WeightFiles(path, (path,))
    for name in NAMES if is_transformers_folder(path) else ():
        if os.path.exists(path / name):
            return WeightFiles(path / name, (path / name,))
        if os.path.exists(path / f"{name}{INDEX}"):
            return find_weight_files(path / f"{name}{INDEX}")
    raise InputError(_why_no_weights(path))


def _read_index(index: Path) -> tuple[Path, ...]:
    """Return the files in an index, all of which are beside it."""
    try:
        content = parse_json(read_text(index, repr(str(index)), limit=MAX_CONFIG_BYTES))
    except ValueError as error:
        raise InputError(f"{str(index)!r} cannot be read as JSON: {error}") from error
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not names:
        raise InputError(f"{str(index)!r} has no weight_map of the files with the weights")
    files = list(dict.fromkeys(names.values()))
    for name in files:
        if not isinstance(name, str) or Path(name).name != name:
            raise InputError(
                f"{str(index)!r} names {name!r} as a file of weights, which is no file beside it"
            )
        if not os.path.isfile(index.parent / name):
            raise InputError(
                f"{str(index)!r} lists {len(files)} files of weights, and {name!r} is missing "
                "beside it: copy or download all of them"
            )
    return tuple(index.parent / name for name in sorted(files))


def _why_no_weights(folder: Path) -> str:
    if os.path.exists(folder / "adapter_config.json"):
        return (
            f"{str(folder)!r} holds only an adapter (LoRA) of a model: merge them in Python with "
            "model.merge_and_unload(), and give the folder of the merged model's save_pretrained"
        )
    if is_transformers_folder(folder):
        return (
            f"{str(folder)!r} has config.json and no {' or '.join(NAMES)}: give a folder with the "
            "weights, too"
        )
    if checkpoints := sorted(p.name for p in folder.glob("checkpoint-*") if p.is_dir()):
        return (
            f"{str(folder)!r} is the folder of a Trainer's checkpoints: give one of them, "
            f"{', '.join(checkpoints[:6])}"
        )
    return (
        f"{str(folder)!r} is a folder, not a file to load weights from: give a .safetensors or "
        ".pth file in it, or name a folder that timm exported as the model, local-dir:FOLDER"
    )
