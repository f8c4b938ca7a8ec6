"""How the networks are run, which changes no result but by rounding."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from timm.layers import DropPath, convert_sync_batchnorm

from scalekd.baselines import Supervised
from scalekd.device import best_device
from scalekd.distiller import ScaleKD
from scalekd.distributed import ranks
from scalekd.errors import InputError
from scalekd.networks import FrozenTeacher
from scalekd.networks.blocks import repeated_blocks
from scalekd.recipe import Precision, Recipe

KINDS_OF_BLOCK = 64
"""How many shapes and modes of one class of block are compiled; torch's own limit is 8, and a
ResNet-50's have 16."""


def autocast_dtype(precision: Precision, device: torch.device) -> torch.dtype | None:
    """What autocast computes in for a recipe's precision; None without autocast.

    On CPUs that is bf16 for fp16, too, as Lightning has it.
    """
    if precision == "32-true":
        return None
    on_cpu = device.type == "cpu"
    return torch.float16 if precision == "16-mixed" and not on_cpu else torch.bfloat16


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """For a recipe's precision, as a run has it."""
    kind = autocast_dtype(precision, device)
    return nullcontext() if kind is None else torch.autocast(device.type, kind)


def apply_performance_settings(method: ScaleKD | Supervised, recipe: Recipe) -> None:
    """Lay out the weights, and norm over all ranks, as the recipe says; before anything holds them.

    Raises:
        InputError: synchronised BatchNorm on CPUs, where torch has none.
    """
    if torch.cuda.is_available():
        _choose_kernels(recipe)
    if isinstance(method, ScaleKD) and not method.teacher.trunk_dropped:
        _halve(method.teacher, recipe)
    if recipe.channels_last:
        method.to(memory_format=torch.channels_last)
    if recipe.sync_batchnorm and ranks.world_size() > 1:
        if not torch.cuda.is_available():
            raise InputError(
                "sync_batchnorm is true, and torch has it on GPUs only: --sync_batchnorm false "
                "norms each device's share of a batch by itself"
            )
        convert_sync_batchnorm(method.student)


def _halve(teacher: FrozenTeacher, recipe: Recipe) -> None:
    # FSDP wants one precision in all that it cuts into pieces.
    in_pieces = ranks.world_size() > 1 and "teacher" in recipe.fsdp
    kind = autocast_dtype(recipe.precision, device := best_device())
    if kind is not None and not in_pieces:
        teacher.cast_to_half(kind, device)


def _choose_kernels(recipe: Recipe) -> None:
    # A mask rules FlashAttention out, and for windows of 49 tokens cuDNN's kernel, torch's next
    # choice, was two fifths of a Swin-L's pass on an H100.
    torch.backends.cuda.enable_cudnn_sdp(False)
    if recipe.precision != "32-true":
        # What autocast leaves in float32 is the final alternative view's projector.
        torch.set_float32_matmul_precision("high")


def compile_repeated_blocks(method: ScaleKD | Supervised) -> None:
    """Compile the repeated blocks of student and teacher, its tail among them, and the projectors.

    Block by block, so that one compilation serves all alike, and what the teacher's tail records
    of its blocks' arguments stays outside.
    """
    torch._dynamo.config.recompile_limit = KINDS_OF_BLOCK
    parts = repeated_blocks(method.student)
    if isinstance(method, ScaleKD):
        parts += [*method.criterion.penultimate.values(), *method.criterion.final.values()]
        parts += repeated_blocks(method.teacher.model)
        # A teacher drops no path, but each block's rate is a constant to the compiler: with other
        # rates no two blocks are alike, and a call looks for its own among all.
        for module in method.teacher.model.modules():
            if isinstance(module, DropPath):
                module.drop_prob = 0.0
    for part in parts:
        if hasattr(part.forward, "_torchdynamo_orig_callable"):
            continue  # a teacher that several students share
        part.forward = torch.compile(part.forward, dynamic=False)
