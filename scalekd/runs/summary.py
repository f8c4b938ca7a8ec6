"""summary.json: the results of a recipe, and how and on which machine they were measured."""

import sys
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from scalekd.distributed import ranks
from scalekd.recipe import Recipe
from scalekd.runs.result import (
    METHOD_NAMES,
    PairSummary,
    Result,
    all_have_accuracy,
    main_run,
    mean_of_known,
    mean_terms,
    results_of_method,
)
from scalekd.runs.system_info import describe_machine, describe_versions


def summarise(
    recipe: Recipe, pair: PairSummary, results: list[Result], seconds: float
) -> dict[str, Any]:
    """The content of summary.json when all runs are finished.

    For each method it has means over the seeds and the values of each seed: accuracies (shares), or
    without labels final losses and their terms. Those of the recipe's own method are the
    student's.

    Args:
        recipe: what was trained.
        pair: its teacher and student.
        results: of all its runs.
        seconds: that the job took, in this process.
    """
    shown = [m for m in METHOD_NAMES if m in ("supervised", "logit_kd", *recipe.compare)]
    names = {**{method: str(method) for method in shown}, recipe.method: "student"}
    summary: dict[str, Any] = {"teacher_top1": pair.teacher_top1}
    for method in names:
        selected = results_of_method(results, method)
        summary[f"{names[method]}_top1"] = mean_of_known([r.top1 for r in selected])
    for method in names:
        selected = results_of_method(results, method)
        summary[f"{names[method]}_top1_by_seed"] = {r.run.seed: r.top1 for r in selected}
        summary[f"{names[method]}_seconds_per_step"] = mean_of_known(
            [r.seconds / r.steps for r in selected]
        )
        if selected and not all_have_accuracy(results):
            summary |= {
                f"{names[method]}_loss": mean_of_known([r.loss for r in selected]),
                f"{names[method]}_loss_by_seed": {r.run.seed: r.loss for r in selected},
                f"{names[method]}_terms": mean_terms(selected),
            }
    main = results_of_method(results, main_run(recipe).method)
    return summary | {
        "seeds": recipe.seeds,
        "student_folder_seed": recipe.seeds[0],
        "steps": main[0].steps,
        "seconds": seconds,
        "images_per_second": mean_of_known([r.images_per_second for r in main]),
        "ranks": ranks.world_size(),
        # The same images for all runs, and of several in one process each counts those before it.
        "corrupt_images": max((r.corrupt_images for r in results), default=0),
        "gflop_per_image": pair.gflop,
        "parameters": {
            "teacher": pair.teacher_parameters,
            "student": pair.student_parameters,
            "projectors": pair.projector_parameters,
        },
        "notes": [asdict(note) for note in pair.notes],
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": "scalekd " + " ".join(sys.argv[1:]),
        "versions": describe_versions(),
        "machine": describe_machine(),
    }
