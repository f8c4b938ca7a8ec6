"""The folder of a trained network: the spec that builds it, and its weights."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from scalekd.atomic_io import new_folder
from scalekd.errors import InputError, one_line
from scalekd.networks.pretrained import load_weights
from scalekd.reading import read_mapping

CONFIG, WEIGHTS = "config.json", "model.safetensors"


class NetworkSpec(Protocol):
    """A dataclass of plain data that builds a network."""

    def build(self) -> nn.Module:
        """Build the network with random weights."""


Spec = TypeVar("Spec", bound=NetworkSpec)


def save_network(weights: dict[str, Tensor], spec: Any, folder: Path) -> None:
    """Write a network's weights (safetensors) and its spec, a dataclass, to a new folder.

    Raises:
        OSError: the folder exists, or cannot be written.
    """
    try:
        with new_folder(folder) as partial:
            text = json.dumps(asdict(spec), indent=2) + "\n"
            (partial / CONFIG).write_text(text, encoding="utf-8")
            plain = {name: tensor.contiguous().clone() for name, tensor in weights.items()}
            save_file(plain, partial / WEIGHTS)
            # safetensors lets nobody but the user read it, whatever the umask is.
            (partial / WEIGHTS).chmod((partial / CONFIG).stat().st_mode & 0o777)
    except SafetensorError as error:
        raise OSError(str(error)) from error


def load_network(
    folder: Path, from_dict: Callable[[dict[str, Any]], Spec], kind: str
) -> tuple[Any, Spec]:
    """The network of a folder that a run wrote, in eval mode, and the spec that built it.

    Args:
        folder: as `save_network` wrote it.
        from_dict: makes the spec of plain data.
        kind: what the network is called.

    Raises:
        InputError: the folder has no such network, or is damaged.
    """
    plain = read_mapping(folder / CONFIG, repr(str(folder / CONFIG)))
    try:
        spec = from_dict(plain)
    except (TypeError, ValueError, KeyError) as error:
        raise InputError(f"{str(folder)!r} is no folder of a {kind} ({one_line(error)})") from error
    network = spec.build()
    try:
        weights = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{str(folder / WEIGHTS)!r} cannot be read ({one_line(error)}): it is damaged or gone"
        ) from error
    load_weights(network, weights, str(folder / WEIGHTS))
    return network.eval(), spec
