"""Prolonging finished runs: more epochs, with a warm restart of the learning rate.

The restart is a setting, `optim.restarts`. So a run that was prolonged is bit-identical to one that
had the setting from its start.
"""

import logging
from dataclasses import replace

from scalekd.errors import InputError
from scalekd.recipe import Recipe
from scalekd.runs.folder import RunFolder
from scalekd.runs.result import Result, Run, methods_to_train

logger = logging.getLogger(__name__)


def unfinished_runs(recipe: Recipe, results: list[Result]) -> list[Run]:
    """The runs of a recipe, in the order of training, that have no result yet."""
    finished = {result.run for result in results}
    methods = methods_to_train(recipe.teacher, recipe.compare, recipe.method)
    runs = [Run(method, seed) for seed in recipe.seeds for method in methods]
    return [run for run in runs if run not in finished]


def recipe_to_resume(recipe: Recipe, folder: RunFolder) -> Recipe:
    """The recipe as it resumes in `folder`: with the warm restarts of a prolonged training.

    Where the folder's runs are finished and `recipe` has more epochs, the learning rate rises to
    `optim.lr` again and falls along a cosine over the added epochs (a warm restart: Loshchilov and
    Hutter, SGDR, 2017). With `optim.drops` it stays where the last drop left it.

    Raises:
        InputError: there are more epochs and the folder's runs are unfinished.
    """
    planned = folder.planned_training()
    if planned is None:
        return recipe
    epochs, restarts = planned
    as_planned = replace(recipe, epochs=epochs, optim=replace(recipe.optim, restarts=restarts))
    if recipe.epochs == epochs:
        return recipe if recipe.optim.restarts else as_planned
    if recipe.epochs < epochs:
        return recipe
    if unfinished_runs(recipe, folder.finished_results(as_planned)):
        raise InputError(
            f"epochs is {recipe.epochs}, and the runs in {str(folder.path)!r} have not finished "
            f"their {epochs}: resume them with --epochs {epochs} first; then they can be prolonged"
        )
    text = f"the runs in {folder.path} are prolonged from {epochs} to {recipe.epochs} epochs"
    if recipe.optim.drops:
        logger.info("%s: the learning rate stays as it is after its last drop", text)
        return recipe
    logger.info(
        "%s with a warm restart: the learning rate starts again at %.3g and falls to %.3g along a "
        "cosine over the added epochs (optim.restarts)",
        text,
        recipe.learning_rate,
        recipe.optim.min_lr,
    )
    return replace(recipe, optim=replace(recipe.optim, restarts=[*restarts, epochs]))
