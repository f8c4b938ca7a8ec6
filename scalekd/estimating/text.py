"""An estimate as text for the terminal."""

from scalekd.estimating.estimate import Estimate
from scalekd.estimating.measured_rates import Rate
from scalekd.estimating.savings import Saving
from scalekd.estimating.step_time import Range


def format_estimate(estimate: Estimate) -> str:
    """Format what `scalekd estimate` prints."""
    step_time, memory, gflop = estimate.step_time, estimate.memory, estimate.gflop
    rows = [
        ("pair", f"{estimate.teacher} -> {estimate.student}, precision {estimate.precision}"),
        (
            "batch",
            f"{estimate.batch_size} images a step: devices {estimate.devices} x accumulate "
            f"{estimate.accumulate} x micro-batch of {estimate.micro_batch} images",
        ),
        (
            "work",
            f"{gflop.teacher + gflop.student + gflop.rest:.1f} GFLOP an image: teacher "
            f"{gflop.teacher:.1f}, student {gflop.student:.1f}, projectors, tail and losses "
            f"{gflop.rest:.1f}",
        ),
        ("time", step_time.basis),
        (
            "",
            f"a step takes {format_range(estimate.step_seconds, 's')}, "
            f"{format_number(estimate.images_per_second)} images/s",
        ),
        ("", f"shares of a step's time: {_shares(step_time.parts)}"),
        *(("measured", _measured(rate)) for rate in step_time.nearest),
        (
            "days",
            f"one run takes {format_range(estimate.days, 'days')}: {estimate.epochs} epochs of "
            f"{estimate.steps_per_epoch} steps, {estimate.images_per_epoch} images an epoch",
        ),
        *([("", f"the recipe makes {estimate.runs} runs")] if estimate.runs > 1 else []),
        (
            "memory",
            f"one device needs {format_bytes(memory.total)} of its "
            f"{format_bytes(estimate.memory_limit)}; by part:",
        ),
        *(
            ("", f"{name.replace('_', ' ')} {format_bytes(size)}")
            for name, size in vars(memory).items()
        ),
        ("fits", _fits(estimate)),
        *(("saving", _saving(saving, step_time.seconds.middle)) for saving in estimate.savings),
        *(("assumed", line) for line in _assumptions(estimate)),
    ]
    return "\n".join(f"{label:<9}{text}".rstrip() for label, text in rows)


def _measured(rate: Rate) -> str:
    assert rate.modelled is not None
    return (
        f"{rate.model}, {rate.gpu}, {rate.precision}, {rate.mode} {rate.work} of {rate.batch} "
        f"images: {format_number(rate.images_per_second)} images/s, modelled "
        f"{format_number(rate.modelled)}"
    )


def _shares(parts: dict[str, float]) -> str:
    total = sum(parts.values())
    return ", ".join(f"{name} {seconds / total:.0%}" for name, seconds in parts.items())


def _fits(estimate: Estimate) -> str:
    if not estimate.largest_micro_batch:
        return "not even two images at once fit into a device's memory"
    text = f"a micro-batch of at most {estimate.largest_micro_batch} images fits into a device"
    if estimate.smallest_accumulate in (None, estimate.accumulate):
        return text
    return f"{text}: the smallest --accumulate for this batch is {estimate.smallest_accumulate}"


def _saving(saving: Saving, step_seconds: float) -> str:
    effects = []
    if saving.seconds is not None:
        share = f"{abs(saving.seconds) / step_seconds:.0%} of a step's time"
        effects.append(f"{_verb(saving.seconds)} {share}")
    if saving.memory is not None:
        effects.append(
            f"{_verb(saving.memory)} {format_bytes(abs(saving.memory))} of a device's memory"
        )
    return f"{saving.setting}: {', '.join([*effects, saving.basis])}"


def _verb(saved: float) -> str:
    return "saves" if saved >= 0 else "costs"


def _assumptions(estimate: Estimate) -> list[str]:
    memory = estimate.memory
    lines = ["the time of loading images, of validation and of start-up is not counted"]
    if not estimate.step_time.measured:
        overhead = memory.allocator_overhead / (memory.total - memory.runtime_libraries)
        lines.append(
            "fused attention on a GPU stores what it stores on a CPU; the allocator's overhead is "
            f"{overhead:.0%} of all that is allocated"
        )
    if estimate.devices > 1:
        lines.append(
            f"each of {estimate.devices} devices keeps {estimate.scaling_efficiency:.0%} of its "
            "speed while they exchange gradients"
        )
    return lines


def format_bytes(size: float) -> str:
    """Bytes in GB, with three digits."""
    return f"{size / 1e9:.3g} GB"


def format_number(value: float) -> str:
    """A number with three digits, or all before the point."""
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def format_range(values: Range, unit: str) -> str:
    """An estimate with its bounds."""
    low, middle, high = map(format_number, values)
    return f"{middle} {unit} ({low} to {high} {unit})"
