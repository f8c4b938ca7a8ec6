"""`--devices N` on one machine listened on all network interfaces, and ranks exchanged pickles.

Any user of the machine, or of its network, could join as a rank and run code in the training.
"""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from helpers.pictures import image_folder
from helpers.places import temporary_folder_below
from helpers.processes import descendants, listening_addresses
from helpers.real_runs import SECONDS_TO_START, random_settings, start, stop, wait_until_training

from scalekd.distributed.ranks import RENDEZVOUS_FOLDER

LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A folder with images, a recipe for two ranks, and a folder for temporary files."""
    image_folder(tmp_path / "images", each=10, side=48)
    settings = random_settings(tmp_path) | {"accumulate": 1}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))
    with temporary_folder_below(tmp_path):
        yield tmp_path


def test_ranks_of_one_machine_meet_in_a_private_file_and_listen_on_loopback_only(
    root: Path,
) -> None:
    process = start(root, "run", "--devices", "2")
    assert wait_until_training(process, root / "run")
    started = descendants(process.pid)
    addresses = {process.pid: listening_addresses(process.pid)}
    for rank in started:
        addresses[rank] = listening_addresses(rank)
    (folder,) = (root / "temporary").glob("scalekd-ranks-*")
    mode = stat.S_IMODE(folder.stat().st_mode)
    stop(process)
    assert set().union(*addresses.values()) <= LOOPBACK, addresses
    assert addresses[process.pid] == set()
    assert mode == 0o700
    assert [file for file in (root / "temporary").rglob("*") if not file.is_dir()] == []
    left = [file.name for file in (root / "temporary").iterdir()]
    assert [name for name in left if name.startswith(("scalekd-", "pymp-", "tmp"))] == []


NO_PICKLES = """
import sys
import torch.distributed.distributed_c10d as c10d
def refuse(*_, **__):
    raise AssertionError("an object is pickled for another rank")
c10d._object_to_tensor = c10d._tensor_to_object = refuse
from scalekd.cli.main import main
main(sys.argv[1:])
"""


def test_ranks_exchange_no_pickles(root: Path) -> None:
    """With sharded weights, which need all that ranks exchange without them, and more."""
    command = ["distill", "--config", str(root / "recipe.yaml"), "--out", str(root / "run")]
    command += ["--epochs", "1", "--data.workers", "0", "--optim.warmup_epochs", "0"]
    command += ["--fsdp", "[student,teacher]", "--data.epoch_images", "8"]
    shared = {**os.environ, "WORLD_SIZE": "2", RENDEZVOUS_FOLDER: str(root / "temporary")}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", NO_PICKLES, *command],
            env={**shared, "RANK": number, "LOCAL_RANK": number, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in "01"
    ]
    ended = [(rank.communicate(timeout=SECONDS_TO_START)[1], rank.returncode) for rank in ranks]
    assert [code for _, code in ended] == [0, 0], ended
