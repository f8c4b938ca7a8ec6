"""How a student is trained and measured for its record."""

import functools
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import timm
from changes import build_changed
from probes import measure as measure_features
from probes import test_images
from recorded import Stop, read_json, write_json
from torch.utils.data import Dataset, TensorDataset
from trials import Trial

from scalekd.data.open import open_source
from scalekd.data.source import Source, TrainingSet
from scalekd.distiller import count_parameters
from scalekd.errors import InputError
from scalekd.networks import InputConfig
from scalekd.recipe import Data
from scalekd.runs.folder import hold_new_folder
from scalekd.runs.result import Result, main_run
from scalekd.signals import Interrupted
from scalekd.training.prepare import Learner, Prepared, prepare
from scalekd.training.train import train

BEGUN = "trial.json"
"""In the run folder: what is trained in it."""


Measure = Callable[[Trial, Prepared], dict[str, Any] | None]
"""What is measured of a trained student beside its accuracy, while its checkpoint is there."""


def probe(trial: Trial, prepared: Prepared) -> dict[str, Any] | None:
    """What the features of the student tell, if the trial asks for it."""
    if not trial.probed:
        return None
    student = timm.create_model(f"local-dir:{trial.folder.student}", pretrained=True)
    return asdict(measure_features(student, prepared.input, trial.seed, trial.recipe.data.root))


def train_student(trial: Trial, stop: Stop, measure: Measure = probe) -> bool:
    """Train the trial's student, or go on with it, and measure it; returns whether it is done.

    Raises:
        InputError: another process trains it, it was begun with other settings, or it is trained
            again and differs from its record.
    """
    begun = trial.folder.path / BEGUN
    with hold_new_folder(trial.folder.path, resume=True, keep=begun.exists):
        then = read_json(begun)
        if then is not None and trial.differs_from(then):
            raise InputError(f"{trial.folder.path} was begun with other settings: move it away")
        return _train(trial, stop, measure)


def _train(trial: Trial, stop: Stop, measure: Measure) -> bool:
    recipe = trial.recipe
    prepared = prepare(recipe, source=open_images(trial, recipe.data))
    if trial.change is not None:
        prepared = build_changed(prepared, trial.change)
    elif prepared.cache is not None:
        prepared = RowsInMemory(**vars(prepared))
    folder = trial.folder
    write_json(folder.path / BEGUN, asdict(trial))
    folder.trim_metrics([main_run(recipe)])
    try:
        result = train(prepared, main_run(recipe), folder, report=lambda _: None, stop=stop)
    except Interrupted:
        return False
    _record(trial, prepared, result, measure(trial, prepared))
    shutil.rmtree(folder.checkpoints)
    return True


def _record(
    trial: Trial, prepared: Prepared, result: Result, measures: dict[str, Any] | None
) -> None:
    """Write the record; where there is one, because the run folder was gone, compare with it."""
    then = read_json(trial.record)
    if then is None:
        assert prepared.student is not None
        trial.write_record(
            top1=result.top1,
            measures=measures,
            steps=result.steps,
            seconds=result.seconds,
            terms=result.terms,
            parameters=count_parameters(prepared.student.build()),
        )
    elif (then["top1"], then["terms"]) != (result.top1, result.terms):
        shutil.rmtree(trial.folder.student)  # others would start from a student without a record
        raise InputError(
            f"trained again, it is not the student of {trial.record}, because another machine or "
            "version rounds otherwise: move that record away, and those of runs that start from it"
        )


class RowsInMemory(Prepared):
    """A recipe whose cache's rows are augmented and read once: later epochs have them in memory."""

    def images_for(self, learner: Learner) -> Source:
        """What `learner` trains on."""
        source = super().images_for(learner)

        def training_set(config: InputConfig, seed: int) -> Dataset[Any]:
            return KeptRows(source.training_set(config, seed))

        return replace(source, training_set=training_set)


class KeptRows(Dataset[Any]):
    """A training set in the views of a cache, each of which is made once."""

    def __init__(self, views: Any) -> None:
        self.views = views
        self.kept: dict[int, tuple[Any, ...]] = {}

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, key: int) -> tuple[Any, ...]:
        row = key % self.views.rows
        if row not in self.kept:
            self.kept[row] = self.views[row]
        return self.kept[row]


def open_images(trial: Trial, data: Data) -> Source:
    """The images of its recipe as the trial is given them.

    Those of the validation split are transformed once in a process: that would take longer than
    classifying them.
    """

    def validation_set(config: InputConfig) -> Dataset[Any]:
        return TensorDataset(*test_images(data.root, config))

    source = replace(open_source(data), validation_set=validation_set)
    if trial.hidden:
        shown = functools.partial(without_classes, source, trial.hidden)
        source = replace(source, training_set=shown)
    if not trial.labelled:
        source = replace(
            source,
            classes=None,
            validation_set=None,
            training_set=functools.partial(unlabelled, source),
        )
    return source


def without_classes(
    source: Source, hidden: tuple[int, ...], config: InputConfig, seed: int
) -> TrainingSet:
    """The training images of the other classes."""
    images: Any = source.training_set(config, seed)
    assert source.targets is not None
    kept = [index for index in images.subset if int(source.targets[index]) not in hidden]
    return TrainingSet(images.samples, kept, images.transform, seed)


def unlabelled(source: Source, config: InputConfig, seed: int) -> "WithoutLabels":
    """The training images alone."""
    return WithoutLabels(source.training_set(config, seed))


class WithoutLabels(Dataset[Any]):
    """A training set whose items are (image,)."""

    def __init__(self, images: Any) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: int) -> tuple[Any, ...]:
        item: tuple[Any, ...] = self.images[key]
        return item[:1]
