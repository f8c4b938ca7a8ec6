"""A main process that was killed (-9) left processes behind, idle and for ever."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.places import temporary_folder_below
from helpers.processes import alive_after, descendants
from helpers.real_runs import (
    start,
    stop,
    wait_until_training,
    write_long_recipe,
)

MOST_SECONDS = 10.0
"""How long a process may outlive the one that started it."""


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    write_long_recipe(tmp_path)
    with temporary_folder_below(tmp_path):
        yield tmp_path


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(("--parallel", "3"), id="side by side"),
        pytest.param(("--parallel", "1"), id="one process", marks=pytest.mark.slow),
        pytest.param(("--devices", "2"), id="ranks", marks=pytest.mark.slow),
    ],
)
def test_no_process_outlives_a_killed_main_process(root: Path, arguments: tuple[str, str]) -> None:
    """Of three parallel processes, one has no run to train."""
    process = start(root, "run", *arguments)
    assert wait_until_training(process, root / "run")
    below = descendants(process.pid)
    assert len(below) > 1
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert alive_after(below, MOST_SECONDS) == set()


@pytest.mark.slow
def test_no_rank_outlives_a_killed_torchrun(root: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    distill = ["-m", "scalekd", "distill", "--config", str(root / "recipe.yaml"), "--out"]
    process = subprocess.Popen(
        [*torchrun, *distill, str(root / "run")], stdout=subprocess.PIPE, text=True
    )
    assert wait_until_training(process, root / "run")
    below = descendants(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert alive_after(below, MOST_SECONDS) == set()


@pytest.mark.slow
def test_no_temporary_folder_remains_after_a_run(root: Path) -> None:
    """Each process that loads images had a folder with a socket, and was killed at the end."""
    process = start(root, "run", "--parallel", "2")
    assert wait_until_training(process, root / "run")
    stop(process)
    left = [file.name for file in (root / "temporary").iterdir()]
    assert [name for name in left if name.startswith(("pymp-", "tmp"))] == []
