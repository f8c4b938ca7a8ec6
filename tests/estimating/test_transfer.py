"""Estimates of transfers: their work and memory against real steps, and the commands."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.objects import change_coco, coco_folder, tiny_detection
from helpers.refusals import refused
from helpers.scenes import ade20k_folder, tiny_segmentation
from torch.utils.flop_counter import FlopCounterMode

from scalekd.cli.main import main
from scalekd.distiller import count_parameters
from scalekd.estimating.memory_simulation import LiveMemory
from scalekd.estimating.transfer.estimate import estimate_transfer
from scalekd.estimating.transfer.model import TransferModel
from scalekd.estimating.transfer.network import (
    DetectionNetwork,
    Images,
    SegmentationNetwork,
    TransferNetwork,
)
from scalekd.networks.student import StudentSpec
from scalekd.transfer.detection.images import open_annotated_images

CPU = torch.device("cpu")


def segmentation(**changes: Any) -> SegmentationNetwork:
    return SegmentationNetwork(tiny_segmentation("ade20k", **changes), Images(100, 7))


def detection(**changes: Any) -> DetectionNetwork:
    return DetectionNetwork(tiny_detection("coco", **changes), Images(100, 7))


@pytest.mark.parametrize("frozen", [False, True])
def test_the_work_of_a_segmentation_is_that_of_a_real_step(frozen: bool) -> None:
    network = segmentation(frozen=frozen)
    with FlopCounterMode(display=False) as counter:
        network.run_step(network.build(), 2, CPU).backward()
    assert TransferModel(network).gflop() == pytest.approx(counter.get_total_flops() / 2e9)


@pytest.mark.parametrize("network", [segmentation(), detection(head="linear")], ids=["seg", "det"])
def test_the_memory_is_that_of_a_real_step(network: TransferNetwork) -> None:
    built = network.build()
    learner = built.learner
    state = [*learner.parameters(), *learner.buffers()]
    with LiveMemory() as live:
        weights = live.track(state)
        loss = network.run_step(built, 4, CPU)
        stored = live.current - weights
        loss.backward()
        gradients = sum(p.grad.nbytes for p in learner.parameters() if p.grad is not None)
    memory = TransferModel(network).memory(4)
    assert memory.weights == weights
    assert memory.gradients == gradients
    assert memory.optimizer_state == pytest.approx(2 * gradients)
    assert memory.activations == pytest.approx(stored, rel=0.15)


def test_the_work_of_a_mask_rcnn_is_nearly_that_of_a_real_step() -> None:
    """A real step has fewer masked regions, the same heads and the same backbone."""
    network = detection()
    with FlopCounterMode(display=False) as counter:
        network.run_step(network.build(), 2, CPU).backward()
    real = counter.get_total_flops() / 2e9
    modelled = TransferModel(network).gflop()
    assert real <= modelled * 1.01
    without_masks = TransferModel(detection(head="faster_rcnn")).gflop()
    assert without_masks < modelled
    assert real > 0.99 * without_masks


@pytest.mark.parametrize("network", [segmentation(), detection()], ids=["segment", "detect"])
def test_a_step_is_measured_here_or_modelled_for_a_gpu(network: TransferNetwork) -> None:
    here = estimate_transfer(network)
    assert here.basis.startswith("measured: 3 steps")
    assert here.measured_peak
    assert here.step_seconds.low <= here.step_seconds.middle <= here.step_seconds.high
    gpu = estimate_transfer(network, devices=2, gpu="h100")
    assert gpu.basis.startswith("modelled for H100")
    assert gpu.measured_peak is here.largest_micro_batch is None
    assert gpu.micro_batch == 2
    assert gpu.largest_micro_batch
    model = TransferModel(network)
    assert model.memory(gpu.largest_micro_batch).total <= gpu.memory_limit
    assert model.memory(int(1.01 * gpu.largest_micro_batch) + 8).total > gpu.memory_limit
    assert gpu.step_seconds.middle < here.step_seconds.middle
    assert gpu.memory.total > 4 * count_parameters(network.build().learner)
    assert here.steps == gpu.steps == 2 * (100 // 4)
    assert here.days.middle == pytest.approx(here.steps * here.step_seconds.middle / 86_400)


def test_an_exported_student_of_grey_images_is_estimated(tmp_path: Path) -> None:
    spec = StudentSpec(
        name="test_resnet", arguments={"in_chans": 1}, classes=3, input=None, size=(32, 32)
    )
    spec.export(spec.build().eval(), tmp_path / "student")
    for network in (
        segmentation(backbone=str(tmp_path / "student")),
        detection(backbone=str(tmp_path / "student")),
    ):
        assert network.build().channels == 1
        assert estimate_transfer(network, gpu="h100").gflop > 0
        assert estimate_transfer(network).measured_peak


def test_images_are_counted_where_they_are(tmp_path: Path) -> None:
    scenes, objects = ade20k_folder(tmp_path / "scenes"), coco_folder(tmp_path / "objects")
    assert SegmentationNetwork.count(tiny_segmentation(scenes), None).images == Images(8, 3)
    assert DetectionNetwork.count(tiny_detection(objects), None).images == Images(8, 2)
    recipe = tiny_detection(objects)
    without = replace(recipe, data=replace(recipe.data, empty_images=False))
    assert DetectionNetwork.count(without, None).images == Images(6, 2)
    change_coco(objects, "train", "annotations", 0, iscrowd=1)  # the only object of its image
    assert DetectionNetwork.count(without, None).images == Images(5, 2)
    assert open_annotated_images(without).source.splits[0].images == 5
    assert DetectionNetwork.count(recipe, 1000).images == Images(1000, 2)
    assert SegmentationNetwork.count(tiny_segmentation("ade20k"), None).images.classes == 150
    assert DetectionNetwork.count(tiny_detection("coco"), None).images == Images(117_266, 80)


def test_what_cannot_be_estimated_is_refused() -> None:
    with refused("data.root is 'nowhere'", "--images", "coco"):
        DetectionNetwork.count(tiny_detection("nowhere"), None)
    with refused("images is 0"):
        SegmentationNetwork.count(tiny_segmentation("ade20k"), 0)
    with refused("devices is 0"):
        estimate_transfer(segmentation(), devices=0)
    with refused("batch_size is 4", "3 devices"):
        estimate_transfer(segmentation(), devices=3)
    with refused("gpu is 'abacus'"):
        estimate_transfer(segmentation(), gpu="abacus")
    with refused("batch_size is 1", "BatchNorm"):
        estimate_transfer(segmentation(batch_size=1), gpu="h100")
    with refused("not one batch"):
        estimate_transfer(replace(segmentation(), images=Images(3, 7)), gpu="h100")


@pytest.mark.parametrize(
    ("task", "recipe"), [("segment", "segment-resnet50"), ("detect", "detect-resnet50")]
)
def test_the_commands_estimate_the_packaged_recipes(
    task: str, recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["estimate", task, "--recipe", recipe, "--gpu", "a100", "--devices", "8"]
    main([*words, "--precision", "bf16-mixed"])
    text = capsys.readouterr().out
    for part in (
        "timm:resnet50",
        "16 images a step",
        "modelled for A100",
        "images/s",
        "days",
        "images fits into 80 GB",
    ):
        assert part in text
    main([*words, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (found["batch_size"], found["devices"], found["measured_peak"]) == (16, 8, None)
    assert found["steps"] == (160_000 if task == "segment" else 12 * (117_266 // 16))
    # What public tables give for the forward pass of these networks, times 3 for a training step.
    assert found["gflop"] == pytest.approx(3 * 2 * (238 if task == "segment" else 260), rel=0.15)
