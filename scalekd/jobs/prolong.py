"""Prolonging finished runs: more epochs, with a warm restart of the learning rate.

The restart is a setting, `optim.restarts`. So a run that was prolonged is bit-identical to one that
had the setting from its start.
"""

from dataclasses import replace

from scalekd.errors import InputError
from scalekd.notes import Note
from scalekd.recipe import Recipe
from scalekd.runs.folder import RunFolder
from scalekd.runs.result import Result, Run, methods_to_train


def unfinished_runs(recipe: Recipe, results: list[Result]) -> list[Run]:
    """The runs of a recipe, in the order of training, that have no result yet."""
    finished = {result.run for result in results}
    methods = methods_to_train(recipe.teacher, recipe.compare, recipe.method)
    runs = [Run(method, seed) for seed in recipe.seeds for method in methods]
    return [run for run in runs if run not in finished]


def recipe_to_resume(recipe: Recipe, folder: RunFolder) -> tuple[Recipe, list[Note]]:
    """The recipe as it resumes in `folder`: with the warm restarts of a prolonged training.

    Where the folder's runs are finished and `recipe` has more epochs, the learning rate rises to
    `optim.lr` again and falls along a cosine over the added epochs (a warm restart: Loshchilov and
    Hutter, SGDR, 2017). With `optim.drops` it stays where the last drop left it.

    Returns:
        The recipe; and a note where the runs are prolonged.

    Raises:
        InputError: there are more epochs, and the folder's runs are unfinished or have a polynomial
            schedule.
    """
    planned = folder.planned_training()
    if planned is None:
        return recipe, []
    epochs, restarts = planned
    as_planned = replace(recipe, epochs=epochs, optim=replace(recipe.optim, restarts=restarts))
    if recipe.epochs == epochs:
        return (recipe if recipe.optim.restarts else as_planned), []
    if recipe.epochs < epochs:
        return recipe, []
    if unfinished_runs(recipe, folder.finished_results(as_planned)):
        raise InputError(
            f"epochs is {recipe.epochs}, and the runs in {str(folder.path)!r} have not finished "
            f"their {epochs}: resume them with --epochs {epochs} first; then they can be prolonged"
        )
    text = f"the runs in {folder.path} are prolonged from {epochs} to {recipe.epochs} epochs"
    if recipe.optim.drops:
        text += ": the learning rate stays as it is after its last drop"
        return recipe, [Note("info", text)]
    if recipe.optim.poly_power is not None:
        raise InputError(
            f"epochs is {recipe.epochs}, and the runs in {str(folder.path)!r} have finished their "
            f"{epochs}: a learning rate that falls as a polynomial (optim.poly_power) cannot be "
            "prolonged; give another --out to train for more epochs from the start"
        )
    text += (
        f" with a warm restart: the learning rate starts again at {recipe.learning_rate:.3g} and "
        f"falls to {recipe.optim.min_lr:.3g} along a cosine over the added epochs (optim.restarts)"
    )
    prolonged = replace(recipe, optim=replace(recipe.optim, restarts=[*restarts, epochs]))
    return prolonged, [Note("info", text)]
