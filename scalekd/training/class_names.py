"""The names of a model's classes, and the class that a folder's name means."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from timm.data import ImageNetInfo, infer_imagenet_subset
from timm.utils.misc import natural_key
from torch import nn

from scalekd.data.source import normal_name
from scalekd.networks.input_config import pretrained_config

NUMBERED = re.compile(r"(label[_ ]?)?\d+", re.IGNORECASE)
"""Names that only number the classes, such as LABEL_3."""


@dataclass(frozen=True)
class ClassNames:
    """Names of a model's classes by place, and other names that mean the same classes.

    Attributes:
        names: of the classes; empty where the model's configuration has none.
        synonyms: further names of each class, which may be those of another class, too: English
            names of ImageNet's synsets. Empty where there are none.
        are_assumed: whether timm's list for a model of ImageNet's size gave the names, and not the
            model's configuration.

    Example:
        >>> names = ClassNames(("n02012849", "n03126707"), (("crane", "wader"), ("crane",)))
        >>> names.find("n03126707"), names.find("Wader"), names.find("crane")
        (1, 0, None)
    """

    names: tuple[str, ...] = ()
    synonyms: tuple[tuple[str, ...], ...] = ()
    are_assumed: bool = False

    @classmethod
    def of_model(cls, model: nn.Module) -> "ClassNames":
        """The names in a model's timm configuration, or timm's for a model of ImageNet's size."""
        names: Any = pretrained_config(model).get("label_names")
        subset = infer_imagenet_subset(model)
        info = ImageNetInfo(subset) if subset else None
        are_assumed = not names and info is not None
        if info is not None and are_assumed:
            names = info.label_names()
        if isinstance(names, dict):  # by label, which JSON makes a string
            by_label = sorted(names, key=lambda label: natural_key(str(label)))
            names = [names[label] for label in by_label]
        names = tuple(normal_name(str(name)) for name in names or ())
        if len(names) != getattr(model, "num_classes", None) or len(set(names)) < len(names):
            return cls()
        synonyms: tuple[tuple[str, ...], ...] = ()
        if info is not None and list(names) == info.label_names():
            descriptions = map(info.index_to_description, range(len(names)))
            synonyms = tuple(tuple(text.split(",")) for text in descriptions)
        return cls(names, synonyms, are_assumed)

    @property
    def tell_classes(self) -> bool:
        """Whether there are names that say what the classes are, and do not only number them."""
        return not all(map(NUMBERED.fullmatch, self.names))

    def can_match(self, others: Sequence[str]) -> bool:
        """Whether classes of other names can be told by these: both say what the classes are."""
        return self.tell_classes and ClassNames(tuple(others)).tell_classes

    def find(self, name: str) -> int | None:
        """The place of the class that is meant by `name`; None where no class is, or several are.

        Names that are spelled the same are found first; else case, spaces, hyphens and underscores
        do not matter.
        """
        if name in self._exact:
            return self._exact[name]
        places = self._folded.get(_fold(name), set())
        return next(iter(places)) if len(places) == 1 else None

    def find_all(self, names: Sequence[str]) -> list[int | None]:
        """`find` for each of these names; None for those that mean the class of another one."""
        places = [self.find(name) for name in names]
        times = Counter(places)
        return [place if times[place] == 1 else None for place in places]

    @cached_property
    def _exact(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self.names)}

    @cached_property
    def _folded(self) -> dict[str, set[int]]:
        places: dict[str, set[int]] = {}
        for place, name in enumerate(self.names):
            for other in (name, *(self.synonyms[place] if self.synonyms else ())):
                places.setdefault(_fold(other), set()).add(place)
        return places


def _fold(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()
