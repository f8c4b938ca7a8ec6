"""Compare the model of time behind `scalekd estimate --gpu` with images/s that were measured.

    python benchmarks/rates.py FILE.csv [--json]
    python benchmarks/rates.py FILE.csv --fit
    python benchmarks/rates.py scalekd/estimating/measured_rates.csv --write

FILE has a line for each measured speed, with the columns model (a network of timm, or "TEACHER ->
STUDENT"), gpu, precision, mode, work, batch, image and images_per_second, as the table of the
package. Nothing is downloaded and nothing is computed: each network's operations are traced on
tensors without values. --fit fits the model's constants to one half of the lines, every other one
of each card, precision, mode and work, and judges them by the other half and by all lines of a card
that is held out.
"""

import argparse
import csv
import dataclasses
import json
import math
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from scipy.optimize import least_squares
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from scalekd.errors import InputError
from scalekd.estimating.gpus import GPUS, Gpu
from scalekd.estimating.kernels import Kernel, compiled_kernels, eager_kernels
from scalekd.estimating.measured_rates import (
    COLUMNS,
    COMPILED,
    DISTILLATION,
    MEASURED_RATES,
    TRAINING,
    Rate,
    read_rates,
    same_card,
    within,
)
from scalekd.estimating.memory_simulation import MemorySimulation
from scalekd.estimating.meta_pair import TrainingImages, build_pair_on_meta
from scalekd.estimating.operations import Operation, trace
from scalekd.estimating.roofline import SHARES, Shares, seconds
from scalekd.estimating.step_operations import trace_step
from scalekd.recipe import Data, Recipe

CLASSES = 1000

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "float32": torch.float32}

OPTIMIZER_BYTES = 20
"""Of each parameter in a training step: SGD with momentum reads weight, gradient and momentum, and
writes weight and momentum, in float32."""

HELD_OUT = "RTX 5090"
"""A card that the constants are never fitted to: it tells the error on cards that are new."""

WEIGHT_OF_START = 0.08
"""How much a constant's distance from its start counts in the fit, beside the rates' errors: those
that no row tells apart stay where they were."""


@dataclasses.dataclass(frozen=True)
class Pass:
    """What is traced once for all cards."""

    model: str
    image: int
    batch: int
    work: str
    dtype: str
    autocast: bool
    channels_last: bool
    compiled: bool


@dataclasses.dataclass(frozen=True)
class Traced:
    """The kernels of a pass, and the bytes that its optimizer moves."""

    kernels: Counter[Kernel]
    optimizer_bytes: int


def pass_of(rate: Rate) -> Pass:
    """What a measured speed was measured of.

    Raises:
        InputError: Its precision is not known.
    """
    precision, _, layout = rate.precision.partition(", ")
    autocast = precision.startswith("amp")
    name = precision.removeprefix("amp (").removesuffix(")")
    if name not in DTYPES or layout not in ("", "channels_last"):
        raise InputError(
            f"precision is {rate.precision!r}: it must be amp (fp16), amp (bf16), fp16, bf16 or "
            "float32, with or without ', channels_last'"
        )
    return Pass(
        rate.model,
        rate.image,
        rate.batch,
        rate.work,
        name,
        autocast,
        layout == "channels_last",
        rate.mode == COMPILED,
    )


def gpu_of(rate: Rate) -> Gpu:
    """The card of a measured speed, by its name without the vendor's family.

    Raises:
        InputError: It is not among those of `scalekd.estimating.gpus`.
    """
    for gpu in GPUS.values():
        if same_card(rate, gpu.label):
            return gpu
    raise InputError(
        f"gpu is {rate.gpu!r}, which is not known: add it to scalekd/estimating/gpus.py, or name "
        f"one of {', '.join(gpu.label for gpu in GPUS.values())}"
    )


def trace_pass(subject: Pass) -> Traced:
    """Trace a pass and fuse its operations where it is compiled."""
    torch.set_num_threads(1)
    if subject.work == DISTILLATION:
        operations, parameters = trace_distillation(subject), 0
    else:
        operations, parameters = trace_network(subject)
    kernels = compiled_kernels(operations) if subject.compiled else eager_kernels(operations)
    return Traced(kernels, OPTIMIZER_BYTES * parameters if subject.work == TRAINING else 0)


def trace_network(subject: Pass) -> tuple[list[Operation], int]:
    """Operations of a forward pass or a training step of timm's network, and its parameters."""
    network = build_network(subject.model, subject.image)
    if subject.channels_last:
        network.to(memory_format=torch.channels_last)
    dtype, training = DTYPES[subject.dtype], subject.work == TRAINING
    stored = torch.float32 if subject.autocast else dtype
    with FakeTensorMode(allow_non_fake_inputs=True):
        network.to(stored).to_empty(device="cpu").train(training)
        layout = torch.channels_last if subject.channels_last else torch.contiguous_format
        images = torch.empty(
            subject.batch, 3, subject.image, subject.image, dtype=stored, memory_format=layout
        )
        targets = torch.zeros(subject.batch, dtype=torch.long)

        def run() -> None:
            with torch.autocast("cpu", dtype, enabled=subject.autocast):
                logits: Tensor = network(images)
                loss = F.cross_entropy(logits, targets) if training else None
            if loss is not None:
                torch.autograd.backward(loss)

        with torch.set_grad_enabled(training):
            operations = trace(run)
    return operations, sum(parameter.numel() for parameter in network.parameters())


def build_network(name: str, image: int) -> nn.Module:
    """timm's network on the meta device for images of this size."""
    size = {} if timm.get_pretrained_cfg(name).input_size[-1] == image else {"img_size": image}
    with torch.device("meta"):
        try:
            return timm.create_model(name, **size)
        except TypeError:  # one that takes images of any size
            return timm.create_model(name)


def trace_distillation(subject: Pass) -> list[Operation]:
    """Operations of a step of "TEACHER -> STUDENT" without its optimizer."""
    teacher, _, student = subject.model.partition(" -> ")
    recipe = Recipe(
        teacher=teacher,
        student=student,
        data=Data("imagenet", image_size=subject.image),
        precision="bf16-mixed" if subject.autocast else "32-true",
        channels_last=subject.channels_last,
        compile=subject.compiled,
    )
    simulation = MemorySimulation(build_pair_on_meta(recipe, TrainingImages(1, CLASSES)))
    return trace_step(simulation, subject.batch, recipe.precision).step


def modelled(rate: Rate, traced: Traced, shares: Shares = SHARES) -> float:
    """Images/s by the model of time."""
    gpu, subject = gpu_of(rate), pass_of(rate)
    total = seconds(
        traced.kernels,
        gpu,
        compiled=subject.compiled,
        tf32_products=subject.autocast,
        shares=shares,
    )
    return rate.batch / (total + traced.optimizer_bytes / (1e9 * gpu.bandwidth))


def halves(rates: Sequence[Rate]) -> tuple[list[int], list[int]]:
    """Indices of the rates to fit to and of those to judge by.

    They alternate within each block of one card, precision, mode and work. The first of a block is
    fitted in every other block, so that a network that has the same place in all blocks is not
    always in the same half. All rates of the card that is held out are judged.
    """
    seen: dict[tuple[str, ...], int] = {}
    parts: tuple[list[int], list[int]] = [], []
    for index, rate in enumerate(rates):
        if rate.gpu == HELD_OUT:
            parts[1].append(index)
            continue
        block = rate.gpu, rate.precision, rate.mode, rate.work
        place = seen.setdefault(block, len(seen) % 2)
        parts[place % 2].append(index)
        seen[block] = place + 1
    return parts


def fit(rates: Sequence[Rate], traced: Sequence[Traced], start: Shares = SHARES) -> Shares:
    """The constants with the smallest squared logarithmic errors of these rates."""
    names = [field.name for field in dataclasses.fields(Shares) if field.name != "launch"]
    start_logs = [math.log(getattr(start, name)) for name in names]

    def constants(logs: Sequence[float]) -> Shares:
        values = {name: math.exp(log) for name, log in zip(names, logs, strict=True)}
        return dataclasses.replace(start, **values)

    def errors(logs: Sequence[float]) -> list[float]:
        shares = constants(logs)
        ratios = [
            modelled(rate, one, shares) / rate.images_per_second
            for rate, one in zip(rates, traced, strict=True)
        ]
        moved = [WEIGHT_OF_START * (a - b) for a, b in zip(logs, start_logs, strict=True)]
        return [*map(math.log, ratios), *moved]

    found = least_squares(errors, start_logs, loss="soft_l1", f_scale=0.15)
    return constants(found.x)


def report(rates: Sequence[Rate]) -> str:
    """A line for each card and kind of work, and one for all."""
    blocks: dict[str, list[Rate]] = {}
    for rate in rates:
        name = f"{rate.gpu}, {rate.precision}, {rate.mode}, {rate.work}"
        blocks.setdefault(name, []).append(rate)
    width = max(map(len, blocks))
    return "\n".join(
        f"{name:{width}}  {len(part):4} rates, {within(part):6.1%} within 30 %, the worst is wrong "
        f"by a factor of {max(rate.factor for rate in part):.2f}"
        for name, part in {**blocks, "all": rates}.items()
    )


def write(path: Path, rates: Sequence[Rate]) -> None:
    """Write a table with the modelled images/s, and which of the rates were fitted to."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*COLUMNS, "modelled", "fitted"])
        for rate in rates:
            values = [getattr(rate, name) for name in COLUMNS]
            writer.writerow([*values, f"{rate.modelled:.5g}", rate.fitted])


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the table, model its rates, and print or write what was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path, help="Table of measured images/s (CSV).")
    parser.add_argument("--json", action="store_true", help="Print all rates as JSON.")
    parser.add_argument("--fit", action="store_true", help="Fit the constants to half of FILE.")
    parser.add_argument("--write", action="store_true", help="Write the package's table.")
    parser.add_argument("--processes", type=int, default=2, help="Processes that trace.")
    options = parser.parse_args(arguments)
    try:
        rates = read_rates(options.file)
        passes = [pass_of(rate) for rate in rates]
        for rate in rates:
            gpu_of(rate)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    distinct = list(dict.fromkeys(passes))
    with ProcessPoolExecutor(options.processes) as pool:
        by_pass = dict(zip(distinct, pool.map(trace_pass, distinct), strict=True))
    traced = [by_pass[one] for one in passes]
    to_fit, to_judge = halves(rates)
    shares = SHARES
    if options.fit:
        shares = fit([rates[i] for i in to_fit], [traced[i] for i in to_fit])
        print("\n".join(f"{name}={value:.3g}," for name, value in vars(shares).items()))
    results = [
        dataclasses.replace(rate, modelled=modelled(rate, one, shares))
        for rate, one in zip(rates, traced, strict=True)
    ]
    if options.write:
        fitted = set(to_fit)
        write(
            MEASURED_RATES,
            [dataclasses.replace(r, fitted=i in fitted) for i, r in enumerate(results)],
        )
    if options.json:
        summary = {
            "within_30_percent": within(results),
            "worst_factor": max(rate.factor for rate in results),
            "rows": [{**vars(rate), "factor": rate.factor} for rate in results],
        }
        print(json.dumps(summary, indent=1))
        return
    if options.fit:
        print(f"fitted to:\n{report([results[i] for i in to_fit])}\njudged by:")
        results = [results[i] for i in to_judge]
    print(report(results))


if __name__ == "__main__":
    main()
