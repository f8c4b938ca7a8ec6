"""A training of a student, as a run of an experiment, and the settings that trials share."""

import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import students  # noqa: F401 -- timm finds its model by name
import yaml
from recorded import HERE, RUNS, Recorded, Stop

from scalekd.jobs.build_cache import build_cache
from scalekd.recipe import Recipe, recipe_from_settings

CHOSEN = HERE / "chosen.yaml"


@dataclass(frozen=True, kw_only=True)
class Trial(Recorded):
    """One training of one student.

    Its regime is a key of settings.yaml: which images, and how many steps. Its seed decides the
    images, the student's start and the order of the batches.

    Attributes:
        views: augmented views of each image in the cache that it trains from; None with a live
            teacher. With as many views as epochs both give the same training.
        change: of the pair, a key of changes.CHANGES.
        hidden: classes of which the student sees no image.
        labelled: whether the student is given labels.
        probed: whether the features of the trained student are measured, by probes.py.
    """

    views: int | None = None
    change: str | None = None
    hidden: tuple[int, ...] = ()
    labelled: bool = True
    probed: bool = False

    @property
    def cache(self) -> Path | None:
        """The cache that it trains from, which trials of the same images and seed share."""
        if self.views is None:
            return None
        data, teacher = self.settings["data"], Path(self.settings["teacher"])
        images = f"{data['root'].replace(':', '_')}-{data.get('train_images') or 'all'}"
        return RUNS / "caches" / f"{teacher.name}-{images}-seed{self.seed}-views{self.views}"

    @property
    def recipe(self) -> Recipe:
        """What is trained."""
        recipe = recipe_from_settings({**self.settings, "seeds": [self.seed]})
        return replace(recipe, cache=None if self.cache is None else str(self.cache))

    def build_cache(self) -> None:
        """Build its cache, or what is missing of it."""
        if self.cache is not None:
            recipe = replace(self.recipe, cache=None, batch_size=250)
            build_cache(recipe, self.cache, augmented_views=self.views or 1, resume=True)

    def run(self, stop: Stop) -> bool:
        """Train the student, or go on with it, and measure it; returns whether it is done."""
        from student_run import train_student  # which imports this module

        return train_student(self, stop)

    @property
    def expected_seconds(self) -> float:
        """By the timed steps of its method; 0 if there are none."""
        from cost import expected  # which imports this module

        return expected(self)

    @property
    def outcome(self) -> str:
        """What came out of a finished run, in a few words."""
        record = json.loads(self.record.read_text())
        if record["top1"] is None:
            return f"linear probe {record['measures']['linear']:.2%}"
        return f"{record['top1']:.2%}"


def of_method(method: str) -> dict[str, Any]:
    """The settings that choose a method; what is supervised has no teacher."""
    return {"teacher": None} if method == "supervised" else {"method": method}


def cached_views(settings: dict[str, Any]) -> int | None:
    """As many views as epochs, for a method that can train from a cache; else None. What is
    supervised needs no teacher, and FD its penultimate feature, which no cache has."""
    return settings["epochs"] if settings.get("method") not in (None, "fd") else None


def merge(*parts: dict[str, Any]) -> dict[str, Any]:
    """Settings of several parts, of which later ones override earlier ones; nested ones merge."""
    merged: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            old = merged.get(name)
            both = isinstance(old, dict) and isinstance(value, dict)
            merged[name] = merge(old, value) if both else value
    return merged


@cache
def read_settings() -> dict[str, Any]:
    """settings.yaml: the part that all runs share, and the regimes."""
    settings: dict[str, Any] = yaml.safe_load((HERE / "settings.yaml").read_text())
    return settings


@cache
def read_chosen() -> dict[str, dict[str, dict[str, Any]]]:
    """chosen.yaml: the settings that tuning chose, by regime and method.

    Raises:
        SystemExit: there are none yet.
    """
    if not CHOSEN.exists():
        raise SystemExit(f"{CHOSEN.name} is missing: run the tuning first, see PROTOCOL.md")
    chosen: dict[str, dict[str, dict[str, Any]]] = yaml.safe_load(CHOSEN.read_text())
    return chosen
