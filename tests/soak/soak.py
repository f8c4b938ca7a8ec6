"""Disturb trainings at random until the time is over, and compare what they end with.

Each round takes a kind of training, disturbs it a few times (kill -9, signals, limits as of a full
disk and of open files), resumes it each time, and lets it finish. Its weights, optimizer and
metrics must be bit-identical to those of an undisturbed run. The first difference, hang, traceback,
unexpected exit code or orphan ends the soak; `--round N` with the same seed repeats it.

    PYTHONPATH=tests python tests/soak/soak.py --minutes 30 --seed 0
"""

import argparse
import collections
import contextlib
import itertools
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from helpers.pictures import image_folder, tar_folder
from helpers.processes import alive_after, descendants
from helpers.real_runs import MEASURED, leaves, random_settings, start

from scalekd.runs.checkpoint import load_newest
from scalekd.runs.folder import find_run_folders
from scalekd.runs.result import read_metrics

MOST_SECONDS = 300
"""A process that takes longer hangs."""

SIGNALS: dict[str, list[signal.Signals]] = {
    "kill -9": [signal.SIGKILL],
    "SIGTERM": [signal.SIGTERM],
    "Ctrl-C": [signal.SIGINT],
    "two Ctrl-C": [signal.SIGINT, signal.SIGINT],
    "SIGHUP": [signal.SIGHUP],
    "SIGUSR1": [signal.SIGUSR1],
}
LIMITS = {
    "full disk": (resource.RLIMIT_FSIZE, 1_000, 4_000_000),
    "open files": (resource.RLIMIT_NOFILE, 8, 60),
}


@dataclass(frozen=True)
class Training:
    """A kind of training: what it changes in `random_settings`, and its options."""

    changes: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    options: tuple[str, ...] = ("--parallel", "1")
    cached: bool = False


TRAININGS = {
    "one process": Training(),
    "ranks": Training({"accumulate": 1}, options=("--devices", "2")),
    "side by side": Training({"compare": ["supervised"]}, options=("--parallel", "2")),
    "several students": Training({"more_students": ["test_vit2"]}, options=()),
    "tars": Training(data={"root": "tars"}),
    "cache": Training({"task": "cross_entropy"}, {"mixup": 0.0, "cutmix": 0.0}, cached=True),
}


class Failed(Exception):  # noqa: N818 -- it is the result
    """A difference, hang, traceback, unexpected exit code or orphan."""


def prepare(root: Path, name: str) -> None:
    """Make the recipe of a kind of training, and its undisturbed run, where they are missing."""
    training, recipe = TRAININGS[name], root / f"{name}.yaml"
    if recipe.exists():
        return
    settings = random_settings(root) | {"epochs": 6, **training.changes}
    images = root / training.data.get("root", "images")
    settings["data"] |= training.data | {"root": str(images)}
    recipe.write_text(yaml.safe_dump(settings))
    if training.cached:
        cache = ["cache", "--config", str(recipe), "--out", str(root / "cache")]
        command = [sys.executable, "-m", "scalekd", *cache, "--augmented_views", "3"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        recipe.write_text(yaml.safe_dump(settings | {"cache": str(root / "cache")}))
    run(root, name, f"undisturbed {name}")


def run(root: Path, name: str, out: str, chance: random.Random | None = None) -> str:
    """Start or resume a training, and with `chance` disturb it; returns what was done to it."""
    training = TRAININGS[name]
    process = start(root, out, *training.options, "--resume", recipe=f"{name}.yaml")
    below: set[int] = set()
    done, codes = "finished", {0}
    if chance is not None:
        done = chance.choice([*SIGNALS, *LIMITS])
        with contextlib.suppress(subprocess.TimeoutExpired):
            # Before the package is imported, a signal ends the interpreter in Python's own way.
            process.wait(chance.uniform(2.0, 20.0))
        below = descendants(process.pid)
        codes |= disturb(process, done, below, chance)
    output = end(process, done)
    if "Traceback" in output or process.returncode not in codes:
        raise Failed(f"{done}: exit code {process.returncode}, and not of {codes}:\n{output}")
    if orphans := alive_after(below, 10):
        raise Failed(f"{done}: processes {orphans} outlive it:\n{output}")
    return done


def disturb(
    process: subprocess.Popen[str], done: str, below: set[int], chance: random.Random
) -> set[int]:
    """Do it to a process; returns the exit codes that may follow."""
    if done in LIMITS:
        kind, least, most = LIMITS[done]
        limit = chance.randint(least, most)
        for pid in (process.pid, *below):
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(pid, kind, (limit, limit))
        return {2}
    codes: set[int] = set()
    for number in SIGNALS[done]:
        process.send_signal(number)
        time.sleep(chance.uniform(0.0, 0.5))
        codes |= {-number, 128 + number, 143 if number == signal.SIGUSR1 else 128 + number}
    return codes


def end(process: subprocess.Popen[str], done: str) -> str:
    """What the process printed until it ended."""
    try:
        return process.communicate(timeout=MOST_SECONDS)[0]
    except subprocess.TimeoutExpired:
        for pid in (process.pid, *descendants(process.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        raise Failed(f"{done}: it hangs:\n{process.communicate()[0]}") from None


def compare(one: Path, other: Path, *, was_full: bool) -> int:
    """Compare all run folders in two folders; returns the number of tensors that are equal.

    Where the disk was full, a checkpoint or lines of metrics may be missing, but not be wrong.
    """
    tensors = 0
    for folder in find_run_folders(one):
        twin = type(folder)(other / folder.path.relative_to(one))
        for file in sorted(folder.checkpoints.glob("*-seed7.ckpt")):
            states = [load_newest(path) for path in (file, twin.checkpoints / file.name)]
            first, second = (dict(leaves(state)) for state in states)
            if was_full and second.get(".step") != first[".step"]:
                continue
            if first.keys() != second.keys():
                raise Failed(f"{file} has {first.keys() ^ second.keys()} in one run only")
            for name, value in first.items():
                tensors += isinstance(value, torch.Tensor)
                if name.rpartition(".")[2] not in MEASURED and not _equal(value, second[name]):
                    raise Failed(f"{file}: {name} differs")
        lines, twins = _metrics(folder.metrics), _metrics(twin.metrics)
        if lines != twins and not (was_full and all(line in lines for line in twins)):
            raise Failed(f"{twin.metrics} differs")
        if (student := folder.student / "model.safetensors").read_bytes() != (
            twin.student / student.name
        ).read_bytes():
            raise Failed(f"{twin.student} differs")
    if not tensors and not was_full:
        raise Failed(f"{one} has no checkpoint")
    return tensors


def _equal(one: Any, other: Any) -> bool:
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else bool(one == other)


def _metrics(file: Path) -> list[Any]:
    """Lines of metrics; runs side by side write them in any order."""
    entries, broken = read_metrics(file)
    if broken:
        raise Failed(f"{file} has {broken} broken lines")
    lines = [{k: v for k, v in entry.items() if k not in MEASURED} for entry in entries]
    return sorted(lines, key=lambda line: (line["method"], line["step"], line["top1"] is not None))


def soak(root: Path, minutes: float, seed: int, only: int | None) -> collections.Counter[str]:
    """Disturb trainings until the minutes are over, or in round `only`; returns counts."""
    counts: collections.Counter[str] = collections.Counter()
    deadline = time.monotonic() + 60 * minutes
    image_folder(root / "images", each=10, side=48)
    tar_folder(root / "tars", tars=3, each=10)
    for number in itertools.count() if only is None else [only]:
        if only is None and time.monotonic() > deadline:
            break
        chance = random.Random(f"{seed} {number}")
        name = list(TRAININGS)[number % len(TRAININGS)]
        prepare(root, name)
        print(f"round {number}, {name}:", end=" ", flush=True)
        disturbances = []
        for _ in range(chance.randint(1, 4)):
            disturbances.append(run(root, name, "disturbed", chance))
            print(disturbances[-1], end=", ", flush=True)
        run(root, name, "disturbed")
        was_full = "full disk" in disturbances
        folders = root / f"undisturbed {name}", root / "disturbed"
        tensors = compare(*folders, was_full=was_full)
        counts.update([*disturbances, "rounds"])
        counts["tensors"] += tensors
        print(f"{tensors} tensors are equal", flush=True)
        shutil.rmtree(root / "disturbed")
    return counts


def main() -> None:
    """Soak, print counts, and exit with 1 at the first fault."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--round", type=int, help="Only this round of the seed.")
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="soak-"))
    try:
        counts = soak(root, options.minutes, options.seed, options.round)
    except Failed as failed:
        sys.exit(f"\nFAILED (the files are in {root}): {failed}")
    shutil.rmtree(root)
    print(", ".join(f"{name}: {count}" for name, count in counts.items()))


if __name__ == "__main__":
    main()
