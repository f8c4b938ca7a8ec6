"""The queue of the teacher's features: its order, its memory, and its ranks."""

import os
import subprocess
import sys
from pathlib import Path

import torch

import scalekd
from scalekd.baselines.feature_queue import FeatureQueue


def numbered(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers)[:, None]


def places(queue: FeatureQueue) -> list[float]:
    return queue.rows.flatten().tolist()


def test_features_fill_the_queue_in_order_and_then_replace_the_oldest() -> None:
    queue = FeatureQueue(5, channels=1)
    assert not queue.is_filled().any()
    queue.add(numbered(1, 2))
    assert places(queue) == [1, 2, 0, 0, 0]
    assert queue.is_filled().tolist() == [True, True, False, False, False]
    queue.add(numbered(3, 4))
    queue.add(numbered(5, 6))
    assert places(queue) == [6, 2, 3, 4, 5]
    queue.add(numbered(7, 8, 9, 10))
    assert places(queue) == [6, 7, 8, 9, 10]
    queue.add(numbered(11))
    assert places(queue) == [11, 7, 8, 9, 10]


def test_of_more_features_than_rows_the_last_are_kept() -> None:
    queue = FeatureQueue(3, channels=1)
    queue.add(numbered(1))
    queue.add(numbered(2, 3, 4, 5, 6))
    assert sorted(places(queue)) == [4, 5, 6]


def test_the_queue_and_its_position_are_in_the_state_dict_bit_identical() -> None:
    queue, other = FeatureQueue(4, channels=2), FeatureQueue(4, channels=2)
    queue.add(torch.randn(3, 2))
    other.load_state_dict(queue.state_dict())
    features = torch.randn(3, 2)
    queue.add(features)
    other.add(features)
    assert torch.equal(queue.rows, other.rows)
    assert torch.equal(queue.position, other.position)


def test_a_feature_that_is_not_finite_counts_as_an_empty_row() -> None:
    queue = FeatureQueue(4, channels=2)
    queue.add(torch.tensor([[1.0, 2.0], [float("nan"), 1.0], [float("inf"), 0.0], [3.0, 4.0]]))
    assert queue.is_filled().tolist() == [True, False, False, True]
    assert queue.rows.isfinite().all()


def test_the_queue_takes_no_gradient_and_its_own_precision() -> None:
    queue = FeatureQueue(4, channels=2)
    queue.add(torch.randn(2, 2, dtype=torch.bfloat16, requires_grad=True))
    assert queue.rows.dtype == torch.float32
    assert not queue.rows.requires_grad


RANKS = """
import sys
from datetime import timedelta
import torch
from torch import distributed
from scalekd.baselines.feature_queue import FeatureQueue

rank = int(sys.argv[2])
store = distributed.FileStore(sys.argv[1], 2)
distributed.init_process_group("gloo", store=store, rank=rank, world_size=2,
                               timeout=timedelta(seconds=120))
queue = FeatureQueue(5, channels=1)
for step in (0, 10):
    queue.add(torch.tensor([[step + 2.0 * rank + 1], [step + 2.0 * rank + 2]]))
print(*queue.rows.flatten().tolist(), int(queue.position))
distributed.destroy_process_group()
"""


def test_all_ranks_have_the_same_queue_with_rank_0s_features_first(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(scalekd.__file__).parents[1]), *sys.path]),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    command = [sys.executable, "-c", RANKS, str(tmp_path / "store")]
    started = [
        subprocess.Popen([*command, str(rank)], env=environment, stdout=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    printed = [process.communicate(timeout=180)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    # Before it, older gloos print how many ranks they are connected to.
    assert [text.splitlines()[-1] for text in printed] == ["12.0 13.0 14.0 4.0 11.0 3"] * 2
