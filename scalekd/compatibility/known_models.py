"""Which timm models are known to fit: the packaged result of a sweep over timm's families.

`experiments/families.py` writes it. A model that is not in it may fit as well: `scalekd check`
tries any.
"""

import difflib
import fnmatch
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import timm

FILE = Path(__file__).with_name("known_models.json")

Role = Literal["teacher", "student"]
Status = Literal["verified", "entry", "refused"]
"""`entry`: verified, with an entry for it in `networks/overrides.py` or `networks/paper.py`."""


@dataclass(frozen=True)
class KnownModel:
    """A model that the sweep tried in one role.

    Attributes:
        role: "teacher" or "student".
        name: The timm model name.
        family: The timm module that defines the model.
        status: Whether the model fits; see `Status`.
        reason: Why the model was refused; otherwise empty.
        parameters: Number of parameters.
        size: (height, width) of the images in pixels.
        penultimate: Shape (channels, height, width) of the penultimate feature; None if refused.
        final: Shape (channels, height, width) of the final feature; None if refused.
        norm: Norm of the final feature, as in `FeatureSelection`.
        tail: Names of the teacher's modules that are replayed; empty for a student.
        tried_on: What the result was found with: the model itself, a reduced copy, the meta device.
    """

    role: Role
    name: str
    family: str
    status: Status
    reason: str
    parameters: int
    size: tuple[int, int]
    penultimate: tuple[int, int, int] | None
    final: tuple[int, int, int] | None
    norm: str
    tail: list[str]
    tried_on: str


@dataclass(frozen=True)
class Sweep:
    """All models that were tried, the date, and the versions of timm and torch."""

    date: str
    timm: str
    torch: str
    models: list[KnownModel]


def load_sweep() -> Sweep:
    """Read the packaged result."""
    fields = json.loads(FILE.read_text())
    models = [
        KnownModel(**{name: _as_tuple(value) for name, value in model.items()})
        for model in fields.pop("models")
    ]
    return Sweep(**fields, models=models)


def find_models(pattern: str) -> list[KnownModel]:
    """Return the models whose name or family contains `pattern`, or matches its *, ? or [...]."""
    wildcards = (pattern if set(pattern) & set("*?[") else f"*{pattern}*").lower()
    return [
        model
        for model in load_sweep().models
        if any(fnmatch.fnmatchcase(n.lower(), wildcards) for n in (model.name, model.family))
    ]


def nearest_model(role: Role, name: str) -> str:
    """Return the most similar name of a model that fits: in `name`'s family if there is one."""
    models = load_sweep().models
    name = name.split(".")[0]
    fitting = [m for m in models if m.role == role and m.status != "refused" and m.name != name]
    family = next((m.family for m in models if m.name == name), None)
    if family is None and timm.is_model(name):
        family = timm.model_entrypoint(name).__module__.rpartition(".")[2]
    candidates = [m.name for m in fitting if m.family == family] or [m.name for m in fitting]
    return difflib.get_close_matches(name, candidates, n=1, cutoff=0.0)[0]


def _as_tuple(value: Any) -> Any:
    """A shape, which JSON has as a list of integers, as a tuple."""
    is_shape = isinstance(value, list) and value and isinstance(value[0], int)
    return tuple(value) if is_shape else value
