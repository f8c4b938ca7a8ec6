"""Two real processes that train one student, over gloo."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.pictures import image_folder
from helpers.real_runs import (
    SECONDS_TO_START,
    assert_alike,
    begin,
    begun,
    finish,
    killed_again_and_again,
    lines,
    settings,
)

from scalekd.distributed.launch import find_free_port
from scalekd.evaluation.evaluate import evaluate
from scalekd.recipe import Data
from scalekd.runs.checkpoint import load_newest

TWO = ("--devices", "2")


def of_two(root: Path) -> dict[str, Any]:
    """An even share of the batch for each rank, and of the validation images none."""
    plain = settings(root)
    return plain | {"accumulate": 1, "data": plain["data"] | {"workers": 1}}


def one_step(root: Path, **changes: Any) -> dict[str, Any]:
    """A momentum after it is the gradient itself."""
    optim = {"name": "momentum", "lr": 0.1, "weight_decay": 0.0, "clip": 0.0, "warmup_epochs": 0.0}
    unmixed = {"mixup": 0.0, "cutmix": 0.0}  # by another image of the same share
    data = of_two(root)["data"] | {"epoch_images": 8, "workers": 0, **unmixed}
    plain = of_two(root) | {"data": data, "batch_size": 8, "epochs": 1, "optim": optim, "ema": None}
    return plain | {"validate_every": 1, "save_steps": None} | changes


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, an odd number of them to validate on, and a recipe."""
    root = tmp_path_factory.mktemp("ranks")
    image_folder(root / "images", each=10, side=48)
    (root / "images/val/ant/0.jpg").unlink()
    (root / "recipe.yaml").write_text(yaml.safe_dump(of_two(root)))
    return root


@pytest.fixture(scope="module")
def one_step_of_two(root: Path) -> Path:
    """Without BatchNorm, whose statistics are of the images that a process sees at a time."""
    recipe = one_step(root, student="test_convnext", student_args={})
    recipe["data"]["image_size"] = recipe["teacher_args"]["img_size"] = 64
    (root / "step.yaml").write_text(yaml.safe_dump(recipe))
    finish(begin(root, "two ranks", *TWO, recipe="step.yaml"))
    return root / "two ranks"


@pytest.fixture(scope="module")
def undisturbed(root: Path) -> Path:
    finish(begin(root, "undisturbed", *TWO))
    return root / "undisturbed"


def gradients(out: Path) -> dict[str, torch.Tensor]:
    state = load_newest(out / "checkpoints" / "scalekd-seed7.ckpt")
    assert state is not None
    assert state["step"] == 1
    kept = state["optimizer"]["state"].items()
    return {str(n): entry["momentum_buffer"] for n, entry in kept}


def assert_same_gradients(one: Path, other: Path) -> None:
    """Within rounding: 1e-5 of each tensor's length, which may itself be rounding of the whole."""
    mine, theirs = gradients(one), gradients(other)
    assert mine.keys() == theirs.keys()
    whole = torch.cat([g.flatten() for g in mine.values()]).norm()
    assert whole > 0.1
    for name, gradient in mine.items():
        allowed = 1e-5 * gradient.norm() + 1e-7 * whole
        assert (gradient - theirs[name]).norm() <= allowed, name


def test_the_gradients_of_two_ranks_are_those_of_one_on_the_same_batch(
    root: Path, one_step_of_two: Path
) -> None:
    finish(begin(root, "one rank", recipe="step.yaml"))
    assert_same_gradients(root / "one rank", one_step_of_two)
    assert_told_alike(root / "one rank", one_step_of_two)


def test_two_ranks_train_in_half_precision(root: Path) -> None:
    """Where a step is tried before any autocast, under a teacher that has its own."""
    recipe = one_step(root, precision="bf16-mixed", teacher="swin_tiny_patch4_window7_224")
    recipe["teacher_args"] |= {"embed_dim": 12, "depths": [2, 2], "num_heads": [1, 2]}
    recipe["teacher_args"]["window_size"] = 4
    (root / "half.yaml").write_text(yaml.safe_dump(recipe))
    finish(begin(root, "half", *TWO, recipe="half.yaml"))
    assert [line["step"] for line in lines(root / "half") if line["top1"] is not None]


def test_weights_in_pieces_get_the_gradients_of_whole_ones(
    root: Path, one_step_of_two: Path
) -> None:
    words = ("--fsdp", "[student,teacher]")
    finish(begin(root, "pieces", *TWO, *words, recipe="step.yaml"))
    assert_same_gradients(one_step_of_two, root / "pieces")
    assert_told_alike(one_step_of_two, root / "pieces")


def assert_told_alike(one: Path, other: Path) -> None:
    (told,), (same,) = (lines(out) for out in (one, other))
    assert told["loss"] == pytest.approx(same["loss"], rel=1e-5)
    assert told["gradients"] == pytest.approx(same["gradients"], rel=1e-5)


@pytest.mark.slow
def test_two_ranks_are_one_that_computes_its_batch_in_two_parts(root: Path) -> None:
    """With BatchNorm, Mixup, dropout and stochastic depth, whose random numbers are the part's."""
    for student in ("test_vit", "test_resnet"):
        small = settings(root)["student_args"] if student == "test_vit" else {"drop_rate": 0.2}
        recipe = one_step(root, student=student, student_args=small)
        recipe["data"] |= {"mixup": 0.2, "cutmix": 1.0}
        (root / "parts.yaml").write_text(yaml.safe_dump(recipe))
        finish(begin(root, f"{student} parts", "--accumulate", "2", recipe="parts.yaml"))
        finish(begin(root, f"{student} ranks", *TWO, recipe="parts.yaml"))
        assert_same_gradients(root / f"{student} parts", root / f"{student} ranks")


@pytest.mark.slow
def test_a_run_in_pieces_is_killed_and_resumed_and_can_go_on_whole(root: Path) -> None:
    pieces = ("--fsdp", "[student,teacher]")
    finish(begin(root, "undisturbed pieces", *TWO, *pieces))
    killed_again_and_again(root, "killed pieces", 3, 2, *TWO, *pieces)
    assert_alike(root / "undisturbed pieces", root / "killed pieces")
    process = begin(root, "once in pieces", *TWO, *pieces)
    assert begun(process, root / "once in pieces")
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 143, said
    finish(begin(root, "once in pieces", *TWO, "--resume"))


def test_every_image_is_measured_on_once(root: Path, one_step_of_two: Path) -> None:
    """29 of them, by two ranks."""
    summary = json.loads((one_step_of_two / "summary.json").read_text())
    data = Data(str(root / "images"), 64, workers=0)
    assert evaluate(str(one_step_of_two / "student"), data) == summary["student_top1"]
    assert summary["student_top1"] * 29 == pytest.approx(round(summary["student_top1"] * 29))
    assert summary["ranks"] == 2


def test_no_teacher_is_kept(one_step_of_two: Path) -> None:
    state = load_newest(one_step_of_two / "checkpoints" / "scalekd-seed7.ckpt")
    assert state is not None
    parts = {".".join(name.split(".")[:2]) for name in state["state_dict"]}
    assert parts == {"method.student", "method.criterion"}


@pytest.mark.slow
def test_two_ranks_that_are_killed_end_as_if_they_had_not_been(
    root: Path, undisturbed: Path
) -> None:
    killed_again_and_again(root, "killed", 1, 0, *TWO)
    assert_alike(undisturbed, root / "killed")


@pytest.mark.slow
def test_and_so_do_two_that_are_killed_at_ten_points(root: Path, undisturbed: Path) -> None:
    at = killed_again_and_again(root, "killed often", 10, 1, *TWO)
    assert len(set(at)) > 2, at
    assert_alike(undisturbed, root / "killed often")


@pytest.mark.slow
def test_two_ranks_that_are_told_to_stop_save_the_same_step_and_one_goes_on(root: Path) -> None:
    process = begin(root, "stopped", *TWO)
    assert begun(process, root / "stopped")
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 143, said
    assert said.count("--resume goes on") == 1
    said = finish(begin(root, "stopped", "--resume"))
    assert "was begun on 2 devices and goes on on 1" in said
    assert json.loads((root / "stopped" / "summary.json").read_text())["steps"] == 84


@pytest.mark.slow
def test_ranks_end_when_what_started_them_is_gone(root: Path) -> None:
    process = begin(root, "orphans", *TWO)
    assert begun(process, root / "orphans")
    ranks = children(process.pid)
    assert len(ranks) == 2
    os.kill(process.pid, signal.SIGKILL)
    until = time.monotonic() + 60
    while any(Path(f"/proc/{r}/cmdline").exists() for r in ranks) and time.monotonic() < until:
        time.sleep(0.1)
    process.communicate()
    assert load_newest(root / "orphans" / "checkpoints" / "scalekd-seed7.ckpt") is not None


def test_when_one_rank_is_killed_the_other_ends_too(root: Path) -> None:
    process = begin(root, "one killed", *TWO)
    assert begun(process, root / "one killed")
    os.kill(int(children(process.pid)[1]), signal.SIGKILL)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGKILL
    assert "rank 1 was killed by SIGKILL" in said
    assert "Traceback" not in said


def children(process: int) -> list[str]:
    return Path(f"/proc/{process}/task/{process}/children").read_text().split()


def in_two_ranks(script: str) -> list[subprocess.CompletedProcess[str]]:
    """What a script does in each of them, started as torchrun does."""
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    shared["MASTER_PORT"] = str(find_free_port())
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


def test_ranks_agree_on_what_the_first_decides_and_refuses() -> None:
    ended = in_two_ranks("""
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
    assert ranks.sum_over_ranks(me + 1) == 3
    assert (ranks.world_size(), ranks.local_world_size()) == (2, 2)
    ranks.check_same_on_all_ranks(teacher="a")
    try:
        ranks.check_same_on_all_ranks(teacher="ab"[me])
    except InputError as error:
        print(error)
""")
    assert [e.returncode for e in ended] == [0, 0], [e.stderr for e in ended]
    assert all("rank 1 has another teacher than rank 0 (b; a)" in e.stdout for e in ended)


def test_each_rank_keeps_its_own_pieces_of_student_projectors_and_teacher() -> None:
    ended = in_two_ranks("""
import torch
from timm import create_model
from scalekd import ScaleKD
from scalekd.networks.blocks import repeated_blocks
from scalekd.distributed import ranks
from scalekd.distributed.fsdp import gather_full, shard_frozen, shard_trained
with ranks.process_group():
    torch.manual_seed(0)
    teacher = create_model("test_vit", img_size=48)
    method = ScaleKD(teacher, create_model("test_convnext2"), size=(64, 64))
    models = [method, method.teacher.model]
    before = [sum(p.numel() for p in m.parameters()) for m in models]
    values = {n: t.clone() for n, t in method.state_dict().items()}
    projectors = [*method.criterion.penultimate.values(), *method.criterion.final.values()]
    shard_trained(method, [*repeated_blocks(method.student), *projectors])
    shard_frozen(method.teacher.model)
    mine = [sum(getattr(p, "_local_tensor", p).numel() for p in m.parameters()) for m in models]
    assert abs(mine[0] / before[0] - 0.5) < 0.01, (mine, before)
    assert mine[1] < 0.7 * before[1], (mine, before)
    gathered = gather_full(method.state_dict())
    assert all(torch.equal(values[n], gathered[n]) for n in values)
    method(torch.randn(2, 3, 64, 64), torch.tensor([0, 1])).loss.backward()
    assert all(p.grad is not None for p in method.parameters())
    assert all(p.grad is None for p in method.teacher.model.parameters())
""")
    assert [e.returncode for e in ended] == [0, 0], [e.stderr for e in ended]


@pytest.mark.parametrize("broken", [0, 1])
def test_a_rank_that_fails_says_why_and_the_other_ends_without_a_word(broken: int) -> None:
    ended = in_two_ranks(f"""
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


SLURM = {
    "SLURM_NTASKS": "2",
    "SLURM_TASKS_PER_NODE": "2",
    "SLURM_NODEID": "0",
    "SLURM_NODELIST": "127.0.0.1",
    "SLURM_JOB_NAME": "train",
}


@pytest.mark.slow
def test_ranks_may_be_started_by_torchrun_and_by_srun(root: Path) -> None:
    """Of srun, which is not here, there is what it tells its tasks."""
    words = ["distill", "--config", str(root / "recipe.yaml"), "--epochs", "2", "--out"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*torchrun, "-m", "scalekd", *words, str(root / "torchrun")]
    subprocess.run(command, env=one_thread, check=True, timeout=120)
    job = str(random.randrange(10_000))  # its port
    tasks = [
        subprocess.Popen(
            [sys.executable, "-m", "scalekd", *words, str(root / "srun")],
            env={**one_thread, **SLURM, "SLURM_JOB_ID": job, "SLURM_PROCID": n, "SLURM_LOCALID": n},
        )
        for n in "01"
    ]
    assert [task.wait(timeout=120) for task in tasks] == [0, 0]
    for out in ("torchrun", "srun"):
        assert json.loads((root / out / "summary.json").read_text())["ranks"] == 2
    assert_alike(root / "torchrun", root / "srun")


@pytest.mark.slow
def test_a_batch_that_cannot_be_shared_is_refused(root: Path) -> None:
    process = begin(root, "odd", *TWO, "--batch_size", "5")
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert said.count("scalekd: error:") == 1
    assert "batch_size is 5, for 2 devices with 1 micro-batches each" in said
    assert "it must be a multiple of 2" in said
    assert not (root / "odd").exists()
