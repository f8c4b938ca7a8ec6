"""The model card of an exported student: README.md with the Hub's metadata."""

from collections.abc import Mapping
from typing import cast

from huggingface_hub import EvalResult, ModelCardData

from scalekd.networks.student import loading_code
from scalekd.runs.lineage import Lineage
from scalekd.runs.result import METHOD_NAMES
from scalekd.text import visible


def build_card(architecture: str, lineage: Lineage | None) -> str:
    """The text of a student's README.md, with `model-index` where its accuracy was measured.

    Args:
        architecture: timm's name of the student.
        lineage: what it was trained with; None where that is not known.
    """
    # No license: whoever trained the student decides, and the teacher's may bind him.
    data = ModelCardData(
        library_name="timm",
        pipeline_tag="image-classification",
        tags=["timm", "image-classification", "knowledge-distillation", "scalekd"],
        model_name=architecture,
        eval_results=_results(lineage),
    )
    *imports, call = loading_code(architecture, "FOLDER").split("; ")
    usage = (
        "\n".join(["```python", "import timm", *imports]) + f"\n\nmodel = {call}.eval()\n"
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))\n```"
    )
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {_code(architecture)}",
        _summary(lineage),
        "`FOLDER` is this folder, or give `hf-hub:USER/NAME` for one on the Hub. `config.json` has "
        "the names of the classes, the size and normalisation of the images, and all settings of "
        "the training.",
        usage,
    ]
    return "\n\n".join(parts) + "\n"


def _results(lineage: Lineage | None) -> list[EvalResult] | None:
    if lineage is None or lineage.top1 is None:
        return None
    name = visible(lineage.data)
    return [
        EvalResult(
            task_type="image-classification",
            dataset_type=name,
            dataset_name=name,
            dataset_split="validation",
            metric_type="accuracy",
            metric_name=f"top-1 (seed {lineage.seed})",
            metric_value=round(lineage.top1, 5),
        )
    ]


def _summary(lineage: Lineage | None) -> str:
    if lineage is None:
        return "An image classifier; what it was trained with is not known."
    names = cast(Mapping[str, str], METHOD_NAMES)
    rows = {"method": names.get(lineage.method, lineage.method)}
    if lineage.teacher is not None:
        rows["teacher"] = _code(lineage.teacher)
        rows["teacher's weights"] = lineage.teacher_weights or "random"
        if lineage.teacher_sha256:
            rows["SHA-256 of the teacher's weights"] = _code(lineage.teacher_sha256)
        rows["license of the teacher's weights"] = lineage.teacher_license or "not known"
    rows["images"] = (
        f"{lineage.data}: {lineage.training_images} to train on, "
        f"{lineage.validation_images} to validate"
    )
    if lineage.top1 is not None:
        rows["top-1 accuracy on the validation images"] = f"{lineage.top1:.2%}"
    rows["seed, steps"] = f"{lineage.seed}, {lineage.step}"
    rows["versions"] = ", ".join(f"{name} {number}" for name, number in lineage.versions.items())
    lines = ["| trained with | |", "|---|---|"]
    lines += [f"| {name} | {_cell(text)} |" for name, text in rows.items()]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return visible(text).replace("|", "\\|")


def _code(text: str) -> str:
    return f"`{visible(text).replace('`', '')}`"
