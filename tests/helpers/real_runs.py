"""Trainings as a person starts them: real processes, and what they leave."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from scalekd.runs.checkpoint import load_newest

SECONDS_TO_START = 300


def settings(root: Path) -> dict[str, Any]:
    """Much that is random, and has a state: RandAugment, erasing, Mixup, CutMix, dropout,
    stochastic depth, two loaders, an average."""
    small = {"img_size": 48, "drop_path_rate": 0.2, "proj_drop_rate": 0.1, "attn_drop_rate": 0.1}
    return {
        "teacher": "test_vit",
        "teacher_weights": "random",
        "teacher_args": {"img_size": 48, "num_classes": 3},
        "student": "test_vit",
        "student_args": small,
        "data": {
            "root": str(root / "images"),
            "image_size": 48,
            "auto_augment": "rand-m9-n2-mstd0.5",
            "erasing": 0.25,
            "mixup": 0.2,
            "cutmix": 1.0,
            "workers": 2,
        },
        "epochs": 12,
        "batch_size": 4,
        "accumulate": 2,
        "ema": 0.9,
        "task": "bce",
        "optim": {"warmup_epochs": 1.0},
        "validate_every": 2,
        "log_every": 2,
        "save_steps": 3,
        "seeds": [7],
    }


def begin(root: Path, out: str, *words: str, recipe: str = "recipe.yaml") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", "from scalekd.cli.main import main; main()", "distill"]
    return subprocess.Popen(
        [*command, "--config", str(root / recipe), "--out", str(root / out), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=SECONDS_TO_START)
    assert process.returncode == 0, said
    return said


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def kill(process: subprocess.Popen[str]) -> None:
    """With -9: it, its loaders, and its ranks with theirs."""
    ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for number in (process.pid, *map(int, ranks)):
        with contextlib.suppress(ProcessLookupError):  # a loader, in the group of its rank
            os.killpg(number, signal.SIGKILL)
    process.communicate()


def begun(process: subprocess.Popen[str], out: Path) -> bool:
    """Waits until training has begun, or the process has ended."""
    already = len(lines(out)) if (out / "metrics.jsonl").exists() else 0
    until = time.monotonic() + SECONDS_TO_START
    while process.poll() is None and time.monotonic() < until:
        if (out / "metrics.jsonl").exists():
            try:
                if len(lines(out)) > already:
                    return True
            except json.JSONDecodeError:
                pass  # in the middle of a line
        time.sleep(0.01)
    return False


def parts(nested: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a state, by dotted names."""
    items = nested.items() if isinstance(nested, dict) else None
    items = enumerate(nested) if isinstance(nested, list | tuple) else items
    if items is None:
        yield name, nested
        return
    for key, inner in items:
        yield from parts(inner, f"{name}.{key}")


TIMES = ("seconds", "images_per_second", "training_seconds", "waiting", "memory")


def assert_alike(one: Path, other: Path) -> None:
    """The same weights, optimizer, averages and metrics, to the bit."""
    states = [load_newest(out / "checkpoints" / "scalekd-seed7.ckpt") for out in (one, other)]
    leaves = [dict(parts(state)) for state in states]
    assert leaves[0].keys() == leaves[1].keys()
    for name, value in leaves[0].items():
        if name.rpartition(".")[2] in TIMES:
            continue
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, leaves[1][name]), name
        else:
            assert value == leaves[1][name], name
    told = [
        [{k: v for k, v in line.items() if k not in TIMES} for line in lines(out)]
        for out in (one, other)
    ]
    assert told[0] == told[1]
    for file in ("model.safetensors", "config.json"):
        assert (one / "student" / file).read_bytes() == (other / "student" / file).read_bytes()


def killed_again_and_again(root: Path, out: str, times: int, seed: int, *words: str) -> list[int]:
    """The steps that its newest state was at when it was killed."""
    chance, at = random.Random(seed), []
    shutil.rmtree(root / out, ignore_errors=True)
    for _ in range(times):
        process = begin(root, out, "--resume", *words)
        if begun(process, root / out):
            time.sleep(chance.uniform(0, 0.6))
        assert process.poll() is None, "ended before it was killed: give it more epochs"
        kill(process)
        state = load_newest(root / out / "checkpoints" / "scalekd-seed7.ckpt")
        at.append(state["step"] if state else 0)
    finish(begin(root, out, "--resume", *words))
    return at
