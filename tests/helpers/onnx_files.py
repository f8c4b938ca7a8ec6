"""ONNX files of very small classifiers, made in a millisecond and not by torch's exporter."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

SIDE = 8


def metadata(**changes: Any) -> dict[str, Any]:
    """What `scalekd export` writes into a file of three classes."""
    return {
        "label_names": ["cat", "ant", "bee"],
        "input_size": [3, SIDE, SIDE],
        "mean": [0.1, 0.2, 0.3],
        "std": [0.5, 0.6, 0.7],
        "crop_pct": 0.9,
        "crop_mode": "squash",
        "interpolation": "bicubic",
        "normalization_inside": False,
        **changes,
    }


def weights(channels: int = 3, classes: int = 3) -> np.ndarray:
    """The classifier (channels, classes) of `write_onnx`."""
    return np.random.default_rng(0).normal(size=(channels, classes)).astype(np.float32)


def expected_logits(images: Tensor, classes: int = 3) -> Tensor:
    """What the file of `write_onnx` computes: the channels' averages times `weights`."""
    return images.mean((2, 3)) @ torch.from_numpy(weights(images.shape[1], classes))


def write_onnx(
    file: Path,
    shape: tuple[Any, ...] = ("batch", 3, SIDE, SIDE),
    *,
    classes: int = 3,
    softmax: bool = False,
    notes: Any = None,
    images: int = TensorProto.FLOAT,
) -> str:
    """Write a classifier of each channel's average over an image; returns the file's path.

    Args:
        file: the file.
        shape: of the images; a string is a dimension of any size.
        classes: number of its logits.
        softmax: whether it ends in a softmax.
        notes: value of the metadata `scalekd`: JSON text, or what is to be written as JSON.
        images: the type of the images' numbers.
    """
    channels = shape[1] if isinstance(shape[1], int) else 3
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("GlobalAveragePool", ["floats"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["averages"]),
        helper.make_node("MatMul", ["averages", "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"]),
    ][: 5 if softmax else 4]
    output = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("images", images, list(shape))],
        [output],
        [numpy_helper.from_array(weights(channels, classes), "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    if notes is not None:
        text = notes if isinstance(notes, str) else json.dumps(notes)
        helper.set_model_props(model, {"scalekd": text})
    onnx.save(model, file)
    return str(file)
