"""Experiment 14, for Figures 2, 5 and 6: what the views are for, looked at from inside.

    python experiments/evidence/runner.py inside     # Figure 6: with and without the second view
    python experiments/evidence/inside.py            # Figures 2 and 5: the teacher's frequencies

Few labels, the CNN student, five seeds, by the settings that tuning chose for ScaleKD.
"""

import json
from dataclasses import dataclass
from typing import Any

import components
import timm
import torch
from methods import method_settings
from probes import maps, test_images
from recorded import RESULTS, Stop, provenance, write_json
from trials import Trial, merge, read_settings

from scalekd.analysis.distances import collect_differences, measure_distances
from scalekd.analysis.frequencies import measure_frequencies
from scalekd.analysis.run_pair import RunOnDisk, open_pair
from scalekd.device import best_device
from scalekd.networks import input_config
from scalekd.networks.feature_extractor import build_feature_extractor
from scalekd.runs.result import main_run
from scalekd.training.prepare import Prepared

NAME = "inside"
FREQUENCIES = RESULTS / "teacher" / "frequencies.json"
IMAGES_AT_ONCE = 250


@dataclass(frozen=True, kw_only=True)
class Inside(Trial):
    """A training after which distances to the teacher are measured."""

    def run(self, stop: Stop) -> bool:
        """Train the student, or go on with it, and measure it; returns whether it is done."""
        from student_run import train_student  # which imports the runs of students

        return train_student(self, stop, distances)


def trials() -> list[Trial]:
    """All runs, seed by seed."""
    settings = method_settings(components.REGIME, "scalekd")
    tuned = settings["weights"]
    without = dict.fromkeys(tuned, 0.0) | components.weights_of_arms()["CAP, TPP"]
    return [
        Inside(
            experiment=NAME,
            regime=components.REGIME,
            arm=arm,
            seed=seed,
            settings=merge(settings, {"weights": weights}),
            views=settings["epochs"],
        )
        for seed in components.SEEDS
        for arm, weights in {"with DFM": tuned, "without DFM": without}.items()
    ]


def distances(trial: Trial, prepared: Prepared) -> dict[str, Any]:
    """The median over the test images of the distance in the alternative view, from 0 to 4, of
    what each view's projector makes of the trained student."""
    checkpoint = trial.folder.checkpoint(main_run(trial.recipe))
    pair = open_pair(RunOnDisk(trial.name, checkpoint, trial.recipe, teacher_sha256=None))
    images, _ = test_images(trial.recipe.data.root, prepared.input)
    batches = (part.to(best_device()) for part in images.split(IMAGES_AT_ONCE))
    found = collect_differences(pair, batches)
    return {one.view: one.median for one in measure_distances([(pair, found)]).distances}


@torch.no_grad()
def main() -> None:
    shared = read_settings()["shared"]
    teacher = timm.create_model(shared["teacher"], pretrained=True).eval()
    config = input_config(teacher)
    extract = build_feature_extractor(teacher, config.size)
    finals = maps(extract, *test_images(shared["data"]["root"], config)).values
    found = measure_frequencies("the teacher", [finals])
    record = {
        "images": found.images,
        "grid": found.grid,
        "direct_energy": found.direct_energy,
        "direct_amplitude": found.direct_amplitude,
        **provenance("python experiments/evidence/inside.py"),
    }
    write_json(FREQUENCIES, record)
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
