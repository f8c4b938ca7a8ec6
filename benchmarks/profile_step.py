"""Tell which kernels a pair's step spends its time in, by torch's profiler.

    python benchmarks/profile_step.py --pair swin_large-resnet50 --batch_size 128 --json

Takes every option of a recipe. A step is forward and backward on noise. The seconds of a kernel are
those of the device, over `--repetitions` steps; the share of the time in which the device waits is
the rest of the steps' time on the clock.
"""

import json
import time
from dataclasses import dataclass
from typing import Any

import torch
from step import WARM_UP_REPETITIONS, RecipeStep, describe_setup, parse_options
from torch.profiler import ProfilerActivity, profile

from scalekd.recipe import Recipe
from scalekd.training.performance import compile_repeated_blocks

KERNELS = 40
"""So many kernels are listed, those that take longest."""


@dataclass(frozen=True)
class Kernel:
    """One kernel or operation of a step.

    Attributes:
        name: As the profiler has it.
        seconds: Of one step, on the device.
        calls: In one step.
    """

    name: str
    seconds: float
    calls: float


def profile_step(recipe: Recipe, repetitions: int, device: torch.device) -> dict[str, Any]:
    """The kernels of a step, and the share of its time in which the device has none to run."""
    step = RecipeStep(recipe, recipe.batch_size, device)
    if recipe.compile:
        compile_repeated_blocks(step.distiller)
    on_gpu = device.type == "cuda"
    for _ in range(WARM_UP_REPETITIONS):
        step.forward_backward()
    activities = [ProfilerActivity.CUDA] if on_gpu else [ProfilerActivity.CPU]
    if on_gpu:
        torch.cuda.synchronize()
    began = time.perf_counter()
    with profile(activities=activities) as profiler:
        for _ in range(repetitions):
            step.forward_backward()
        if on_gpu:
            torch.cuda.synchronize()
    elapsed = (time.perf_counter() - began) / repetitions
    kernels = []
    for event in profiler.key_averages():
        micro = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        seconds = 1e-6 * micro / repetitions
        kernels.append(Kernel(event.key, seconds, event.count / repetitions))
    kernels = sorted(kernels, key=lambda kernel: -kernel.seconds)
    busy = sum(kernel.seconds for kernel in kernels)
    return {
        "seconds_under_the_profiler": elapsed,
        "busy_seconds": busy,
        "waiting_share": max(0.0, 1 - busy / elapsed),
        "kernels": kernels[:KERNELS],
    }


def main() -> None:
    """Run the profile and print it."""
    recipe, options = parse_options((__doc__ or "").partition("\n")[0], repetitions=5)
    result = profile_step(recipe, options.repetitions, torch.device(options.device))
    if options.json:
        print(json.dumps(describe_setup(recipe, options) | result, default=vars, indent=1))
        return
    print(
        f"a step takes {1e3 * result['seconds_under_the_profiler']:.1f} ms under the profiler, in "
        f"{result['waiting_share']:.0%} of which the device waits"
    )
    for kernel in result["kernels"]:
        print(f"{1e3 * kernel.seconds:9.2f} ms {kernel.calls:7.0f} times  {kernel.name[:100]}")


if __name__ == "__main__":
    main()
