"""Measure on a GPU what benchmarks/results/ lacks, in under eight minutes.

    python benchmarks/gpu.py                     # writes benchmarks/results/gpu/DATE-GPU.json
    python benchmarks/gpu.py --budget 240        # the most important part of it
    python benchmarks/gpu.py --small --out FILE  # the same scripts on the digits, also on a CPU

Runs the other scripts of this folder one after another, the most important first, each as long as
there is time: a step of each pair by part, its kernels, whether it can be repeated, whole steps
from files, and a real training that is interrupted. The file has one entry for each that ended, and
the reason of each that did not, and is written after each; a second call adds what is missing.
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
BUDGET = 470.0
"""Seconds; less than the eight minutes that a machine may be lent for."""

LEAST = 20.0
"""Seconds that a measurement needs at the least: it is not begun with fewer."""

UNCOMPILED = "--precision bf16-mixed --channels_last true"
SETTINGS = f"{UNCOMPILED} --compile true"


@dataclass(frozen=True)
class Measurement:
    """One call of a script of this folder.

    Attributes:
        name: In the file of results.
        script: Its name without .py.
        words: Its options.
    """

    name: str
    script: str
    words: str

    def run(self, seconds: float) -> dict[str, Any]:
        """What the script prints as JSON, or under "failed" why it did not."""
        words = [*shlex.split(self.words), "--json"]
        command = [sys.executable, str(HERE / f"{self.script}.py"), *words]
        began = time.monotonic()
        try:
            result = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
        except subprocess.TimeoutExpired:
            return {"failed": f"it took more than the {seconds:.0f} s that were left"}
        if result.returncode:
            return {"failed": result.stderr[-2000:] or f"exit code {result.returncode}"}
        values: dict[str, Any] = json.loads(result.stdout)
        shown = f"python benchmarks/{self.script}.py {self.words} --json"
        return values | {"command": shown, "took": time.monotonic() - began}


def step(pair: str, images: int) -> Measurement:
    """A pair's step by part, beside the released structure."""
    words = f"--pair {pair} --batch_size {images} --accumulate 1 {SETTINGS} --repetitions 9"
    return Measurement(f"step, {pair}, {images} images", "step", words)


def loop(pair: str, images: int) -> Measurement:
    """Whole steps from JPEG files."""
    words = f"--pair {pair} --batch_size {images} --accumulate 1 {SETTINGS} --repetitions 12"
    return Measurement(f"loop, {pair}, {images} images", "loop", f"{words} --loading '[8,14]'")


LARGE, SMALL = "swin_large-resnet50", "swin_small-resnet50"
PLAN = [
    step(LARGE, 128),
    Measurement(
        f"kernels, {LARGE}, 128 images",
        "profile_step",
        f"--pair {LARGE} --batch_size 128 --accumulate 1 {SETTINGS}",
    ),
    Measurement("resuming", "resume", "--epochs 1 --batch_size 64"),
    Measurement(
        f"repeating, {LARGE}, 64 images",
        "repeat",
        f"--pair {LARGE} --batch_size 64 --accumulate 1 {UNCOMPILED}",
    ),
    loop(LARGE, 128),
    Measurement(
        f"recomputing, {LARGE}, 128 images",
        "recomputing",
        f"--pair {LARGE} --batch_size 128 --accumulate 1 {SETTINGS}",
    ),
    step(SMALL, 128),
    loop(SMALL, 128),
    step(LARGE, 256),
    step("eva_large-resnet50", 128),
    step("swin_large-vit_small", 128),
    step(SMALL, 256),
    step("eva_large-resnet50", 256),
    step("swin_large-vit_small", 256),
]
"""The most important first."""

TINY = "--teacher test_vit --student test_resnet --data.image_size 160 --batch_size 2 --threads 1"
DIGITS = "--pair digits --data.root digits --batch_size 4 --threads 1 --loading '[0]'"
SMALL_PLAN = [
    Measurement("step", "step", f"{TINY} --repetitions 2"),
    Measurement("kernels", "profile_step", f"{TINY} --repetitions 2"),
    Measurement("resuming", "resume", "--epochs 1 --data.epoch_images 160 --optim.warmup_epochs 0"),
    Measurement("repeating", "repeat", f"{TINY} --repetitions 2"),
    Measurement("recomputing", "recomputing", f"{TINY} --repetitions 2"),
    Measurement("loop", "loop", f"{DIGITS} --repetitions 2"),
]
"""The same scripts where there is no GPU, or only to try them."""


def measure(plan: list[Measurement], file: Path, budget: float) -> dict[str, Any]:
    """Run what the file has not, as long as there is time; returns all that it has."""
    results: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    end = time.monotonic() + budget
    for measurement in plan:
        if "failed" not in results.get(measurement.name, {"failed": ""}):
            continue
        left = end - time.monotonic()
        if left < LEAST:
            print(f"{measurement.name}: not run, the time is over")
            continue
        values = measurement.run(left)
        results[measurement.name] = values
        file.write_text(json.dumps(results, indent=1) + "\n")
        outcome = values.get("failed", f"took {values.get('took', 0):.0f} s")
        print(f"{measurement.name}: {outcome}", flush=True)
    return results


def main() -> None:
    """Run the measurements."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--budget", type=float, default=BUDGET, help="Seconds for all of it.")
    parser.add_argument("--out", type=Path, help="File of the results.")
    parser.add_argument("--small", action="store_true", help="Only try the scripts, on the digits.")
    options = parser.parse_args()
    if not options.small and not torch.cuda.is_available():
        raise SystemExit("torch sees no GPU: give --small to try the scripts without one")
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    words = "-".join(name.lower().split())
    file = options.out or HERE / "results" / "gpu" / f"{today}-{words}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    results = measure(SMALL_PLAN if options.small else PLAN, file, options.budget)
    ended = sum("failed" not in values for values in results.values())
    print(f"{file} has {ended} measurements")


if __name__ == "__main__":
    main()
