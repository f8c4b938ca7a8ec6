"""Classifiers in ONNX files: what they compute, and what is no classifier of images."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.onnx_files import SIDE, expected_logits, metadata, write_onnx
from helpers.refusals import refused
from onnx import TensorProto

from scalekd.evaluation.onnx_network import OnnxMetadata, OnnxNetwork
from scalekd.networks import InputConfig


def images(count: int, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, channels, SIDE, SIDE, generator=generator)


@pytest.mark.parametrize("batch", ["batch", 1, 2], ids=["any", "1", "2"])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_batches_of_any_size_are_classified(tmp_path: Path, batch: Any, count: int) -> None:
    network = OnnxNetwork(Path(write_onnx(tmp_path / "m.onnx", (batch, 3, SIDE, SIDE))))
    assert network.classes == 3
    torch.testing.assert_close(network(images(count)), expected_logits(images(count)))


def test_no_images_have_no_logits(tmp_path: Path) -> None:
    network = OnnxNetwork(Path(write_onnx(tmp_path / "m.onnx")))
    assert network(images(0)).shape == (0, 3)


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.DOUBLE])
def test_files_of_other_precisions_are_given_their_numbers(tmp_path: Path, kind: int) -> None:
    network = OnnxNetwork(Path(write_onnx(tmp_path / "m.onnx", images=kind)))
    logits = network(images(2))
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected_logits(images(2)), atol=2e-3, rtol=0)


def test_probabilities_become_logits(tmp_path: Path) -> None:
    network = OnnxNetwork(Path(write_onnx(tmp_path / "m.onnx", softmax=True)))
    assert network.gives_probabilities
    expected = expected_logits(images(4)).softmax(1)
    torch.testing.assert_close(network(images(4)).softmax(1), expected)


def test_the_images_of_another_programs_file_are_found_in_the_graph(tmp_path: Path) -> None:
    network = OnnxNetwork(Path(write_onnx(tmp_path / "m.onnx", ("n", 1, 6, 10))))
    assert (network.input.channels, network.input.size) == (1, (6, 10))
    assert network.input.mean == pytest.approx((0.449,))
    any_size = Path(write_onnx(tmp_path / "any.onnx", ("n", 3, "h", "w")))
    assert OnnxNetwork(any_size, (12, 9)).input.size == (12, 9)
    with refused("any.onnx", "any size", "image_size"):
        OnnxNetwork(any_size)


def test_metadata_gives_the_images_and_names(tmp_path: Path) -> None:
    file = write_onnx(tmp_path / "m.onnx", ("n", 3, "h", "w"), notes=metadata())
    network = OnnxNetwork(Path(file))
    assert network.metadata is not None
    assert network.metadata.label_names == ("cat", "ant", "bee")
    assert network.input == InputConfig(
        3, (SIDE, SIDE), (0.1, 0.2, 0.3), (0.5, 0.6, 0.7), 0.9, "squash", "bicubic"
    )
    inside = write_onnx(tmp_path / "i.onnx", notes=metadata(normalization_inside=True))
    network = OnnxNetwork(Path(inside))
    assert (network.input.mean, network.input.std) == ((0.0,) * 3, (1.0,) * 3)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "damaged"),
        ("[" * 40 + "]" * 40, "nested"),
        ("3", "no mapping"),
        (metadata(label_names="ant"), "label_names"),
        (metadata(label_names=[1, 2, 3]), "label_names"),
        (metadata(input_size=[3, 0, 8]), "input_size"),
        (metadata(input_size=[3, 10**6, 8]), "input_size"),
        (metadata(input_size=None), "input_size"),
        (metadata(mean=[0.1]), "mean"),
        (metadata(mean=[float("nan"), 0, 0]), "mean"),
        (metadata(std=[0.1, 0, 0.1]), "std"),
        (metadata(crop_pct="all"), "crop_pct"),
        (metadata(crop_mode="left"), "crop_mode"),
        (metadata(interpolation=3), "interpolation"),
        (metadata(normalization_inside=1), "normalization_inside"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damaged_metadata_is_refused_by_what_is_wrong(
    tmp_path: Path, text: Any, reason: str
) -> None:
    file = write_onnx(tmp_path / "m.onnx", notes=text)
    with refused("m.onnx", "metadata", reason, "export the model again"):
        OnnxNetwork(Path(file))


def test_metadata_of_other_channels_is_refused(tmp_path: Path) -> None:
    grey = metadata(input_size=[1, SIDE, SIDE], mean=[0.5], std=[0.5])
    with refused("3 channels", "describes 1"):
        OnnxNetwork(Path(write_onnx(tmp_path / "m.onnx", notes=grey)))


@pytest.mark.parametrize(
    ("shape", "kind", "reason"),
    [
        (("n", SIDE, SIDE, 3), TensorProto.FLOAT, "channels before height"),
        (("n", 3), TensorProto.FLOAT, "(N, channels, height, width)"),
        (("n", 3, SIDE, SIDE), TensorProto.UINT8, "floating-point"),
    ],
    ids=["channels last", "vectors", "bytes"],
)
def test_what_takes_no_images_is_refused(
    tmp_path: Path, shape: tuple[Any, ...], kind: int, reason: str
) -> None:
    with refused("m.onnx", reason):
        OnnxNetwork(Path(write_onnx(tmp_path / "m.onnx", shape, images=kind)))


def test_another_size_than_the_files_is_refused(tmp_path: Path) -> None:
    file = Path(write_onnx(tmp_path / "m.onnx"))
    with refused("16x16", "8x8", "drop the size"):
        OnnxNetwork(file, (16, 16))


@pytest.mark.parametrize("content", [b"", b"no protobuf", b"\0" * 99])
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with refused("m.onnx", "cannot be read as an ONNX file"):
        OnnxNetwork(tmp_path / "m.onnx")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with refused("none.onnx", "is missing"):
        OnnxNetwork(tmp_path / "none.onnx")


def test_metadata_without_names_is_read() -> None:
    assert OnnxMetadata.parse(json.dumps(metadata(label_names=[]))).label_names == ()
