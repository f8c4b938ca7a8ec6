"""Writing a network as a .pt2 file of `torch.export`, and reading such a file of our own."""

import io
from pathlib import Path
from typing import Any

import torch
from torch import nn

from scalekd.export.comparison import Classifier
from scalekd.export.description import METADATA_KEY, FileDescription
from scalekd.export.onnx_file import quiet_exporters
from scalekd.export.pixels import Normalizing
from scalekd.export.trace import trace


def write_pt2(network: nn.Module, file: Path, description: FileDescription) -> None:
    """Write `network` as a program of torch whose batch size is free.

    `torch.export.load(FILE).module()(images)` runs it, with torch alone.

    Args:
        network: in eval mode.
        file: the file.
        description: of its images and classes, written to the extra file `scalekd` inside.

    Raises:
        InputError: the network cannot be traced.
    """
    program = trace(
        network,
        description.input,
        normalize_inside=description.normalization_inside,
        plain_attention=False,
    )
    content = io.BytesIO()  # a path's writer hides why the disk refuses
    with quiet_exporters():
        torch.export.save(program, content, extra_files={METADATA_KEY: description.to_json()})
    file.write_bytes(content.getbuffer())


def load_pt2(file: Path, description: FileDescription) -> Classifier:
    """Load a .pt2 file that `write_pt2` has just written, to be run on the CPU."""
    with quiet_exporters():
        network: Any = torch.export.load(file).module()
    return network if description.normalization_inside else Normalizing(network, description.input)
