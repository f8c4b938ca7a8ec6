"""What a process of the runner does: build caches and train students, one after another."""

import functools
import shutil
from dataclasses import replace
from typing import Any, Protocol

import torch
from changes import build_changed
from torch.utils.data import Dataset, TensorDataset, default_collate
from trials import Trial

from scalekd.data.open import open_source
from scalekd.data.source import Source
from scalekd.jobs.build_cache import build_cache
from scalekd.networks import InputConfig
from scalekd.recipe import Data
from scalekd.runs.result import main_run
from scalekd.signals import Interrupted, ignore_stop_signals
from scalekd.training.prepare import prepare
from scalekd.training.train import train


class Stop(Protocol):
    """Set when trainings are to save their state and end."""

    def is_set(self) -> bool: ...


_stop: Stop


def start(stop: Any) -> None:
    """Begin a process: one thread, and signals are the runner's, which sets `stop`."""
    global _stop
    _stop = stop
    torch.set_num_threads(1)
    ignore_stop_signals()


def build(trial: Trial) -> None:
    """Build the trial's cache, or what is missing of it."""
    if trial.cache is not None and not _stop.is_set():
        recipe = replace(trial.recipe, cache=None, batch_size=250)
        build_cache(recipe, trial.cache, augmented_views=trial.views or 1, resume=True)


def run(trial: Trial) -> float | None:
    """Train the trial's student, or go on with it; returns its accuracy (a share), None where it
    was stopped."""
    if _stop.is_set():
        return None
    recipe = trial.recipe
    prepared = prepare(recipe, source=open_images(recipe.data))
    if trial.change is not None:
        prepared = build_changed(prepared, trial.change)
    folder = trial.folder
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.trim_metrics([main_run(recipe)])
    try:
        result = train(prepared, main_run(recipe), folder, report=lambda _: None, stop=_stop)
    except Interrupted:
        return None
    trial.write_record(prepared, result)
    shutil.rmtree(folder.checkpoints)
    return result.top1


def open_images(data: Data) -> Source:
    """The images, with those of the validation split transformed once in a process: they are few
    and small, and transforming them would take longer than classifying them."""
    source = open_source(data)
    return replace(source, validation_set=functools.partial(validation_images, data.root))


@functools.cache
def validation_images(root: str, config: InputConfig) -> Dataset[Any]:
    """The validation images of a source, transformed, in memory."""
    source = open_source(Data(root=root))
    assert source.validation_set is not None
    images: Any = source.validation_set(config)
    return TensorDataset(*default_collate([images[index] for index in range(len(images))]))
