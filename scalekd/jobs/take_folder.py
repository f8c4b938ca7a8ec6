"""Taking a run folder: one rank holds it, and tells the others what a job finds in it."""

from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

from scalekd.jobs.prolong import recipe_to_resume
from scalekd.notes import Note
from scalekd.recipe import Recipe
from scalekd.runs.folder import RunFolder
from scalekd.runs.result import PairSummary, Result


@dataclass(frozen=True)
class TakenFolder:
    """What a job finds in a run folder that it holds.

    Attributes:
        results: those of its finished runs.
        restarts: epochs of the warm restarts of the learning rate.
        notes: remarks for the person who trains.
    """

    results: list[Result]
    restarts: list[int]
    notes: list[Note]

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> "TakenFolder":
        """Read what `to_plain` gave."""
        return cls(
            results=[Result.from_dict(result) for result in plain["results"]],
            restarts=plain["restarts"],
            notes=[Note(**note) for note in plain["notes"]],
        )

    def to_plain(self) -> dict[str, Any]:
        """As plain data, which passes between ranks."""
        return asdict(self)

    def resume(self, recipe: Recipe) -> Recipe:
        """The recipe as it resumes in the folder."""
        return replace(recipe, optim=replace(recipe.optim, restarts=self.restarts))

    def annotate(self, pair: PairSummary) -> PairSummary:
        """The preflight's summary with the folder's notes, which come first."""
        return replace(pair, notes=[*self.notes, *pair.notes])


def take_folder(held: ExitStack, recipe: Recipe, folder: RunFolder, *, resume: bool) -> TakenFolder:
    """Hold a run folder until `held` ends.

    Raises:
        InputError: the folder exists and is not to be resumed, or cannot be.
    """
    notes: list[Note] = []
    if resume:
        recipe, notes = recipe_to_resume(recipe, folder)
    held.enter_context(folder.hold(recipe, resume=resume))
    return TakenFolder(folder.finished_results(recipe), recipe.optim.restarts, notes)
