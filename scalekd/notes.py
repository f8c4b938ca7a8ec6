"""A note to the user: a decision that the package took, or a warning."""

import logging
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Note:
    """One line for the user; `str(note)` is its text.

    Attributes:
        level: "info" for a decision that the caller did not make and may want to know, "warning"
            for what is probably a mistake, such as a teacher with random weights.
        text: one line, without markup and without its level.
    """

    level: Literal["info", "warning"]
    text: str

    def __str__(self) -> str:
        return self.text

    def log(self, logger: logging.Logger) -> None:
        """Log it at its level."""
        logger.log(logging.WARNING if self.level == "warning" else logging.INFO, "%s", self.text)
