"""Open a model wherever it comes from: a run, a folder, a checkpoint, an ONNX file or timm."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from scalekd.data.source import normal_name
from scalekd.device import best_device
from scalekd.errors import InputError
from scalekd.evaluation.onnx_network import OnnxNetwork
from scalekd.networks import InputConfig, build_model, input_config
from scalekd.networks.input_config import Size, check_statistics, resize
from scalekd.notes import Note
from scalekd.runs.checkpoint import load_student
from scalekd.runs.folder import RunFolder
from scalekd.training.class_names import ClassNames

WEIGHT_FILES = {".safetensors", ".pth", ".pt", ".bin", ".tar", ".npz"}
"""Endings of files that hold weights and do not tell of which architecture."""


@dataclass(frozen=True, kw_only=True)
class OpenedModel:
    """A classifier that is ready to be run.

    Attributes:
        name: how messages name it: as the user did.
        network: normalised images (N, channels, H, W) on `best_device()` -> logits (N, classes); a
            timm model in eval mode, or an `OnnxNetwork`.
        input: the images that it takes.
        classes: number of its classes; 0 for a model without a classifier.
        names: of its classes, in the order of its logits; empty where it has none.
        normalizes: whether the network itself normalises its images; `input` then has the mean 0
            and the standard deviation 1.
        notes: what was loaded, and what was assumed.

    Example:
        >>> opened = open_model("runs/digits")
        >>> opened.network(torch.zeros(2, opened.input.channels, *opened.input.size)).shape
        torch.Size([2, 10])
    """

    name: str
    network: Callable[[Tensor], Tensor]
    input: InputConfig
    classes: int
    names: ClassNames = field(default_factory=ClassNames)
    normalizes: bool = False
    notes: tuple[Note, ...] = ()

    @property
    def tells_normalization(self) -> bool:
        """Whether the model says how its images are normalised; an ONNX file of another program
        does not."""
        return not (isinstance(self.network, OnnxNetwork) and self.network.metadata is None)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes in the order of the logits; empty where the model has none."""
        return self.names.names


def open_model(
    model: str,
    *,
    weights: str = "pretrained",
    weights_key: str | None = None,
    size: Size | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    crop: float | None = None,
    interpolation: str | None = None,
    option_prefix: str = "data.",
    arguments: Mapping[str, Any] | None = None,
) -> OpenedModel:
    """Open a model, in eval mode on `best_device()`.

    Args:
        model: a run folder (its trained student), an exported folder, a timm name, the checkpoint
            of a run (FILE.ckpt), or an ONNX file (FILE.onnx).
        weights: "pretrained" (those of timm's hub, or of the folder), "random", or a file; a
            checkpoint and an ONNX file have their own.
        weights_key: key of the weights in a file that holds several networks.
        size, mean, std, crop, interpolation: of the images, as in `InputConfig`; by default the
            model's own. An ONNX file of another program does not tell them: its images are then
            normalised as ImageNet's, with a warning.
        option_prefix: what errors write before the names of these five settings.
        arguments: further ones of timm's create_model; a checkpoint and an ONNX file have their
            own.

    Raises:
        InputError: there is no such model, it cannot be built, loaded or run, or it does not take
            such images.
    """
    path = Path(model)
    kind = path.suffix.lower()
    if kind in (".onnx", ".ckpt") and not path.is_dir():
        if arguments:
            raise InputError(
                f"model_args is {dict(arguments)}, but {model!r} tells how it is built: drop "
                "--model_args"
            )
        if weights != "pretrained" or weights_key is not None:
            raise InputError(
                f"weights is {weights!r}, but {model!r} has weights of its own: drop --weights and "
                "--weights_key"
            )
        opened = _open_onnx(model, size) if kind == ".onnx" else _open_checkpoint(model, size)
    elif kind in WEIGHT_FILES and path.is_file():
        raise InputError(
            f"{model!r} is a file of weights, which does not tell the model that they are of: "
            f"give timm's name of that model, and --weights {model}"
        )
    else:
        opened = _open_timm(model, weights, weights_key, size, arguments or {})
    check_statistics(option_prefix, opened.input.channels, mean=mean, std=std)
    if opened.normalizes and (mean or std):
        raise InputError(
            f"{model!r} normalises its images itself: drop {option_prefix}mean and "
            f"{option_prefix}std"
        )
    if not opened.tells_normalization and not (mean and std):
        text = (
            f"{model} does not tell how its images are normalised: ImageNet's mean and standard "
            f"deviation are taken unless --{option_prefix}mean and --{option_prefix}std give others"
        )
        opened = replace(opened, notes=(*opened.notes, Note("warning", text)))
    images = replace(
        opened.input,
        mean=tuple(mean or opened.input.mean),
        std=tuple(std or opened.input.std),
        crop=crop or opened.input.crop,
        interpolation=interpolation or opened.input.interpolation,
    )
    return replace(opened, input=images)


def name_for_timm(model: str) -> str:
    """What `build_model` calls the model of a run folder, an exported folder or a timm name.

    Raises:
        InputError: it is a run folder without a student.
    """
    folder = RunFolder(Path(model))
    if folder.student.is_dir():
        return f"local-dir:{folder.student}"
    if folder.settings.is_file():
        raise InputError(
            f"{model!r} has no student/ yet, because its runs have not finished: give one of its "
            f"checkpoints, {folder.checkpoints / '*.ckpt'}"
        )
    return f"local-dir:{model}" if folder.path.is_dir() else model


def _open_timm(
    model: str,
    weights: str,
    weights_key: str | None,
    size: Size | None,
    arguments: Mapping[str, Any],
) -> OpenedModel:
    network, loaded = build_model(name_for_timm(model), weights, size, weights_key, **arguments)
    return _from_network(model, network, size, notes=(loaded.note,))


def _open_checkpoint(model: str, size: Size | None) -> OpenedModel:
    network, spec = load_student(Path(model))
    remarks = resize(model, network, size, None)
    loaded = f"weights of {model}: the student {spec.name} of the checkpoint"
    notes = (Note("info", "; ".join([loaded, *remarks])),)
    size = size or (spec.input.size if spec.input else spec.size)
    opened = _from_network(model, network, size, notes)
    return replace(opened, names=ClassNames(tuple(map(normal_name, spec.class_names))))


def _from_network(
    model: str, network: nn.Module, size: Size | None, notes: tuple[Note, ...]
) -> OpenedModel:
    classes: Any = network.num_classes
    return OpenedModel(
        name=model,
        network=network.eval().to(best_device()),
        input=input_config(network, size),
        classes=classes,
        names=ClassNames.of_model(network),
        notes=notes,
    )


def _open_onnx(model: str, size: Size | None) -> OpenedModel:
    network = OnnxNetwork(Path(model), size)
    texts = [f"weights of {model}: an ONNX file, run by ONNX Runtime on the CPU"]
    if network.gives_probabilities:
        texts.append("its outputs are probabilities, whose logarithms are taken as its logits")
    metadata = network.metadata
    names = () if metadata is None else metadata.label_names
    if len(names) not in (0, network.classes) or len(set(names)) < len(names):
        raise InputError(
            f"{model!r} has {network.classes} logits, and its metadata {len(names)} names of "
            "classes, which do not fit: export the model again"
        )
    return OpenedModel(
        name=model,
        network=network,
        input=network.input,
        classes=network.classes,
        names=ClassNames(names),
        normalizes=metadata is not None and metadata.normalization_inside,
        notes=(Note("info", "; ".join(texts)),),
    )
