"""Two processes that train one student, over gloo."""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.evaluating import top1_of
from helpers.pictures import image_folder
from helpers.real_runs import (
    SECONDS_TO_START,
    assert_bit_identical,
    finish,
    kill_repeatedly_and_finish,
    metrics_lines,
    newest_state,
    random_settings,
    start,
    stop,
    wait_until_training,
)

from scalekd.recipe import Data

TWO = ("--devices", "2")
SHARDED = ("--fsdp", "[student,teacher]")


def settings_of_two(root: Path) -> dict[str, Any]:
    """A recipe whose batch two ranks divide evenly, but not the validation images."""
    settings = random_settings(root)
    return settings | {"accumulate": 1, "data": settings["data"] | {"workers": 1}}


def one_step(root: Path, **changes: Any) -> dict[str, Any]:
    """A recipe of one step, after which the optimizer's momentum is the gradient itself."""
    optim = {"name": "momentum", "lr": 0.1, "weight_decay": 0.0, "clip": 0.0, "warmup_epochs": 0.0}
    unmixed = {"mixup": 0.0, "cutmix": 0.0}  # images are mixed within a rank's batch
    data = settings_of_two(root)["data"] | {"epoch_images": 8, "workers": 0, **unmixed}
    settings = settings_of_two(root) | {"data": data, "optim": optim, "ema": None}
    short = {"batch_size": 8, "epochs": 1, "validate_every": 1, "save_steps": None}
    return settings | short | changes


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, an odd number of them for validation, and a recipe."""
    root = tmp_path_factory.mktemp("ranks")
    image_folder(root / "images", each=10, side=48)
    (root / "images/val/ant/0.jpg").unlink()
    (root / "recipe.yaml").write_text(yaml.safe_dump(settings_of_two(root)))
    return root


@pytest.fixture(scope="module")
def one_step_of_two(root: Path) -> Path:
    """A run of one step without BatchNorm, whose statistics depend on the per-rank batch."""
    recipe = one_step(root, student="test_convnext", student_args={})
    recipe["data"]["image_size"] = recipe["teacher_args"]["img_size"] = 64
    (root / "step.yaml").write_text(yaml.safe_dump(recipe))
    finish(start(root, "two ranks", *TWO, recipe="step.yaml"))
    return root / "two ranks"


@pytest.fixture(scope="module")
def undisturbed(root: Path) -> Path:
    finish(start(root, "undisturbed", *TWO))
    return root / "undisturbed"


def gradients(out: Path) -> dict[str, torch.Tensor]:
    state = newest_state(out)
    assert state is not None
    assert state["step"] == 1
    entries = state["optimizer"]["state"].items()
    return {str(n): entry["momentum_buffer"] for n, entry in entries}


def assert_same_gradients(one: Path, other: Path) -> None:
    """Equal but for rounding: 1e-5 of each tensor's norm plus 1e-7 of the total norm."""
    mine, theirs = gradients(one), gradients(other)
    assert mine.keys() == theirs.keys()
    total = torch.cat([g.flatten() for g in mine.values()]).norm()
    assert total > 0.1
    for name, gradient in mine.items():
        allowed = 1e-5 * gradient.norm() + 1e-7 * total
        assert (gradient - theirs[name]).norm() <= allowed, name


def test_the_gradients_of_two_ranks_are_those_of_one_on_the_same_batch(
    root: Path, one_step_of_two: Path
) -> None:
    finish(start(root, "one rank", recipe="step.yaml"))
    assert_same_gradients(root / "one rank", one_step_of_two)
    assert_same_metrics(root / "one rank", one_step_of_two)


def test_two_ranks_train_in_half_precision(root: Path) -> None:
    """The dry run is outside of autocast, under a teacher that has an autocast of its own."""
    recipe = one_step(root, precision="bf16-mixed", teacher="swin_tiny_patch4_window7_224")
    recipe["teacher_args"] |= {"embed_dim": 12, "depths": [2, 2], "num_heads": [1, 2]}
    recipe["teacher_args"]["window_size"] = 4
    (root / "half.yaml").write_text(yaml.safe_dump(recipe))
    finish(start(root, "half", *TWO, recipe="half.yaml"))
    assert [line["step"] for line in metrics_lines(root / "half") if line["top1"] is not None]


def test_sharded_weights_get_the_gradients_of_unsharded_ones(
    root: Path, one_step_of_two: Path
) -> None:
    finish(start(root, "sharded", *TWO, *SHARDED, recipe="step.yaml"))
    assert_same_gradients(one_step_of_two, root / "sharded")
    assert_same_metrics(one_step_of_two, root / "sharded")


def assert_same_metrics(one: Path, other: Path) -> None:
    (first,), (second,) = (metrics_lines(out) for out in (one, other))
    for name in ("loss", "gradients"):
        assert first[name] == pytest.approx(second[name], rel=1e-5)


@pytest.mark.slow
def test_the_gradients_of_two_ranks_are_those_of_two_micro_batches(root: Path) -> None:
    """With BatchNorm, Mixup, dropout and stochastic depth, random for each micro-batch."""
    for student in ("test_vit", "test_resnet"):
        small = (
            random_settings(root)["student_args"] if student == "test_vit" else {"drop_rate": 0.2}
        )
        recipe = one_step(root, student=student, student_args=small)
        recipe["data"] |= {"mixup": 0.2, "cutmix": 1.0}
        (root / "parts.yaml").write_text(yaml.safe_dump(recipe))
        finish(start(root, f"{student} parts", "--accumulate", "2", recipe="parts.yaml"))
        finish(start(root, f"{student} ranks", *TWO, recipe="parts.yaml"))
        assert_same_gradients(root / f"{student} parts", root / f"{student} ranks")


@pytest.mark.slow
def test_a_sharded_run_is_killed_and_resumed_and_can_resume_unsharded(root: Path) -> None:
    finish(start(root, "undisturbed sharded", *TWO, *SHARDED))
    kill_repeatedly_and_finish(root, "killed sharded", 3, 2, *TWO, *SHARDED)
    assert_bit_identical(root / "undisturbed sharded", root / "killed sharded")
    process = start(root, "once sharded", *TWO, *SHARDED)
    assert wait_until_training(process, root / "once sharded")
    stop(process)
    finish(start(root, "once sharded", *TWO, "--resume"))


def test_two_ranks_validate_on_every_image_once(root: Path, one_step_of_two: Path) -> None:
    """There are 29, an odd number."""
    summary = json.loads((one_step_of_two / "summary.json").read_text())
    data = Data(str(root / "images"), 64, workers=0)
    assert top1_of(str(one_step_of_two / "student"), data) == summary["student_top1"]
    assert summary["student_top1"] * 29 == pytest.approx(round(summary["student_top1"] * 29))
    assert summary["ranks"] == 2


def test_checkpoints_of_two_ranks_contain_no_teacher(one_step_of_two: Path) -> None:
    state = newest_state(one_step_of_two)
    assert state is not None
    assert {name.split(".")[0] for name in state["learner"]} == {"student", "criterion"}


@pytest.mark.slow
def test_two_ranks_that_are_killed_and_resumed_end_bit_identical(
    root: Path, undisturbed: Path
) -> None:
    kill_repeatedly_and_finish(root, "killed", 1, 0, *TWO)
    assert_bit_identical(undisturbed, root / "killed")


@pytest.mark.slow
def test_two_ranks_that_are_killed_ten_times_end_bit_identical(
    root: Path, undisturbed: Path
) -> None:
    steps = kill_repeatedly_and_finish(root, "killed often", 10, 1, *TWO)
    assert len(set(steps)) > 2, steps
    assert_bit_identical(undisturbed, root / "killed often")


@pytest.mark.slow
def test_one_rank_resumes_the_state_of_two_ranks_that_were_stopped(root: Path) -> None:
    process = start(root, "stopped", *TWO)
    assert wait_until_training(process, root / "stopped")
    assert stop(process).count("--resume resumes them") == 1
    output = finish(start(root, "stopped", "--resume"))
    assert "was begun on 2 devices and resumes on 1" in output
    assert json.loads((root / "stopped" / "summary.json").read_text())["steps"] == 84


@pytest.mark.slow
def test_ranks_end_when_their_launcher_is_killed(root: Path) -> None:
    process = start(root, "orphans", *TWO)
    assert wait_until_training(process, root / "orphans")
    ranks = child_pids(process.pid)
    assert len(ranks) == 2
    os.kill(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{r}/cmdline").exists() for r in ranks) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.communicate()
    assert newest_state(root / "orphans") is not None


def test_the_other_rank_ends_when_one_is_killed(root: Path) -> None:
    process = start(root, "one killed", *TWO)
    assert wait_until_training(process, root / "one killed")
    os.kill(int(child_pids(process.pid)[1]), signal.SIGKILL)
    output, _ = process.communicate(timeout=SECONDS_TO_START)
    assert process.returncode == 128 + signal.SIGKILL
    assert "rank 1 was killed by SIGKILL" in output
    assert "Traceback" not in output


def child_pids(process: int) -> list[str]:
    return Path(f"/proc/{process}/task/{process}/children").read_text().split()


def run_in_two_ranks(script: str) -> list[subprocess.CompletedProcess[str]]:
    """Run a script in two processes, started as torchrun does."""
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    shared["SCALEKD_RENDEZVOUS"] = tempfile.mkdtemp()
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            env={**shared, "RANK": str(number), "LOCAL_RANK": str(number)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    ended = [(rank, *rank.communicate(timeout=SECONDS_TO_START)) for rank in ranks]
    return [subprocess.CompletedProcess([], r.returncode, o, e) for r, o, e in ended]


def test_all_ranks_receive_the_decisions_and_refusals_of_rank_0() -> None:
    ended = run_in_two_ranks("""
import torch
from scalekd.errors import InputError
from scalekd.distributed import ranks
def refuse():
    raise InputError("no")
with ranks.process_group():
    me = ranks.rank()
    assert ranks.decide_on_rank_0(lambda: f"of {ranks.rank()}") == "of 0"
    try:
        ranks.decide_on_rank_0(refuse)
    except InputError as error:
        assert str(error) == "no"
    else:
        raise SystemExit(1)
    assert ranks.any_rank(me == 1, False) == [True, False]
    means = ranks.mean_over_ranks({"a": torch.tensor(float(me)), "b": torch.tensor(3.0)})
    assert {n: float(v) for n, v in means.items()} == {"a": 0.5, "b": 3.0}
    norm = torch.nn.BatchNorm1d(2)
    norm.running_mean += me
    ranks.broadcast_buffers(norm)
    assert norm.running_mean.tolist() == [0.0, 0.0]
    assert ranks.gather_lists([{"rank": me}] * (me + 1)) == [{"rank": r} for r in (0, 1, 1)]
    flags = torch.tensor([False, me == 0, me == 1, True])
    assert ranks.any_flags(flags).tolist() == [False, True, True, True]
    assert ranks.any_flags(flags[:0]).tolist() == []
    assert (ranks.world_size(), ranks.local_world_size()) == (2, 2)
    ranks.check_same_on_all_ranks(teacher="a")
    try:
        ranks.check_same_on_all_ranks(teacher="ab"[me])
    except InputError as error:
        print(error)
""")
    assert [e.returncode for e in ended] == [0, 0], [e.stderr for e in ended]
    assert all("rank 1 has another teacher than rank 0 (b; a)" in e.stdout for e in ended)


def test_each_rank_has_its_shards_of_student_projectors_and_teacher() -> None:
    ended = run_in_two_ranks("""
import torch
from timm import create_model
from scalekd import ScaleKD
from scalekd.distributed import ranks
from scalekd.distributed.fsdp import gather_full, shard_frozen, shard_learner
with ranks.process_group():
    torch.manual_seed(0)
    teacher = create_model("test_vit", img_size=48)
    method = ScaleKD(teacher, create_model("test_convnext2"), size=(64, 64))
    models = [method, method.teacher.model]
    before = [sum(p.numel() for p in m.parameters()) for m in models]
    values = {n: t.clone() for n, t in method.state_dict().items()}
    shard_learner(method)
    shard_frozen(method.teacher.model)
    shards = [sum(getattr(p, "_local_tensor", p).numel() for p in m.parameters()) for m in models]
    assert abs(shards[0] / before[0] - 0.5) < 0.01, (shards, before)
    assert shards[1] < 0.7 * before[1], (shards, before)
    gathered = gather_full(method.state_dict())
    assert all(torch.equal(values[n], gathered[n]) for n in values)
    method(torch.randn(2, 3, 64, 64), torch.tensor([0, 1])).loss.backward()
    assert all(p.grad is not None for p in method.parameters())
    assert all(p.grad is None for p in method.teacher.model.parameters())
""")
    assert [e.returncode for e in ended] == [0, 0], [e.stderr for e in ended]


@pytest.mark.parametrize("broken", [0, 1])
def test_a_rank_that_fails_raises_its_error_and_the_other_ends_silently(broken: int) -> None:
    ended = run_in_two_ranks(f"""
from scalekd.distributed import ranks
try:
    with ranks.process_group():
        if ranks.rank() == {broken}:
            raise RuntimeError("my disk is gone")
        ranks.barrier()
except ranks.AnotherRankFailed:
    raise SystemExit(2)
""")
    assert ended[broken].returncode == 1
    assert "my disk is gone" in ended[broken].stderr
    assert ended[1 - broken].returncode == 2
    assert "Traceback" not in ended[1 - broken].stderr


def test_a_rank_that_is_still_connecting_ends_silently_when_another_fails() -> None:
    ended = run_in_two_ranks("""
import os
import time
from torch import distributed
from scalekd.distributed import ranks

def connect(backend, *, store, rank, **_):
    if rank == 1:
        while not store.underlying_store.check([ranks.FIRST_FAILED]):
            time.sleep(0.01)
        raise RuntimeError("[gloo] Connection closed by peer")

distributed.init_process_group = connect
try:
    with ranks.process_group():
        raise RuntimeError("my disk is gone")
except ranks.AnotherRankFailed:
    raise SystemExit(2)
""")
    assert [rank.returncode for rank in ended] == [1, 2], ended
    assert "my disk is gone" in ended[0].stderr
    assert "Traceback" not in ended[1].stderr


SLURM = {
    "SLURM_NTASKS": "2",
    "SLURM_TASKS_PER_NODE": "2",
    "SLURM_NODEID": "0",
    "SLURM_STEP_NODELIST": "127.0.0.1",
    "SLURM_JOB_NAME": "train",
}


@pytest.mark.slow
def test_ranks_are_started_by_torchrun_and_by_srun(root: Path) -> None:
    """srun is simulated by the variables that it sets."""
    arguments = ["distill", "--config", str(root / "recipe.yaml"), "--epochs", "2", "--out"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*torchrun, "-m", "scalekd", *arguments, str(root / "torchrun")]
    subprocess.run(command, env=one_thread, check=True, timeout=120)
    job = str(random.randrange(10_000))  # its port
    tasks = [
        subprocess.Popen(
            [sys.executable, "-m", "scalekd", *arguments, str(root / "srun")],
            env={**one_thread, **SLURM, "SLURM_JOB_ID": job, "SLURM_PROCID": n, "SLURM_LOCALID": n},
        )
        for n in "01"
    ]
    assert [task.wait(timeout=120) for task in tasks] == [0, 0]
    for out in ("torchrun", "srun"):
        assert json.loads((root / out / "summary.json").read_text())["ranks"] == 2
    assert_bit_identical(root / "torchrun", root / "srun")


@pytest.mark.slow
def test_a_batch_that_cannot_be_divided_between_ranks_is_refused(root: Path) -> None:
    process = start(root, "odd", *TWO, "--batch_size", "5")
    output, _ = process.communicate(timeout=SECONDS_TO_START)
    assert process.returncode == 2
    assert output.count("scalekd: error:") == 1
    assert "batch_size is 5, for 2 devices with 1 micro-batches each" in output
    assert "it must be a multiple of 2" in output
    assert not (root / "odd").exists()
