"""A few examples of `make fuzz`, which runs for ten minutes."""

import subprocess
import sys
from pathlib import Path


def test_damaged_files_are_only_ever_refused_in_one_line() -> None:
    fuzz = Path(__file__).with_name("fuzz.py")
    ended = subprocess.run(
        [sys.executable, fuzz, "--examples", "150", "--seed", "7"], capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "150 examples, 0 findings" in ended.stdout
