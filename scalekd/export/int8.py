"""Quantising an ONNX file to 8 bits by ONNX Runtime, calibrated on images."""

from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from scalekd.errors import InputError, one_line
from scalekd.export.description import FileDescription
from scalekd.export.onnx_file import INPUT, quiet_exporters, write_onnx
from scalekd.export.pixels import PixelSet
from scalekd.networks.input_config import normalize

QUANTIZED = ["Conv", "Gemm", "MatMul"]
"""Operators that have nearly all of a network's cost. Norms, softmax and activations stay in
floating point, where they cost little and lose much."""

BATCH = 4
"""Images that are calibrated on at a time: the activations of all layers are in memory."""


def write_int8(
    network: nn.Module, file: Path, description: FileDescription, calibration: PixelSet
) -> None:
    """Write an ONNX file with weights and activations of 8 bits (QDQ, a scale for each channel).

    Args:
        network: in eval mode.
        file: the file to write; files in floating point are written beside it.
        description: of the images and classes.
        calibration: images by which the ranges of the activations are measured.

    Raises:
        InputError: the network cannot be traced, converted or quantised.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    floating, prepared = file.with_name("float.onnx"), file.with_name("prepared.onnx")
    write_onnx(network, floating, description)
    try:
        with quiet_exporters():
            # Folds BatchNorm into convolutions, which then have one range in place of two.
            quant_pre_process(str(floating), str(prepared), skip_symbolic_shape=True)
            quantize_static(
                str(prepared),
                str(file),
                _build_reader(calibration, description),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=QUANTIZED,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
    except (InputError, OSError):  # of an image that cannot be read, or of a full disk
        raise
    except Exception as error:
        raise InputError(
            f"ONNX Runtime cannot quantise the model ({one_line(error)}): export it with --format "
            "onnx"
        ) from error


def _build_reader(calibration: PixelSet, description: FileDescription) -> Any:
    """What ONNX Runtime asks for its calibration images; its base class needs onnxruntime."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = calibration.batches(BATCH)

        def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
            for pixels, _ in self.batches:
                images = normalize(pixels, description.input)
                return {INPUT: (pixels if description.normalization_inside else images).numpy()}
            return None

    return Reader()
