"""Lightning's trainer, for the device or devices that there are."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import lightning as L
import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy, Strategy

from scalekd.distributed import ranks
from scalekd.recipe import Recipe


def trainer(recipe: Recipe, watch: L.Callback, every_parameter: bool) -> L.Trainer:
    """The trainer of one run; `watch` does what it would else do between steps.

    Args:
        recipe: of the run.
        watch: see `Watch`.
        every_parameter: whether each gets a gradient in each step; ranks must know beforehand.
    """
    strategy: str | Strategy = "auto"
    devices: int | list[int] = [torch.cuda.current_device()] if torch.cuda.is_available() else 1
    nodes = 1
    started_by: ClusterEnvironment = LightningEnvironment()
    if ranks.world_size() > 1 and "student" not in recipe.fsdp:  # shards exchange by themselves
        devices, nodes = ranks.local_world_size(), ranks.world_size() // ranks.local_world_size()
        started_by = TorchElasticEnvironment()
        strategy = DDPStrategy(
            find_unused_parameters=not every_parameter, gradient_as_bucket_view=True
        )
    return L.Trainer(
        max_epochs=1,
        strategy=strategy,
        accelerator="gpu" if torch.cuda.is_available() else "cpu",
        devices=devices,
        num_nodes=nodes,
        plugins=[started_by],
        precision=recipe.precision,
        accumulate_grad_batches=recipe.accumulate,
        gradient_clip_val=recipe.optim.clip or None,
        callbacks=[watch],
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


@contextmanager
def quietly() -> Iterator[None]:
    """Without Lightning's advice on what is meant here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers")
        warnings.filterwarnings("ignore", message="Consider setting `persistent_workers")
        warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.")
        # Of channels alone, (1, 1, C), whose strides mean nothing.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view")
        yield
