"""A classifier in an ONNX file, run by ONNX Runtime and called like a module of torch."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from scalekd.data.source import normal_name
from scalekd.device import usable_cores
from scalekd.errors import InputError, one_line
from scalekd.networks.input_config import MAX_SIDE, InputConfig, Size
from scalekd.reading import is_number, is_whole, open_regular, parse_json

METADATA_KEY = "scalekd"
"""Key of a file's `metadata_props` under which `scalekd export` writes what it knows, as JSON."""

CROP_MODES = ("center", "squash", "border")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
"""Values that timm's validation transform takes."""

ARRAYS = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
"""Types of images that a file may take, as ONNX Runtime names them."""


@dataclass(frozen=True)
class OnnxMetadata:
    """What `scalekd export` wrote about a model into its ONNX file.

    Attributes:
        label_names: names of its classes, in the order of its logits; empty without names.
        input: the images that the file takes. Where the normalisation is inside the file these have
            values from 0 to 1, so their mean is 0 and their standard deviation 1.
        normalization_inside: whether the file itself subtracts the mean and divides by the
            standard deviation.
    """

    label_names: tuple[str, ...]
    input: InputConfig
    normalization_inside: bool

    @classmethod
    def parse(cls, text: str) -> "OnnxMetadata":
        """Read the JSON of a file's metadata.

        Raises:
            ValueError: it is not as `scalekd export` writes it; the message says what is not.
        """
        plain = parse_json(text)
        if not isinstance(plain, dict):
            raise ValueError("it is no mapping")
        names, size = plain.get("label_names", []), plain.get("input_size")
        if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            raise ValueError("label_names is no list of names")
        if not (
            isinstance(size, list)
            and len(size) == 3
            and all(is_whole(side, least=1, most=MAX_SIDE) for side in size)
        ):
            raise ValueError(f"input_size is {size!r}, not channels, height and width")
        inside = plain.get("normalization_inside")
        if not isinstance(inside, bool):
            raise ValueError(f"normalization_inside is {inside!r}")
        mean, std = (_read_statistics(plain, name, size[0]) for name in ("mean", "std"))
        if not min(std) > 0:
            raise ValueError(f"std is {list(std)}")
        crop = plain.get("crop_pct")
        if not is_number(crop, least=1e-3, most=10):
            raise ValueError(f"crop_pct is {crop!r}")
        for name, choices in (("crop_mode", CROP_MODES), ("interpolation", INTERPOLATIONS)):
            if plain.get(name) not in choices:
                raise ValueError(f"{name} is {plain.get(name)!r}")
        images = InputConfig(
            channels=size[0],
            size=(size[1], size[2]),
            mean=(0.0,) * size[0] if inside else mean,
            std=(1.0,) * size[0] if inside else std,
            crop=plain["crop_pct"],
            crop_mode=plain["crop_mode"],
            interpolation=plain["interpolation"],
        )
        return cls(tuple(map(normal_name, names)), images, inside)


def _read_statistics(plain: dict[str, Any], name: str, channels: int) -> tuple[float, ...]:
    values = plain.get(name)
    if not (isinstance(values, list) and len(values) == channels and all(map(is_number, values))):
        raise ValueError(f"{name} is {values!r}, not one number for each channel")
    return tuple(map(float, values))


class OnnxNetwork:
    """A classifier in an ONNX file: images (N, channels, H, W) -> logits (N, classes), on the CPU.

    A file that takes batches of one fixed size is given batches of that size, the last one filled
    up with zeros. Where the file ends in a softmax, the logarithms of its probabilities are the
    logits.

    Args:
        file: the ONNX file.
        size: (height, width) of the images, where the file takes any size and has no metadata.

    Attributes:
        metadata: what `scalekd export` wrote into the file; None in files of other programs.
        input: the images that it takes; in files of other programs normalised as ImageNet's.
        classes: number of its logits.
        gives_probabilities: whether the file ends in a softmax.

    Raises:
        InputError: onnxruntime is not installed, or the file cannot be read or run, or it is not a
            classifier of images.

    Example:
        >>> network = OnnxNetwork(Path("student.onnx"))
        >>> network(torch.zeros(2, network.input.channels, *network.input.size)).shape
        torch.Size([2, 10])
    """

    def __init__(self, file: Path, size: Size | None = None) -> None:
        self.file = str(file)
        self._session = _open_session(file)
        self.metadata = self._read_metadata()
        self._images, shape = self._find_images()
        self._batch = shape[0] if isinstance(shape[0], int) else None
        if self.metadata is not None:
            size = size or self.metadata.input.size
        self.input = self._find_input(
            self._find_channels(shape[1]), self._find_size(shape[2:], size)
        )
        self.gives_probabilities = False
        self.classes = self._try_out()

    def __call__(self, images: Tensor) -> Tensor:
        """Compute the logits (N, classes) in float32 of normalised images (N, channels, H, W)."""
        step = self._batch or max(1, len(images))
        parts = [self._run(images[start : start + step]) for start in range(0, len(images), step)]
        logits = torch.cat(parts) if parts else torch.empty(0, self.classes)
        return logits.clamp_min(1e-12).log() if self.gives_probabilities else logits

    def _run(self, images: Tensor) -> Tensor:
        count, batch = len(images), self._batch or len(images)
        if count < batch:
            filling = torch.zeros(batch - count, *images.shape[1:], device=images.device)
            images = torch.cat([images, filling])
        array = images.cpu().numpy().astype(ARRAYS[self._images.type], copy=False)
        (logits, *_) = self._session.run(None, {self._images.name: array})
        return torch.from_numpy(np.asarray(logits, dtype=np.float32))[:count]

    def _read_metadata(self) -> OnnxMetadata | None:
        text = self._session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        if text is None:
            return None
        try:
            return OnnxMetadata.parse(text)
        except ValueError as error:
            raise InputError(
                f"the metadata {METADATA_KEY!r} in {self.file!r} is damaged ({error}): export the "
                "model again"
            ) from error

    def _find_images(self) -> tuple[Any, list[Any]]:
        """Find the one input, which takes images, and its shape."""
        inputs = self._session.get_inputs()
        found = ", ".join(f"{i.name} {i.type} {i.shape}" for i in inputs) or "none"
        if len(inputs) != 1 or inputs[0].type not in ARRAYS or len(inputs[0].shape) != 4:
            raise InputError(
                f"{self.file!r} takes {found}: a classifier takes one batch of images, floating-"
                "point numbers of the shape (N, channels, height, width)"
            )
        return inputs[0], inputs[0].shape

    def _find_channels(self, channels: Any) -> int:
        if self.metadata is not None and not isinstance(channels, int):
            channels = self.metadata.input.channels
        if channels not in (1, 3):
            raise InputError(
                f"{self.file!r} takes images of the shape {self._images.shape}: the second number "
                "must be 1 or 3 channels; export the model for channels before height and width"
            )
        if self.metadata is not None and self.metadata.input.channels != channels:
            raise InputError(
                f"{self.file!r} takes images of {channels} channels, and its metadata describes "
                f"{self.metadata.input.channels}: export the model again"
            )
        return int(channels)

    def _find_size(self, sides: list[Any], requested: Size | None) -> Size:
        if any(not isinstance(side, int) for side in sides) and requested is None:
            raise InputError(
                f"{self.file!r} takes images of any size and does not tell which it was trained "
                "for: give its image_size"
            )
        height, width = (
            side if isinstance(side, int) else chosen
            for side, chosen in zip(sides, requested or sides, strict=True)
        )
        own = int(height), int(width)
        if requested is not None and tuple(requested) != own:
            raise InputError(
                f"the image size is {requested[0]}x{requested[1]}, but {self.file!r} takes images "
                f"of {own[0]}x{own[1]} pixels only: drop the size, or export the model for it"
            )
        return own

    def _find_input(self, channels: int, size: Size) -> InputConfig:
        if self.metadata is not None:
            return replace(self.metadata.input, size=size)
        mean, std = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
        if channels == 1:
            mean, std = (sum(mean) / 3,), (sum(std) / 3,)
        return InputConfig(channels, size, mean, std)

    def _try_out(self) -> int:
        """Run one image of noise; returns the number of logits."""
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(1, self.input.channels, *self.input.size, generator=generator)
        try:
            logits = self._run(noise)
        except Exception as error:  # ONNX Runtime raises a class of its own for each status
            raise InputError(f"{self.file!r} cannot be run: {one_line(error)}") from error
        if logits.dim() != 2 or len(logits) != 1:
            raise InputError(
                f"{self.file!r} gives {tuple(logits.shape)} for one image: a classifier gives one "
                "row of logits (1, classes)"
            )
        total = float(logits.double().sum())
        self.gives_probabilities = bool(logits.min() >= 0) and abs(total - 1) < 1e-3
        return logits.shape[1]


def _open_session(file: Path) -> Any:
    open_regular(file, repr(str(file))).close()
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(
            f"{str(file)!r} needs ONNX Runtime, which is not installed: pip install 'scalekd[onnx]'"
        ) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised
    options.intra_op_num_threads = usable_cores()  # by itself it does not look at a container's
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises a class of its own for each status
        raise InputError(
            f"{str(file)!r} cannot be read as an ONNX file: {one_line(error)}"
        ) from error
