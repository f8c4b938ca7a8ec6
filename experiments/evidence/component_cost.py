"""Experiment 10, for Table 15: work, memory and time of a step by component, at full size.

    python experiments/evidence/component_cost.py        # writes results/component_cost/PAIR.json

FD stands beside ScaleKD's parts. Weights are random and images are noise, which costs the same.
Times are interleaved, in an order that is drawn for each repetition.
"""

import argparse
from collections.abc import Callable
from dataclasses import asdict, replace

import torch
import yaml
from cost import time_medians
from recorded import RESULTS, provenance, write_json
from step import count_gflop_per_image

from scalekd.estimating.memory_simulation import LiveMemory
from scalekd.estimating.meta_pair import TrainingImages
from scalekd.estimating.synthetic_step import SyntheticStep
from scalekd.method import LossWeights
from scalekd.recipe import Method, find_recipe, recipe_from_settings
from scalekd.runs.result import Run
from scalekd.training.prepare import PreparedTeacher, prepare

CLASSES = 1000
ARMS: dict[str, tuple[Method, tuple[str, ...]]] = {
    "logit KD": ("logit_kd", ()),
    "FD": ("fd", ()),
    "CAP": ("scalekd", ("final_original",)),
    "CAP, DFM": ("scalekd", ("final_original", "final_alternative")),
    "CAP, TPP": ("scalekd", ("final_original", "tpp_original")),
    "ScaleKD": (
        "scalekd",
        ("final_original", "final_alternative", "tpp_original", "tpp_alternative"),
    ),
}
"""Method and terms of each arm; all distil logits too."""

REPETITIONS = 5


def build_steps(pair: str, batch: int) -> dict[str, SyntheticStep]:
    """A step of each arm; they share the teacher."""
    settings = yaml.safe_load(find_recipe(pair).read_text())
    settings = {**settings, "data": {**settings.get("data", {}), "root": "imagenet"}}
    recipe = replace(recipe_from_settings(settings), teacher_weights="random")
    source = TrainingImages(1, CLASSES).source()
    teacher: PreparedTeacher | None = None
    steps = {}
    for arm, (method, terms) in ARMS.items():
        given = {**dict.fromkeys(asdict(LossWeights()), 0.0), "logits": 0.5}
        given |= dict.fromkeys(terms, 0.08)
        own = replace(recipe, method=method, compare=[], weights=LossWeights(**given))
        prepared = prepare(own, teacher=teacher, source=source)
        teacher = prepared.teacher
        learner = prepared.build_learner(Run(method, 0)).train()
        steps[arm] = SyntheticStep(learner, own, torch.device("cpu"), batch)
    return steps


def peak_bytes(step: SyntheticStep) -> int:
    """Bytes of live tensors at the peak of a step, weights included."""
    step.distiller.zero_grad()
    models = step.distiller, step.distiller.teacher.model
    with LiveMemory() as live:
        live.track([step.images, *(t for m in models for t in (*m.parameters(), *m.buffers()))])
        step.forward_backward()
    step.distiller.zero_grad()
    return live.peak


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pair", default="swin_large-resnet50", help="Name of a packaged recipe.")
    parser.add_argument("--batch", type=int, default=2, help="Images of a step.")
    options = parser.parse_args()
    steps = build_steps(options.pair, options.batch)
    work = {arm: count_gflop_per_image(step) for arm, step in steps.items()}
    peaks = {arm: peak_bytes(step) for arm, step in steps.items()}
    functions: dict[str, Callable[[], object]] = {
        arm: step.forward_backward for arm, step in steps.items()
    }
    seconds = time_medians(functions, REPETITIONS)
    record = {
        "pair": options.pair,
        "batch": options.batch,
        "threads": torch.get_num_threads(),
        "gflop_per_image": work,
        "peak_bytes": peaks,
        "seconds": seconds,
        **provenance(f"python experiments/evidence/component_cost.py --pair {options.pair}"),
    }
    write_json(RESULTS / "component_cost" / f"{options.pair}.json", record)


if __name__ == "__main__":
    main()
