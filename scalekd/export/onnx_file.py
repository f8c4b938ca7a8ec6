"""Writing a network as an ONNX file by torch's exporter over `torch.export`."""

import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from scalekd.errors import InputError, one_line
from scalekd.evaluation.onnx_network import OnnxNetwork
from scalekd.export.comparison import Classifier
from scalekd.export.description import METADATA_KEY, FileDescription
from scalekd.export.pixels import Normalizing
from scalekd.export.trace import trace

INPUT, OUTPUT = "images", "logits"
"""Names of the file's input (N, channels, H, W) and of its output (N, classes)."""

MAX_BYTES = 2**31 - 2**27
"""Largest weights of one file: protobuf's limit is 2 GiB, and the graph takes some of it."""


def check_packages(*names: str) -> None:
    """Raise InputError unless these packages, of the extra `onnx`, are installed."""
    if missing := [name for name in names if importlib.util.find_spec(name) is None]:
        raise InputError(
            f"an ONNX file needs {' and '.join(missing)}, not installed here: "
            "pip install 'scalekd[onnx]'"
        )


def write_onnx(network: nn.Module, file: Path, description: FileDescription) -> None:
    """Write `network` as an ONNX file whose batch size is free.

    Args:
        network: in eval mode.
        file: the file.
        description: of its images and classes, written to the file's metadata.

    Raises:
        InputError: the network cannot be traced or converted, or is larger than a file may be.
    """
    tensors = [*network.parameters(), *network.buffers()]
    if (size := sum(t.numel() * t.element_size() for t in tensors)) > MAX_BYTES:
        raise InputError(
            f"the model has {size / 2**30:.1f} GiB of weights, and an ONNX file has at most 2: "
            "export it with --format pt2"
        )
    program = trace(
        network,
        description.input,
        normalize_inside=description.normalization_inside,
        plain_attention=True,
    )
    with quiet_exporters():
        try:
            converted = torch.onnx.export(
                program,
                (),
                dynamo=True,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: "batch"},),
                verbose=False,
            )
        except Exception as error:  # of an operator that has no form in ONNX
            reason = one_line(error.__cause__ or error)
            raise InputError(
                f"torch's exporter cannot convert the model to ONNX ({reason}): export it with "
                "--format pt2"
            ) from error
        assert converted is not None, "torch gives the program where it is given no file"
        converted.model.metadata_props[METADATA_KEY] = description.to_json()
        converted.save(file, external_data=False)


def load_onnx(file: Path, description: FileDescription) -> Classifier:
    """Load an ONNX file that `write_onnx` wrote, to be run by ONNX Runtime on the CPU."""
    network = OnnxNetwork(file)
    return network if description.normalization_inside else Normalizing(network, description.input)


@contextmanager
def quiet_exporters() -> Iterator[None]:
    """Inside, the exporters' remarks for their own developers are not shown."""
    loggers = [logging.getLogger(name) for name in (None, "torch.onnx", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
