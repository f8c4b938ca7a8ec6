"""The benchmark of whole steps: its stopwatch, its files, and a real run."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from loop import Stopwatch, write_images
from PIL import Image

LOOP = Path(__file__).parents[2] / "benchmarks" / "loop.py"


def test_parts_exclude_the_parts_inside_of_them() -> None:
    watch = Stopwatch(torch.device("cpu"))
    with watch.part("outer"):
        watch.timed("inner", time.sleep)(0.05)
        watch.timed("inner", time.sleep)(0.05)
    counted = watch.reset()
    assert counted["inner"] >= 0.1
    assert counted["outer"] < counted["inner"]
    assert watch.seconds == {}


def test_the_files_are_like_those_of_imagenet(tmp_path: Path) -> None:
    mean_bytes = write_images(tmp_path, files=2)
    with Image.open(tmp_path / "train" / "class0" / "0.jpg") as image:
        assert image.size == (500, 375)
    assert 80_000 < mean_bytes < 140_000
    assert len(list((tmp_path / "val").glob("*/*.jpg"))) == 4


def test_whole_steps_are_timed_by_part_beside_bare_ones() -> None:
    words = "--pair digits --data.root digits --batch_size 8 --threads 1 --repetitions 2 --json"
    command = [sys.executable, str(LOOP), *words.split(), "--loading", "[0]", "--ema", "0.9"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (loop,) = json.loads(result.stdout)["loops"]
    parts = {name: quartiles["median"] for name, quartiles in loop["parts"].items()}
    assert {"loading", "forward", "backward", "clipping", "optimizer", "average"} <= parts.keys()
    assert all(seconds >= 0 for seconds in parts.values())
    assert loop["ratio_to_bare"]["median"] > 0
    assert loop["validation_seconds"] > 0
    highest = loop["step_seconds"]["high"]
    assert loop["images_per_second"] == pytest.approx(8 / loop["step_seconds"]["median"])
    assert max(parts.values()) <= highest
