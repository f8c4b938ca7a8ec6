"""summary.json: what came out of a recipe, and with what it was measured."""

import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import scalekd
from scalekd.distributed import ranks
from scalekd.jobs import console as report
from scalekd.runs.system_info import machine
from scalekd.recipe import Recipe
from scalekd.training.run import Result, first


def summarise(
    recipe: Recipe, pair: report.Pair, results: list[Result], seconds: float
) -> dict[str, Any]:
    """summary.json: means over the seeds, each seed's, and what they were measured with.

    Without labels there is no top-1, and instead the loss and its terms at the end.
    """
    names = {"scalekd": "student", "alone": "alone", "logits": "kd"}
    summary: dict[str, Any] = {"teacher_top1": pair.teacher_top1}
    for arm in ("alone", "logits", "scalekd"):
        of_arm = report.of_arm(results, arm)
        summary[f"{names[arm]}_top1"] = report.mean([r.top1 for r in of_arm])
    for arm in ("alone", "logits", "scalekd"):
        of_arm = report.of_arm(results, arm)
        summary[f"{names[arm]}_top1_by_seed"] = {r.run.seed: r.top1 for r in of_arm}
        summary[f"{names[arm]}_seconds_per_step"] = report.mean(
            [r.seconds / r.steps for r in of_arm]
        )
        if of_arm and not report.measured(results):
            summary |= {
                f"{names[arm]}_loss": report.mean([r.loss for r in of_arm]),
                f"{names[arm]}_loss_by_seed": {r.run.seed: r.loss for r in of_arm},
                f"{names[arm]}_terms": report.mean_terms(of_arm),
            }
    kept = report.of_arm(results, first(recipe).arm)
    return summary | {
        "seeds": recipe.seeds,
        "student_folder_seed": recipe.seeds[0],
        "steps": kept[0].steps,
        "seconds": seconds,
        "images_per_second": report.mean([r.images_per_second for r in kept]),
        "ranks": ranks.world(),
        "broken_images": sum(r.broken for r in results),
        "gflop_per_image": pair.gflop,
        "parameters": {
            "teacher": pair.teacher_parameters,
            "student": pair.student_parameters,
            "projectors": pair.projector_parameters,
        },
        "notes": pair.notes,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": "scalekd " + " ".join(sys.argv[1:]),
        "versions": {
            "scalekd": scalekd.__version__,
            **{name: version(name) for name in ("torch", "timm", "lightning", "numpy")},
            "python": platform.python_version(),
        },
        "machine": machine(),
    }
