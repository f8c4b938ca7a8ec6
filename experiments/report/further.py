"""Sections of the experiments that are not the first five, of costs and of settings."""

import itertools
from collections.abc import Sequence
from typing import Any

import second_tuning
import yaml
from claims import TABLE_3, TABLE_4, TABLE_7
from cost import COST, METHODS, read_cost, seconds_of_step
from every_student import LONG
from families import (
    REGIMES,
    Comparison,
    longer_family,
    pretraining_family,
    retuned_family,
    student_family,
    teacher_family,
    width_family,
)
from layout import NOT_RUN, Section, Table, comparison_table
from recorded import read_json
from records import read_records, read_teacher, select, teacher_top1, values
from transfer_section import DETECTION, SEGMENTATION, rounding, transfer_section
from trials import CHOSEN, read_settings
from tuning import RATES, SPACE

from scalekd.runs.result import METHOD_NAMES

YARDSTICKS = {
    "two convolutions under 0.1 M parameters": 92.5,
    "a small CNN with shortcuts": 94.7,
    "ResNet-18": 94.9,
    "MobileNet": 95.0,
    "DenseNet-BC of 0.77 M parameters": 95.4,
    "WRN-28-10 with random erasing": 96.3,
    "WRN-40-4": 96.7,
}
"""Test accuracies of others on Fashion-MNIST in %, from the data set's repository
(zalandoresearch/fashion-mnist)."""

TRIALS = len(RATES) * len(SPACE["scalekd"])
"""Of the first tuning, for each method and regime."""


def further_sections() -> list[Section]:
    """All of them."""
    teachers, students = teacher_family(), student_family()
    return [
        further_section(
            "Experiment 6: size of the teacher",
            "For Tables 2 and 10, with few labels: ScaleKD under larger teachers, and with strong "
            "augmentation. The larger teachers are recipes that were not trained here. "
            + run_by("teacher_size", "medium large"),
            [*teachers["accuracies"], *teachers["gains"]],
        ),
        further_section(
            "Experiment 7: students of other kinds",
            f"For the shape of Table 3 (the paper: {TABLE_3}), with few labels. {long_runs()} "
            + run_by("every_student"),
            [*students["supervised"], *students["logit_kd"]],
        ),
        further_section(
            "Experiment 8: pre-training",
            f"For Tables 4 and 16 (the paper, Table 4: {TABLE_4}), with few labels: teachers that "
            "saw fewer images, and the student pre-trained on all labels. "
            + run_by("pretraining", "small --images 5500", "small --images 27500"),
            [one for group in pretraining_family().values() for one in group],
        ),
        further_section(
            "Experiment 9: width",
            f"With few labels: half and double the student's channels. {run_by('width')}",
            [one for group in width_family().values() for one in group],
        ),
        component_cost_section(),
        transfer_section(SEGMENTATION),
        transfer_section(DETECTION),
        *(retuned_section(regime) for regime in REGIMES),
        further_section(
            "Experiment 13: large teacher, longer training",
            f"For Table 7 (the paper: {TABLE_7}): all images for ten epochs under the large "
            f"teacher, which needs a GPU. {run_by('longer', 'large')}",
            longer_family(),
        ),
        cost_section(),
        tuning_section(),
        settings_section(),
    ]


def further_section(title: str, text: str, comparisons: Sequence[Comparison]) -> Section:
    """An experiment whose table is its comparisons."""
    return Section(title, [text], [comparison_table(comparisons)])


def run_by(experiment: str, *teachers: str) -> str:
    """A sentence with what is run for an experiment, its teachers first."""
    steps = [f"`python experiments/teachers.py {teacher}`" for teacher in teachers]
    return f"Run by {', then '.join([*steps, f'`{runner(experiment)}`'])}."


def runner(experiment: str) -> str:
    """The command of an experiment."""
    return f"python experiments/evidence/runner.py {experiment}"


def retuned_section(regime: str) -> Section:
    """Experiment 12 in a regime."""
    title = f"Experiment 12: ScaleKD tuned again, {REGIMES[regime]}"
    text = retuned_time(regime)
    if regime == second_tuning.REGIME:
        text = (
            "Asked after the results: ScaleKD with a balance of the views and weights of the "
            "features that were tuned too, with few labels. It has "
            f"{len(second_tuning.tuned()) / TRIALS + 1:g} times the trials of every other method, "
            "and a space that was chosen after a look at test accuracies, so it tells how far the "
            "first tuning can have wronged ScaleKD and is no equal comparison. "
            f"{retuned_setting()} {text} {rounding()} {run_by(second_tuning.NAME)}"
        )
    found = [one for group in retuned_family(regime).values() for one in group]
    return further_section(title, text, found)


def retuned_setting() -> str:
    """What the second tuning chose."""
    best = second_tuning.best()
    if best is None:
        return f"Chosen: {NOT_RUN}."
    tried, found = second_tuning.tuned(), values(second_tuning.NAME, best.regime, best.arm)
    return (
        f"Chosen of {len(tried)}, with the weights as parts of those of the first tuning: "
        f"{best.arm}, {found.mean:.2f} % on the held-out images."
    )


def retuned_time(regime: str) -> str:
    """What its step takes."""
    if not second_tuning.COST.exists():
        return f"Its step's time: {NOT_RUN}."
    live, cached = second_tuning.ratios(regime).values()
    return (
        f"A step of it takes as long as {live:.2f} steps of logit KD with a live teacher, and as "
        f"{cached:.2f} from a cache."
    )


def long_runs() -> str:
    """What the students reach by labels only, when they are trained for long."""
    arms = [values("every_student", "all", f"{kind} long", kind) for kind in ("CNN", "MLP", "ViT")]
    known = [f"the {arm.name} {arm.mean:.2f} %" for arm in arms if arm.by_seed]
    yardsticks = ", ".join(f"{name} {top1:.1f} %" for name, top1 in YARDSTICKS.items())
    return (
        f"By labels only, on all images for {LONG['epochs']} epochs, one run of one seed: "
        f"{', '.join(known) or NOT_RUN}. The teacher has {teacher_top1()}. For comparison, what "
        "github.com/zalandoresearch/fashion-mnist lists, as its users reported it: "
        f"{yardsticks}. So neither the teacher, of {parameters(read_teacher())}, nor the CNN, "
        f"of {parameters(*select('every_student', 'all', 'CNN long'))}, reaches what others report "
        "for networks of its size."
    )


def parameters(record: dict[str, Any] | None = None) -> str:
    """How many the network of a record has."""
    return "-" if record is None else f"{record['parameters'] / 1e6:.2f} M parameters"


def component_cost_section() -> Section:
    """Experiment 10."""
    tables, how = [], []
    for record in read_records("component_cost"):
        least = record["seconds"]["logit KD"]
        rows = [
            [
                arm,
                f"{record['gflop_per_image'][arm]:.1f}",
                f"{record['peak_bytes'][arm] / 2**30:.2f}",
                f"{seconds:.2f}",
                f"{seconds / least:.2f}",
            ]
            for arm, seconds in record["seconds"].items()
        ]
        header = [
            record["pair"],
            "GFLOP an image",
            "GiB at the peak",
            "seconds a step",
            "relative to logit KD",
        ]
        tables.append(Table(header, rows))
        how.append(
            f"{record['pair']}: {record['batch']} images a step, {record['threads']} threads. "
            + describe(record)
        )
    text = [
        "For Table 15, whose numbers are not known to us: a step at full size, with random "
        "weights, in float32. Times are medians; the memory is what all live tensors take "
        "at the peak of a step, weights included, without what an allocator keeps beside them."
    ]
    not_run = "Not run here: `python experiments/evidence/component_cost.py`."
    return Section("Experiment 10: what the components cost", [*text, *(how or [not_run])], tables)


def cost_section() -> Section:
    """What a step costs."""
    if not COST.exists():
        return Section("Cost of a step", [NOT_RUN])
    seconds, record = read_cost(), read_json(COST)
    assert record is not None
    rows = [
        [
            METHOD_NAMES[method],
            *(
                f"{1000 * seconds_of_step(seconds[regime], method, suffix):.1f}"
                for regime in REGIMES
                for suffix in ("", ", cache")
            ),
        ]
        for method in METHODS
    ]
    header = [
        "method",
        *(f"{name}, {how}" for name in REGIMES.values() for how in ("live teacher", "cache")),
    ]
    text = [
        "Milliseconds of a step of the training loop on one core, without loading, interleaved, "
        "medians. FD compares the penultimate feature too, which no cache holds: its step from a "
        f"cache is what it would take if one did. {describe(record)}"
    ]
    return Section("Cost of a step", text, [Table(header, rows)])


def tuning_section() -> Section:
    """All trials of the tuning, on the held-out images."""
    rows = []
    for regime, name in REGIMES.items():
        tried = {
            record["arm"]: 100 * record["top1"]
            for record in read_records("tuning")
            if record["regime"] == regime
        }
        for method in METHODS if tried else ():
            for number in range(2):
                found = [tried.get(f"{method} {rate:g} {number}") for rate in RATES]
                setting = own_setting(SPACE[method][number])
                cells = ["-" if top1 is None else f"{top1:.2f}" for top1 in found]
                rows.append([name, METHOD_NAMES[method], setting, *cells])
    text = [
        "Top-1 in % on the 5,000 held-out training images, one seed, by learning rate and by two "
        "values of each method's own setting. None of these numbers is a result: each is of one "
        "run, and differences that are no larger than those of experiment 2's note on rounding "
        "mean nothing."
    ]
    header = ["regime", "method", "own setting", *(f"{rate:g}" for rate in RATES)]
    return Section("Tuning", text, [Table(header, rows), second_tuning_table()])


def own_setting(choice: dict[str, Any]) -> str:
    """The one number of a method's choices that was tuned."""
    flat = {name: value for name, value in choice.items() if isinstance(value, float)}
    for group in choice.values() if not flat else ():
        flat |= group
    return ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in flat.items())


def second_tuning_table() -> Table:
    """All trials of the second tuning, on the held-out images."""
    top1 = {record["arm"]: 100 * record["top1"] for record in read_records(second_tuning.NAME)}
    rows = []
    for beta, weight, temperature in itertools.product(
        second_tuning.BETAS, second_tuning.WEIGHTS, second_tuning.TEMPERATURES
    ):
        trials = [
            second_tuning.tuning_trial(beta, weight, rate, temperature)
            for rate in second_tuning.RATES
        ]
        cells = [f"{top1[trial.arm]:.2f}" if trial.arm in top1 else "-" for trial in trials]
        rows.append([f"{beta:g}", f"{weight:.2f}", f"{temperature:g}", *cells])
    rates = [f"{rate:g}" for rate in second_tuning.RATES]
    header = ["ScaleKD tuned again: beta", "weights of the features", "temperature", *rates]
    return Table(header, rows)


def settings_section() -> Section:
    """The settings, and where and when it was run."""
    experiments = (
        "tuning",
        "main_comparison",
        "components",
        "seven_classes",
        "no_classifier",
        "stages",
        "teacher_size",
        "every_student",
        "pretraining",
        "width",
        "transfer_tuning",
        "transfer",
        second_tuning.NAME,
        "longer",
        "inside",
    )
    rows = []
    for name in experiments:
        records = read_records(name)
        dates = sorted(record["date"][:10] for record in records)
        rows.append(
            [
                name,
                str(len(records)),
                f"{sum(record['seconds'] for record in records) / 3600:.1f}" if records else "-",
                " to ".join(dict.fromkeys((dates[0], dates[-1]))) if dates else NOT_RUN,
                machine(records[-1]) if records else "-",
                f"`{runner(name)}`",
            ]
        )
    folded = {"Settings that all runs share": yaml.safe_dump(read_settings(), sort_keys=False)}
    if CHOSEN.exists():
        folded["Settings that tuning chose"] = CHOSEN.read_text()
    text = [
        "A run is a file `experiments/results/EXPERIMENT/REGIME-METHOD-seedN.json` with all of its "
        "settings, commit, versions, machine, seconds and accuracy; for example "
        "`main_comparison/few-dist_equal_time_cache-seed0.json`. The runner trains what has no "
        "file: to repeat runs, move theirs away first. To repeat transfers on another machine, "
        "move those of their students (`transfer/few-*`) away, too: the runner refuses students "
        "that are not those of their records. `make report` writes this file, and "
        "`experiments/report.html` with pictures.",
    ]
    header = [
        "experiment",
        "runs",
        "hours of all runs, pauses of the machine included",
        "dates",
        "machine",
        "command",
    ]
    return Section("Runs and settings", text, [Table(header, rows)], [], folded)


def machine(record: dict[str, Any]) -> str:
    """Processor and versions of a record."""
    versions = record["versions"]
    return f"{record['machine']['processor']}, torch {versions['torch']}, timm {versions['timm']}"


def describe(record: dict[str, Any]) -> str:
    """Command, machine and date of a record."""
    return f"`{record['command']}`, {record['machine']['processor']}, {record['date'][:10]}."
