"""Performance settings: precision, memory format, kernels and compilation of the networks."""

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from timm.layers import DropPath, convert_sync_batchnorm
from torch import nn

from scalekd.device import best_device
from scalekd.distiller import Distiller
from scalekd.distributed import ranks
from scalekd.errors import InputError
from scalekd.networks import FrozenTeacher
from scalekd.networks.blocks import repeated_blocks
from scalekd.recipe import Precision, Recipe
from scalekd.scale_kd import ScaleKD
from scalekd.step import Learner

KINDS_OF_BLOCK = 64
"""How many shapes and modes of one class of block are compiled; torch's own limit is 8, and a
ResNet-50's have 16."""


def autocast_dtype(precision: Precision, device: torch.device) -> torch.dtype | None:
    """The data type of autocast for a recipe's precision; None without autocast.

    On a CPU it is bf16 for "16-mixed" too, as in Lightning.
    """
    if precision == "32-true":
        return None
    on_cpu = device.type == "cpu"
    return torch.float16 if precision == "16-mixed" and not on_cpu else torch.bfloat16


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """Autocast for a recipe's precision on `device`; does nothing for "32-true"."""
    kind = autocast_dtype(precision, device)
    return nullcontext() if kind is None else torch.autocast(device.type, kind)


def build_fabric(precision: Precision) -> Fabric:
    """Build the Fabric that casts, scales the loss of fp16 and steps on this process's device.

    It has one device in each rank: torch's own DDP and FSDP connect the ranks.
    """
    on_gpu = torch.cuda.is_available()
    return Fabric(
        accelerator="cuda" if on_gpu else "cpu",
        devices=[torch.cuda.current_device()] if on_gpu else 1,
        precision=precision,
        plugins=[LightningEnvironment()],  # whatever environment started this process
    )


def apply_performance_settings(learner: Learner, recipe: Recipe) -> None:
    """Cast the teacher, and set memory format and synchronised BatchNorm as the recipe asks.

    This replaces parameters, so it comes before the optimizer is built. A teacher whose trunk was
    dropped for another learner of this process is not changed.

    Raises:
        InputError: synchronised BatchNorm on CPUs, where torch has none.
    """
    if torch.cuda.is_available():
        _choose_kernels(recipe)
    if isinstance(learner, Distiller):
        _cast_teacher(learner.teacher, recipe)
    if recipe.channels_last:
        learner.to(memory_format=torch.channels_last)
    if recipe.sync_batchnorm:
        synchronise_batchnorm(learner.student)


def synchronise_batchnorm(student: nn.Module) -> None:
    """Let several ranks compute the statistics of a student's BatchNorms over all their images.

    Raises:
        InputError: the ranks are on CPUs, where torch has no synchronised BatchNorm.
    """
    if ranks.world_size() == 1:
        return
    if not torch.cuda.is_available():
        raise InputError(
            "sync_batchnorm is true, and torch synchronises BatchNorm on GPUs only: "
            "--sync_batchnorm false normalises the images of each device by themselves"
        )
    convert_sync_batchnorm(student)


def _cast_teacher(teacher: FrozenTeacher, recipe: Recipe) -> None:
    """Cast the weights that autocast would cast at each use; drop the trunk if there is a cache."""
    if teacher.trunk_dropped:
        return
    # FSDP needs one precision in all parameters that it shards.
    sharded = ranks.world_size() > 1 and "teacher" in recipe.fsdp
    dtype = autocast_dtype(recipe.precision, device := best_device())
    if dtype is not None and not sharded:
        teacher.cast_to_half(dtype, device)
    if recipe.cache is not None:
        teacher.drop_trunk()


def _choose_kernels(recipe: Recipe) -> None:
    # A mask rules FlashAttention out, and for windows of 49 tokens cuDNN's kernel, torch's next
    # choice, was two fifths of a Swin-L's pass on an H100.
    torch.backends.cuda.enable_cudnn_sdp(False)
    if recipe.precision != "32-true":
        # What autocast leaves in float32 is the final alternative view's projector.
        torch.set_float32_matmul_precision("high")
    if recipe.deterministic:
        # cuBLAS reads it with its first matrix product; with another size it may add in any order.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # An operation that has no such kernel warns by name, and the training goes on.
        torch.use_deterministic_algorithms(True, warn_only=True)


def compile_repeated_blocks(learner: Learner) -> None:
    """Compile the repeated blocks of student and teacher, its tail among them, and the projectors.

    Each block is compiled by itself, so that one compilation serves all equal blocks, and the
    recording of the arguments of the teacher's tail is not compiled.
    """
    torch._dynamo.config.recompile_limit = KINDS_OF_BLOCK
    parts = repeated_blocks(learner.student)
    if isinstance(learner, Distiller):
        if isinstance(learner, ScaleKD):
            parts += learner.criterion.projectors
        parts += repeated_blocks(learner.teacher.model)
        # A teacher drops no path, but each block's rate is a constant to the compiler: with other
        # rates no two blocks are alike, and a call looks for its own among all.
        for module in learner.teacher.model.modules():
            if isinstance(module, DropPath):
                module.drop_prob = 0.0
    for part in parts:
        if hasattr(part.forward, "_torchdynamo_orig_callable"):
            continue  # a teacher that several students share
        part.forward = torch.compile(part.forward, dynamic=False)
