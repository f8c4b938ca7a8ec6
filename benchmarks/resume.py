"""Tell whether an interrupted training that resumes ends with the weights of an undisturbed one.

    python benchmarks/resume.py --epochs 2 --batch_size 32
    python benchmarks/resume.py --precision bf16-mixed --compile true --json

Takes the options of `scalekd distill`, whose digits default is trained as a person trains it, in
processes of its own: once undisturbed, once stopped in its middle and resumed; both with any
kernels and with `deterministic`. On a CPU all weights are bit-identical; on a GPU only those of
trainings with deterministic kernels can be.
"""

import json
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from scalekd.runs.checkpoint import load_newest
from scalekd.runs.folder import RunFolder
from scalekd.runs.result import Run, read_results
from scalekd.runs.system_info import describe_machine, describe_versions

RUN = Run("scalekd", 0)
FIXED = "--seeds '[0]' --compare '[]' --log_every 1 --save_steps 1000000"


@dataclass(frozen=True)
class Trainings:
    """What two trainings of the same recipe gave.

    Attributes:
        deterministic: Whether only deterministic kernels were asked for.
        top1: Of the first.
        seconds: Of the first, of its steps alone.
        difference: The largest difference of a weight of student or projectors between them.
        interrupted_at: The step that the second was stopped at.
    """

    deterministic: bool
    top1: float
    seconds: float
    difference: float
    interrupted_at: int


def command(out: Path, words: list[str]) -> list[str]:
    """The command of a training in the folder `out`."""
    return [
        sys.executable,
        "-m",
        "scalekd",
        "distill",
        *words,
        *shlex.split(FIXED),
        "--out",
        str(out),
    ]


def train(out: Path, words: list[str]) -> None:
    """Train to the end; exits with the command's own error where it fails."""
    result = subprocess.run(command(out, words), capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"{result.stdout}{result.stderr}")


def train_interrupted(out: Path, words: list[str], steps: int) -> int:
    """Train, stopped once near the middle of so many steps; returns the step that it stopped at."""
    process = subprocess.Popen(command(out, words), stdout=subprocess.DEVNULL)
    metrics = RunFolder(out).metrics
    while process.poll() is None:
        if metrics.exists() and len(metrics.read_text().splitlines()) >= steps // 2:
            process.send_signal(signal.SIGTERM)
            break
        time.sleep(0.01)
    process.wait()
    state = load_newest(RunFolder(out).checkpoint(RUN))
    assert state is not None
    train(out, [*words, "--resume"])
    step: int = state["step"]
    return step


def largest_difference(a: Path, b: Path) -> float:
    """The largest difference of a weight between the newest checkpoints of two run folders."""
    states = [load_newest(RunFolder(folder).checkpoint(RUN)) for folder in (a, b)]
    first, second = (state["learner"] for state in states if state is not None)
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def compare(folder: Path, words: list[str], deterministic: bool) -> Trainings:
    """Train twice, and compare."""
    words = [*words, "--deterministic", str(deterministic).lower()]
    first, second = (folder / f"{name}-{deterministic}" for name in ("whole", "interrupted"))
    train(first, words)
    ((result,), _) = read_results(RunFolder(first).results)
    stopped = train_interrupted(second, words, result.steps)
    assert result.top1 is not None
    return Trainings(
        deterministic=deterministic,
        top1=result.top1,
        seconds=result.seconds,
        difference=largest_difference(first, second),
        interrupted_at=stopped,
    )


def describe(each: Trainings) -> str:
    """The results as a line of text."""
    kind = "deterministic kernels" if each.deterministic else "any kernels"
    return (
        f"{kind}: {each.top1:.2%} in {each.seconds:.1f} s; stopped at step "
        f"{each.interrupted_at} and resumed, the largest difference of a weight is "
        f"{each.difference:.2g}"
    )


def main() -> None:
    """Run the trainings and print what they gave."""
    words = [word for word in sys.argv[1:] if word != "--json"]
    with tempfile.TemporaryDirectory() as temporary:
        results = [compare(Path(temporary), words, kind) for kind in (False, True)]
    if "--json" in sys.argv:
        report: dict[str, Any] = {
            "trainings": results,
            "machine": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "host": describe_machine(),
            "versions": describe_versions(),
        }
        print(json.dumps(report, default=vars, indent=1))
        return
    print("\n".join(map(describe, results)))


if __name__ == "__main__":
    main()
