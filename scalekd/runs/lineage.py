"""What a student was trained with, written into its folder and known wherever it goes."""

import platform
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import scalekd
from scalekd.networks.pretrained import LoadedWeights
from scalekd.reading import is_number, is_whole
from scalekd.recipe import PATHS, Recipe
from scalekd.runs.result import Run

HUBS = "hf-hub", "hf_hub"
PREFIXES = "local-dir:", "hf:", "hf-hub:", "hf_hub:"
"""What may be before a path or a name of the hub."""


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """What a student was trained with, and how it did.

    Attributes:
        method: by which it was trained.
        seed: of its run.
        teacher: timm's name; None where it had none.
        teacher_weights: where the teacher's weights came from; of a file its name alone.
        teacher_sha256: of the file of the teacher's weights.
        teacher_license: of the teacher's weights, where timm's configuration names one.
        data: name of the set of images, without its folder.
        training_images, validation_images: numbers of images.
        recipe: settings of the run; of paths the last part.
        versions: of this package and of those that it trained with.
        step: steps that were trained; 0 before.
        top1: accuracy on the validation images (a share); None where it was not measured.
    """

    method: str
    seed: int
    teacher: str | None
    teacher_weights: str | None
    teacher_sha256: str | None
    teacher_license: str | None
    data: str
    training_images: int
    validation_images: int
    recipe: dict[str, Any]
    versions: dict[str, str]
    step: int = 0
    top1: float | None = None

    @classmethod
    def from_dict(cls, plain: object) -> "Lineage":
        """The lineage that `to_dict` made `plain` of, read from a file.

        Raises:
            TypeError, ValueError: it is not such a one.
        """
        if not isinstance(plain, dict):
            raise TypeError("it is no mapping")
        lineage = cls(**plain)
        texts = (
            *(lineage.teacher, lineage.teacher_weights),
            *(lineage.teacher_sha256, lineage.teacher_license),
        )
        numbers = lineage.seed, lineage.training_images, lineage.validation_images, lineage.step
        if (
            not all(isinstance(text, str) for text in (lineage.method, lineage.data))
            or not all(text is None or isinstance(text, str) for text in texts)
            or not all(map(is_whole, numbers))
            or not (lineage.top1 is None or is_number(lineage.top1, least=0, most=1))
            or not all(isinstance(part, dict) for part in (lineage.recipe, lineage.versions))
        ):
            raise ValueError("a value is of another kind")
        return lineage

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as JSON has it."""
        return asdict(self)

    def after(self, step: int, top1: float | None) -> "Lineage":
        """The lineage of the student after `step` steps."""
        return replace(self, step=step, top1=top1)


def describe_lineage(
    recipe: Recipe,
    run: Run,
    *,
    weights: LoadedWeights | None,
    license: str | None,
    images: tuple[int, int],
) -> Lineage:
    """Describe what `run` of `recipe` trains with.

    Args:
        recipe: its settings.
        run: its method and seed.
        weights: of its teacher; None where it has none.
        license: of these weights.
        images: numbers of training and validation images.
    """
    source = None
    if weights is not None:
        source = Path(weights.source).name if weights.source == weights.file else weights.source
    packages = ("torch", "timm", "lightning")
    return Lineage(
        method=run.method,
        seed=run.seed,
        teacher=None if weights is None else _shown(recipe.teacher),
        teacher_weights=_shown(source),
        teacher_sha256=None if weights is None else weights.sha256,
        teacher_license=license,
        data=_shown(recipe.data.root) or "",
        training_images=images[0],
        validation_images=images[1],
        recipe=_without_folders(recipe.as_dict()),
        versions={
            "scalekd": scalekd.__version__,
            **{name: version(name) for name in packages},
            "python": platform.python_version(),
        },
    )


def _shown(place: str | None) -> str | None:
    """A name, or the last part of a path: folders of a home tell more than they should."""
    if place is None:
        return None
    prefix, colon, path = place.rpartition(":") if place.startswith(PREFIXES) else ("", "", place)
    is_path = bool(colon) or Path(path).is_absolute() or path.startswith(("./", "../", "~"))
    is_path |= len(Path(path).parts) > 2  # a name of the hub has two
    return f"{prefix}{colon}{Path(path).name}" if is_path and prefix not in HUBS else place


def _without_folders(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of which no one names a folder of this machine."""
    shown = dict(settings)
    for name in PATHS:
        if isinstance(shown.get(name), str):
            shown[name] = _shown(shown[name])
    shown["data"] = {**shown["data"], "root": _shown(shown["data"]["root"])}
    return shown
