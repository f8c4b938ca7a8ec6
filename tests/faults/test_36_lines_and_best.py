"""A cut line of metrics swallowed the next; a best checkpoint lost to a full disk stayed lost."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.full_disk import limited_file_size
from helpers.warned import warned

from scalekd.runs.checkpoint import best_checkpoint
from scalekd.runs.folder import RunFolder
from scalekd.runs.result import read_metrics
from scalekd.training.checkpointing import Checkpointing

LINE: dict[str, Any] = {"method": "scalekd", "seed": 1, "steps": 9, "seconds": 1.0, "loss": 1.0,
                        "top1": None}  # fmt: skip


@pytest.mark.parametrize("cut", ['{"method": "sca', "{", "\x00\x00"])
def test_a_line_after_a_cut_one_is_a_line_of_its_own(tmp_path: Path, cut: str) -> None:
    folder = RunFolder(tmp_path)
    folder.append_metrics({**LINE, "step": 1})
    with folder.metrics.open("a") as metrics:
        metrics.write(cut)
    folder.append_metrics({**LINE, "step": 2})
    folder.append_metrics({**LINE, "step": 3})
    entries, broken = read_metrics(folder.metrics)
    assert [entry["step"] for entry in entries] == [1, 2, 3]
    assert broken == 1


def test_a_line_that_a_full_disk_cuts_costs_only_itself(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.append_metrics({**LINE, "step": 1})
    with limited_file_size(folder.metrics.stat().st_size + 20), warned("a line is lost"):
        folder.append_metrics({**LINE, "step": 2})
    folder.append_metrics({**LINE, "step": 3})
    entries, _ = read_metrics(folder.metrics)
    assert [entry["step"] for entry in entries] == [1, 3]


def test_whether_the_best_checkpoint_was_written_is_told(tmp_path: Path) -> None:
    file = tmp_path / "x.ckpt"
    checkpoints = Checkpointing(file, every_steps=None, every_minutes=5)
    state = {"step": 1, "learner": {"a": torch.zeros(1000)}}
    with limited_file_size(100), warned("could not be written"):
        assert not checkpoints.save_best(state)
    assert not best_checkpoint(file).exists()
    assert checkpoints.save_best(state)
    assert best_checkpoint(file).exists()
