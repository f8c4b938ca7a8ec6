"""Which of timm's models are known to fit: the sweep's result, which the package carries.

`experiments/families.py` makes it. A model that is not in it may fit as well: `scalekd check`
tells.
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
"""`entry`: verified with an entry in `networks/families.py` or `networks/paper.py`."""


@dataclass(frozen=True)
class Known:
    """A model in the sweep.

    family: the module of timm that it is in.
    reason: of a refusal, else empty.
    size: (height, width) in pixels that it was tried at.
    penultimate, final: channels, height and width of the features; None where it was refused.
    norm: of the final feature.
    tail: a teacher's modules that are replayed.
    on: what this was tried on.
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
    on: str


@dataclass(frozen=True)
class Sweep:
    """All that were tried, when, and with which timm and torch."""

    date: str
    timm: str
    torch: str
    models: list[Known]


def sweep() -> Sweep:
    """The packaged result."""
    plain = json.loads(FILE.read_text())
    models = [Known(**{name: _tuple(v) for name, v in m.items()}) for m in plain.pop("models")]
    return Sweep(**plain, models=models)


def matching(pattern: str) -> list[Known]:
    """Those whose name or family has `pattern` in it, or matches it where it has * or ?."""
    wild = (pattern if set(pattern) & set("*?[") else f"*{pattern}*").lower()
    return [
        m
        for m in sweep().models
        if any(fnmatch.fnmatchcase(n.lower(), wild) for n in (m.name, m.family))
    ]


def nearest(role: Role, name: str) -> str:
    """The name of a model that fits, close to `name`: of its family, else one spelt alike."""
    models = sweep().models
    name = name.split(".")[0]
    fit = [m for m in models if m.role == role and m.status != "refused" and m.name != name]
    family = next((m.family for m in models if m.name == name), None)
    if family is None and timm.is_model(name):
        family = timm.model_entrypoint(name).__module__.rpartition(".")[2]
    related = [m.name for m in fit if m.family == family] or [m.name for m in fit]
    return difflib.get_close_matches(name, related, n=1, cutoff=0.0)[0]


def _tuple(value: Any) -> Any:
    numbers = isinstance(value, list) and value and isinstance(value[0], int)
    return tuple(value) if numbers else value
