"""How a process finds out which rank it is, from the variables that its launcher sets."""

import os

import pytest

from scalekd.distributed.ranks import (
    LaunchEnvironment,
    first_host,
    launch_environment,
    local_world_size,
    tasks_per_node,
)
from scalekd.errors import InputError

SRUN = {
    "SLURM_JOB_ID": "1234567",
    "SLURM_JOB_NAME": "train",
    "SLURM_NODELIST": "gpu[01-09]",
    "SLURM_STEP_NODELIST": "gpu[07-09]",
    "SLURM_NTASKS": "11",
    "SLURM_TASKS_PER_NODE": "4(x2),3",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "2",
}
"""What srun sets without --ntasks-per-node, for the second task on the third node."""


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    for name in names | {name for name in os.environ if name.startswith("SLURM_")}:
        monkeypatch.delenv(name, raising=False)


def set_variables(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def test_a_process_without_a_launcher_is_alone() -> None:
    assert launch_environment() == LaunchEnvironment(rank=0, world_size=1, local_rank=0)
    assert local_world_size() == 1


def test_torchrun_sets_the_place_of_a_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    set_variables(monkeypatch, {**SRUN, **ranks, "MASTER_ADDR": "node0", "MASTER_PORT": "29500"})
    assert launch_environment() == LaunchEnvironment(5, 8, 1, 4, "node0", 29500)


def test_srun_without_ntasks_per_node_sets_the_place_of_a_rank(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_variables(monkeypatch, SRUN)
    assert launch_environment() == LaunchEnvironment(9, 11, 1, 3, "gpu07", 19567)


def test_srun_with_a_chosen_address_and_port_uses_them(monkeypatch: pytest.MonkeyPatch) -> None:
    set_variables(monkeypatch, {**SRUN, "MASTER_ADDR": "node9", "MASTER_PORT": "4000"})
    environment = launch_environment()
    assert (environment.main_address, environment.main_port) == ("node9", 4000)


def test_a_batch_script_that_does_not_call_srun_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    in_step = {"SLURM_STEP_NODELIST"}
    set_variables(monkeypatch, {k: v for k, v in SRUN.items() if k not in in_step})
    assert launch_environment() == LaunchEnvironment()


def test_without_a_local_rank_each_process_is_alone_on_its_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_variables(monkeypatch, {"RANK": "2", "WORLD_SIZE": "3", "MASTER_ADDR": "pod-0"})
    assert launch_environment() == LaunchEnvironment(2, 3, 0, 1, "pod-0")


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"RANK": "0"}, "RANK is 0 and WORLD_SIZE is None"),
        ({"RANK": "a", "WORLD_SIZE": "2"}, "RANK is a and RANK is a"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": ""}, "LOCAL_RANK is : whatever"),
    ],
)
def test_variables_that_tell_no_place_are_refused(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], said: str
) -> None:
    set_variables(monkeypatch, variables)
    with pytest.raises(InputError, match=said):
        launch_environment()


@pytest.mark.parametrize("name", ["bash", "interactive"])
def test_a_shell_in_an_interactive_slurm_job_is_alone(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    set_variables(monkeypatch, {**SRUN, "SLURM_JOB_NAME": name})
    assert launch_environment() == LaunchEnvironment()


@pytest.mark.parametrize(
    ("listed", "counts"),
    [("1", [1]), ("4(x2)", [4, 4]), ("4,3", [4, 3]), ("2(x3),1,8(x2)", [2, 2, 2, 1, 8, 8])],
)
def test_slurms_tasks_per_node_are_counted(listed: str, counts: list[int]) -> None:
    assert tasks_per_node(listed) == counts


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("host0 host1", "host0"),
        ("cpu1,gpu[07-09]", "cpu1"),
        ("gpu[07-09,12],cpu1", "gpu07"),
        ("gpu[5]", "gpu5"),
        ("rack[1-2]node[3,5]-ib", "rack1node3-ib"),
    ],
)
def test_the_first_host_of_slurms_node_list_is_found(nodes: str, host: str) -> None:
    assert first_host(nodes) == host
