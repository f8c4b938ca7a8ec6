"""Ways to run the networks that change nothing but rounding."""

import subprocess
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from helpers.pictures import image_folder
from helpers.real_runs import random_settings, start
from helpers.refusals import refused
from helpers.tiny import tiny
from torch import Tensor

from scalekd import FrozenTeacher, ScaleKD
from scalekd.distributed import ranks
from scalekd.jobs.distill import distill
from scalekd.recipe import Data, Precision, Recipe
from scalekd.runs.checkpoint import load_student
from scalekd.runs.folder import RunFolder
from scalekd.runs.result import Run
from scalekd.training import performance
from scalekd.training.performance import (
    apply_performance_settings,
    autocast_dtype,
    compile_repeated_blocks,
)

RECIPE = Recipe("test_vit", "test_resnet", Data("digits"))
IMAGES = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
TARGETS = torch.tensor([0, 1, 2, 0])


def pair(student: str = "test_resnet", **settings: bool) -> ScaleKD:
    torch.manual_seed(0)
    teacher = FrozenTeacher(timm.create_model("test_vit", img_size=64, num_classes=3))
    learner = timm.create_model(student, num_classes=3)
    return ScaleKD(teacher, learner, size=(64, 64), **settings)  # type: ignore[arg-type]


def gradients(distiller: ScaleKD) -> tuple[float, dict[str, Tensor]]:
    dtype = next(distiller.parameters()).dtype
    step = distiller(IMAGES.to(dtype), TARGETS)
    torch.autograd.backward(step.loss)
    return step.loss.item(), {
        n: p.grad for n, p in distiller.named_parameters() if p.grad is not None
    }


def assert_same_but_for_rounding(other: ScaleKD, plain: ScaleKD, allowed: float) -> None:
    (loss, mine), (expected, theirs) = gradients(other), gradients(plain)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert mine.keys() == theirs.keys()
    whole = torch.cat([g.flatten() for g in theirs.values()]).norm()
    for name, gradient in mine.items():
        length = theirs[name].norm() + 1e-3 * whole
        assert (gradient - theirs[name]).norm() <= allowed * length, name


CHECKPOINTS = {"checkpoint_tail": True}, {"checkpoint_projectors": True}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("checkpointed", [*CHECKPOINTS, CHECKPOINTS[0] | CHECKPOINTS[1]])
def test_checkpoints_give_bit_identical_gradients_and_statistics(
    checkpointed: dict[str, bool], precision: Precision
) -> None:
    mine, theirs = pair(**checkpointed), pair()
    for each in (mine, theirs):
        with performance.autocast(precision, torch.device("cpu")):
            loss = each(IMAGES, TARGETS).loss
        loss.backward()
    assert mine.state_dict().keys() == theirs.state_dict().keys()
    for name, value in theirs.state_dict().items():  # BatchNorm's among them, moved once
        assert torch.equal(mine.state_dict()[name], value), name
    named = dict(mine.named_parameters())
    for name, parameter in theirs.named_parameters():
        assert torch.equal(named[name].grad, parameter.grad), name  # type: ignore[arg-type]


def test_a_checkpointed_tail_is_computed_again_with_the_inputs_of_its_own_pass() -> None:
    mine, theirs = pair(checkpoint_tail=True), pair()
    for each in (mine, theirs):
        (each(IMAGES, TARGETS).loss + each(IMAGES.flip(0) + 1, TARGETS).loss).backward()
    named = dict(mine.named_parameters())
    for name, parameter in theirs.named_parameters():
        assert torch.equal(named[name].grad, parameter.grad), name  # type: ignore[arg-type]


def test_compiled_projectors_may_be_checkpointed() -> None:
    plain, checkpointed = pair(), pair(checkpoint_projectors=True)
    torch._dynamo.reset()
    compile_repeated_blocks(checkpointed)
    assert_same_but_for_rounding(checkpointed, plain, 2e-3)


@pytest.mark.parametrize("checkpointed", CHECKPOINTS)
def test_a_checkpoint_stores_fewer_activations(checkpointed: dict[str, bool]) -> None:
    def stored_bytes(distiller: ScaleKD) -> int:
        saved: list[Tensor] = []

        def note(tensor: Tensor) -> Tensor:
            saved.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            step = distiller(IMAGES, TARGETS)
        del step
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in saved}
        return sum(storages.values())

    assert stored_bytes(pair(**checkpointed)) < stored_bytes(pair())


def test_a_teacher_that_two_students_share_is_compiled_once() -> None:
    one = pair()
    other = ScaleKD(one.teacher, timm.create_model("test_resnet", num_classes=3), size=(64, 64))
    compile_repeated_blocks(one)
    compiled = [block.forward for block in one.teacher.model.blocks]
    compile_repeated_blocks(other)
    assert [block.forward for block in one.teacher.model.blocks] == compiled
    assert hasattr(other.student.layer1[0].forward, "_torchdynamo_orig_callable")


def test_identical_blocks_of_a_teacher_are_compiled_once_at_any_drop_path_rates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    teacher = timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=64,
        window_size=4,
        embed_dim=12,
        depths=(2, 8),
        num_heads=(1, 2),
        drop_path_rate=0.1,
        num_classes=3,
    )
    student = timm.create_model("test_resnet", num_classes=3)
    distiller = ScaleKD(FrozenTeacher(teacher), student, size=(64, 64))
    compiled: list[torch.fx.GraphModule] = []

    def counting(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., object]:
        compiled.append(graph)
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counting))
    expected = distiller.run_teacher(IMAGES).final
    compile_repeated_blocks(distiller)
    assert torch.equal(distiller.run_teacher(IMAGES).final, expected)
    assert len(compiled) == 4  # with shifted windows and without, in each stage


def test_a_run_in_half_precision_casts_the_teacher_and_ends_bit_identical(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny(image_folder(tmp_path / "images"), precision="bf16-mixed")
    dtypes: list[torch.dtype | None] = []
    cast = FrozenTeacher.cast_to_half

    def record(teacher: FrozenTeacher, dtype: torch.dtype, device: torch.device) -> None:
        cast(teacher, dtype, device)
        dtypes.append(teacher.half_dtype)

    def end(how: Callable[..., None]) -> dict[str, Tensor]:
        monkeypatch.setattr(FrozenTeacher, "cast_to_half", how)
        out = distill(recipe, tmp_path / how.__name__, parallel=1)
        return load_student(RunFolder(out).checkpoint(Run("scalekd", 1)))[0].state_dict()

    def never(*_: object) -> None:
        pass

    torch.testing.assert_close(end(record), end(never), rtol=0, atol=0)
    assert dtypes == [torch.bfloat16]


@pytest.mark.parametrize(
    ("precision", "device", "computes_in"),
    [
        ("32-true", "cpu", None),
        ("32-true", "cuda", None),
        ("bf16-mixed", "cpu", torch.bfloat16),
        ("bf16-mixed", "cuda", torch.bfloat16),
        ("16-mixed", "cpu", torch.bfloat16),  # as Fabric has it
        ("16-mixed", "cuda", torch.float16),
    ],
)
def test_the_dtype_that_autocast_computes_in(precision: Any, device: str, computes_in: Any) -> None:
    assert autocast_dtype(precision, torch.device(device)) is computes_in


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
def test_on_a_cpu_the_teacher_is_cast_to_bf16_as_fabric_computes(
    precision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(performance, "best_device", lambda: torch.device("cpu"))
    distiller = pair()
    apply_performance_settings(distiller, replace(RECIPE, precision=precision))
    assert distiller.teacher.half_dtype is torch.bfloat16


def test_a_sharded_teacher_is_not_cast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "world_size", lambda: 2)
    for fsdp, kept in (["teacher"], None), (["student"], torch.bfloat16):
        distiller = pair()
        apply_performance_settings(distiller, replace(RECIPE, precision="bf16-mixed", fsdp=fsdp))
        assert distiller.teacher.half_dtype is kept


def test_channels_last_changes_the_layout_and_not_the_arithmetic() -> None:
    other = pair()
    apply_performance_settings(other, replace(RECIPE, channels_last=True))
    weight = next(p for p in other.student.parameters() if p.dim() == 4 and p.shape[1] > 1)
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
    assert_same_but_for_rounding(other.double(), pair().double(), 1e-9)


@pytest.mark.slow
def test_compiled_blocks_give_the_same_gradients() -> None:
    other = pair("test_convnext2")
    names = set(other.state_dict())
    compile_repeated_blocks(other)
    assert_same_but_for_rounding(other, pair("test_convnext2"), 1e-3)
    assert set(other.state_dict()) == names
    breaks: Callable[[], object] = lambda: torch._dynamo.utils.counters["graph_break"]  # noqa: E731
    assert not breaks()


def test_channels_last_with_a_sharded_student_is_refused() -> None:
    with refused("channels_last", "fsdp"):
        replace(RECIPE, channels_last=True, fsdp=["student"])


@pytest.mark.slow
def test_synchronised_batchnorm_over_cpus_is_refused(tmp_path: Path) -> None:
    image_folder(tmp_path / "images", side=48)
    recipe = random_settings(tmp_path) | {
        "student": "test_resnet",
        "student_args": {},
        "accumulate": 1,
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    process: subprocess.Popen[str] = start(
        tmp_path, "out", "--devices", "2", "--sync_batchnorm", "true"
    )
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2, output
    assert output.count("scalekd: error:") == 1
    assert "--sync_batchnorm false" in output
