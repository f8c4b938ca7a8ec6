"""The weights that a student starts from: timm's, or those of an earlier training."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from timm.models import split_model_name_tag
from torch import nn

from scalekd.errors import InputError
from scalekd.networks import InputConfig, build_model, input_config
from scalekd.networks.build import classifier_names
from scalekd.networks.input_config import pretrained_config
from scalekd.networks.pretrained import LoadedWeights, Mismatch
from scalekd.networks.student import StudentSpec
from scalekd.networks.transformers_config import is_transformers_folder
from scalekd.networks.weight_files import StateDict
from scalekd.notes import Note
from scalekd.recipe import Recipe
from scalekd.runs.folder import RunFolder
from scalekd.training.class_names import ClassNames
from scalekd.training.teacher_classes import put_classes_in_order


@dataclass(frozen=True, kw_only=True)
class StudentStart:
    """What a student starts from.

    Attributes:
        state: tensors by their names in the student; what the student has besides, a new
            classifier, starts from random values.
        weights: what was loaded, and what became of the classifier.
        input: images of the model that the weights are of.
    """

    state: StateDict
    weights: LoadedWeights
    input: InputConfig

    @property
    def note(self) -> Note:
        """The line for a person on what the student starts from."""
        return replace(self.weights.note, text=f"the student starts from {self.weights}")

    def with_normalisation(self, spec: StudentSpec) -> StudentSpec:
        """The spec with the mean and standard deviation that the weights were trained with, where
        the user or the data set says nothing else."""
        if spec.input is not None:
            return spec
        return replace(spec, mean=spec.mean or self.input.mean, std=spec.std or self.input.std)

    def load_into(self, student: nn.Module) -> None:
        """Load the weights; a classifier that is new keeps the values that it has."""
        student.load_state_dict(self.state, strict=False)


def load_start(recipe: Recipe, spec: StudentSpec) -> StudentStart | None:
    """Load the weights that `recipe.student_weights` names; None where they are random.

    Args:
        recipe: names the weights: "pretrained", a file, or the folder of a model or of a run.
        spec: builds the student.

    Raises:
        InputError: the weights cannot be read, or are of another architecture than the student.
    """
    if recipe.student_weights == "random":
        return None
    try:
        model, weights = _load(recipe, spec)
        with torch.device("meta"):
            student = spec.build()
        return _fit(model, weights, student, spec.class_names)
    except InputError as error:
        raise InputError(f"student_weights is {recipe.student_weights!r}: {error}") from error


def _load(recipe: Recipe, spec: StudentSpec) -> tuple[nn.Module, LoadedWeights]:
    """Build the model that the weights are of, with the classifier that it has."""
    name, weights, key = spec.name, recipe.student_weights, recipe.student_weights_key
    arguments = {n: value for n, value in spec.arguments.items() if n != "num_classes"}
    if spec.input is not None:
        arguments["in_chans"] = spec.input.channels
    size = spec.size if spec.input is None else spec.input.size
    is_folder = weights != "pretrained" and os.path.isdir(weights)
    if is_folder and not is_transformers_folder(Path(weights)):
        name, weights = _folder_of_model(Path(weights)), "pretrained"
        # Its configuration says how it is built, but for the images that the student takes.
        arguments = {n: value for n, value in arguments.items() if n in ("in_chans", "img_size")}
    return build_model(name, weights, size, key, **arguments)


def _folder_of_model(folder: Path) -> str:
    student = RunFolder(folder).student
    return f"local-dir:{student if os.path.isdir(student) else folder}"


def _fit(
    model: Any, weights: LoadedWeights, student: Any, class_names: Sequence[str]
) -> StudentStart:
    """Take from the model what the student has: all but a classifier of other classes."""
    theirs, ours = _architecture(model), _architecture(student)
    if theirs != ours:
        raise InputError(f"its weights are of {theirs}: give --student {theirs}, or other weights")
    heads: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    if why_new := _why_new_classifier(model, student, class_names):
        heads = classifier_names(student)
        remarks = (f"the classifier of {student.num_classes} classes is new, because {why_new}",)
    elif student.num_classes:
        order = put_classes_in_order(model, None, class_names)
        remarks = ("with the classifier", *map(str, order.notes))
    else:
        heads = classifier_names(model)
    inside = tuple(f"{head}." for head in heads)
    state = {n: t for n, t in model.state_dict().items() if not n.startswith(inside)}
    if mismatch := Mismatch.between(student, state, heads):
        raise InputError(f"its weights do not fit the student {ours}: {mismatch}")
    loaded = replace(
        weights,
        matched=len(state),
        total=len(student.state_dict()),
        missing=(),
        remarks=weights.remarks + remarks,
    )
    return StudentStart(state=state, weights=loaded, input=input_config(model))


def _why_new_classifier(model: Any, student: Any, class_names: Sequence[str]) -> str | None:
    """Why the student's classifier is not the model's; None where it is, or there is none."""
    if not student.num_classes:
        return None
    if model.num_classes != student.num_classes:
        return f"the weights are for {model.num_classes}" if model.num_classes else "they have none"
    names = ClassNames.of_model(model)
    if names.can_match(class_names) and None in names.find_all(class_names):
        return f"that of the weights is for {names.names[0]} ... {names.names[-1]}"
    return None


def _architecture(model: nn.Module) -> str:
    name = str(pretrained_config(model).get("architecture"))
    return str(split_model_name_tag(name)[0])
